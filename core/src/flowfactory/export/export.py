"""From a run to something diffusers loads, compared with what was trained before it counts."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from flowfactory.builtin import PipelineSpec
from flowfactory.components.resolved import Target
from flowfactory.contracts.key import Precision
from flowfactory.contracts.seeds import Draws
from flowfactory.contracts.types import Conditions, Row
from flowfactory.data.sources import load_training, pools
from flowfactory.data.store import unpacked_folder
from flowfactory.discovery.entries import Source
from flowfactory.errors import RunError, shown
from flowfactory.export import choosing
from flowfactory.export.card import write_card, write_spec
from flowfactory.export.forms import FORMS, Trained, device
from flowfactory.export.saved import place_for
from flowfactory.export.words import PROMPT, base_id, calling, seen_from
from flowfactory.metrics.clock import Clock
from flowfactory.metrics.display import Display
from flowfactory.models import tap
from flowfactory.models.pipeline import PipelineAdapter
from flowfactory.policy.finite import all_finite
from flowfactory.processes.distributed import DTYPES
from flowfactory.runs import archive
from flowfactory.runs import folder as folders
from flowfactory.runs.files import replacing, writing
from flowfactory.sampling.epochs import rows_used
from flowfactory.spec.tables import Full, Spec
from flowfactory.training.encoding import load_model

TOLERANCE = 1e-5
"""Largest difference of a velocity that was read back, relative to the largest velocity."""


@attrs.frozen
class Exported:
    """What was written, and how far its velocities are from those of the trained network.

    difference: between what was read back and the trained network in the run's precision, relative to the largest
    velocity. rounding: the same between that network and the trained one itself, with its LoRA apart and in float32.
    edits: whether the model was asked with an image.
    """

    folder: Path
    difference: float
    rounding: float
    edits: bool = False


def export(
    run: Path,
    spec: Spec,
    model: Target,
    source: Source,
    display: Display,
    form: str,
    saved: Path,
    place: Path,
    dtype: Precision | None = None,
) -> Exported:
    """Write a run's weights for diffusers, read them back and compare.

    Args:
        run: the run's folder. spec: its spec. model: what makes the adapter; source: its distribution.
        form: "lora", "kohya" or "merged" (see `forms`); a fully fine-tuned model is always whole.
        saved: the file of the weights. place: where to; an export that is there is replaced.
        dtype: of what is written; when absent, float32 for LoRA and the run's precision for whole pipelines.

    Raises:
        RunError: the model cannot be written so, or what was written does not do what was trained. Nothing is left of
            it then.
    """
    spec = _whole(spec)
    form = choosing.form(spec, form)
    if form == "merged":
        spec = attrs.evolve(spec, run=attrs.evolve(spec.run, precision=dtype or spec.run.precision))
    number = archive.epoch_of(saved.parent)
    with writing(place), archive.reading(saved.parent), replacing(place) as partial:
        try:
            done, loading, note = _write(
                spec, model, source, display, saved, form, partial, place, run, dtype or "fp32"
            )
        except (ValueError, AssertionError) as error:
            raise RunError(f"{run} cannot be exported as {form}: {error or repr(error)}") from error
        except SafetensorError as error:
            raise RunError(f"{shown(place)} cannot be written: {error}") from error
        if not done.difference <= TOLERANCE:
            off = f"read back, its velocities are {done.difference:.1e} off the largest"
            raise RunError(f"{place} is no good: {off}")
        which, checked = f"`{saved.stem}` after epoch {number}", _checked(done, spec.run.precision)
        write_card(partial, run, spec, which, number, loading, f"{note}\n\n{checked}".strip(), done.edits)
        record = {"form": form, "epoch": number, "weights": saved.stem, "precision": spec.run.precision}
        record |= {"difference": done.difference, "rounding": done.rounding}
        write_spec(partial, run, spec, base_id(spec) or seen_from(place, run, spec.model.spec.path))
        (partial / folders.EXPORT).write_text(json.dumps(record | {"files": choosing.names(partial)}, indent=2) + "\n")
    return done


def _write(
    spec: Spec,
    model: Target,
    source: Source,
    display: Display,
    saved: Path,
    form: str,
    partial: Path,
    place: Path,
    run: Path,
    stored: Precision,
) -> tuple[Exported, str, str]:
    """Write into `partial` and read it back: how well that went, Python for the card, and a note beside it."""
    trained = load(spec, model, source, saved, display, DTYPES[stored])
    with display.phase("writing"):
        before = velocities(spec, trained.adapter, trained.encoded)
        FORMS[form].write(trained, partial)
        trained.round()
        expected = velocities(spec, trained.adapter, trained.encoded)
        encoded, adapter = trained.encoded, type(trained.adapter)
        edits = adapter.edits or any(name.startswith(f"{tap.IMAGE}.") for name in encoded)
        base = base_id(spec) or seen_from(place, run, spec.model.spec.path)
        loading, note = FORMS[form].python(trained, base), FORMS[form].note(trained)
        if loading:
            loading += f"\n{calling(trained.adapter, spec, edits)}"
        del trained
    with display.phase("reading it back"):
        actual = velocities(spec, FORMS[form].read(spec, partial, adapter, encoded), encoded)
    return Exported(place, difference(expected, actual), difference(before, expected), edits), loading, note


def _whole(spec: Spec) -> Spec:
    """A spec with its base as it was published: what is exported is not tied to how the base was rounded."""
    own = spec.model.spec
    if not isinstance(own, PipelineSpec):
        return spec
    return attrs.evolve(spec, model=attrs.evolve(spec.model, spec=attrs.evolve(own, quantize=None)))


def load(
    spec: Spec, model: Target, source: Source, saved: Path, display: Display, stored: torch.dtype = torch.float32
) -> Trained:
    """The base model with the weights of a checkpoint's file in it.

    Args:
        stored: what LoRA is to be written in.

    Raises:
        ValueError: the model's adapter drives no diffusers pipeline.
        RunError: a weight in the file is not finite.
    """
    adapter, encoded = _encoded(spec, model, source, display)
    networks = adapter.networks().items()
    dtypes = {f"{name}.{path}": p.dtype for name, network in networks for path, p in network.named_parameters()}
    weights = place_for(spec, adapter, saved)
    weights.restore("current", all_finite(load_file(saved), saved))
    trained = Trained(spec, adapter, weights, dtypes, encoded, stored)
    if isinstance(spec.tuning, Full):
        trained.round()
    return trained


def _encoded(spec: Spec, model: Any, source: Source, display: Display) -> tuple[PipelineAdapter[Any], Conditions]:
    """The loaded adapter, and the conditions of a row to compare with: of the run's first prompt, or of one of our own.

    A run can be exported where its prompts are not. Whether a model wants an image is seen when it is asked without.
    """
    with TemporaryDirectory() as folder:
        blank = Path(folder) / "blank.png"
        Image.new("RGB", (spec.sampling.size.width, spec.sampling.size.height)).save(blank)
        rows = [Row(PROMPT, "", (blank,)), *([] if model.edits else [Row(PROMPT, "")])]
        with suppress(ValueError, OSError, RunError):
            known = load_training(spec.data, unpacked_folder(spec.memory.cache))
            drawn_from = pools(spec.data, known)
            rows.append(known[rows_used(spec.run.seed, range(1, 2), drawn_from, spec.sampling.prompts)[0]])
        while True:
            row, adapter = rows.pop(), model(spec.model.spec)
            if not isinstance(adapter, PipelineAdapter):
                raise ValueError(f"its model's adapter `{spec.model.name}` drives no diffusers pipeline")
            try:
                cache = load_model(spec, adapter, source, [row], device(), display, Clock(device()))
                return adapter, {name: tensor.clone() for name, tensor in cache[row].items()}
            except (ValueError, TypeError, AttributeError):
                if not rows or not adapter.networks():
                    raise


@torch.no_grad()
def velocities(spec: Spec, adapter: PipelineAdapter[Any], encoded: Conditions) -> Tensor:
    """Of one latent at the first, the middle and the last noise level, so that every network has its say: `(3, …)`."""
    size = spec.sampling.size
    x = Draws([(0, "export")]).normal(*adapter.latent_shape(size)).to(device(), DTYPES[spec.run.precision])
    conditions = {name: tensor.to(device()) for name, tensor in encoded.items()}
    levels = adapter.sigmas(spec.sampling.steps, size)[:-1]
    chosen = levels[[0, len(levels) // 2, -1]].to(device())
    made = [adapter.velocity(x, level[None], conditions, spec.sampling.guidance, size) for level in chosen]
    return torch.cat(made).float().cpu()


def difference(expected: Tensor, actual: Tensor) -> float:
    """The largest difference relative to the largest value."""
    return float((expected - actual).abs().max() / expected.abs().max())


def _checked(done: Exported, precision: Precision) -> str:
    text = f"Read back, its velocities differ from the trained network's by {done.difference:.1g} of the largest."
    rounded = f" Rounding that network to {precision} had moved them by {done.rounding:.1g}."
    return text + (rounded if done.rounding else "")
