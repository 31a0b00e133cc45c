"""From a run to something diffusers loads, compared with what was trained before it counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import attrs
import torch
from safetensors.torch import load_file
from torch import Tensor

from flowfactory.builtin import PipelineSpec
from flowfactory.contracts.adapter import Adapter
from flowfactory.contracts.hooks import Display
from flowfactory.contracts.key import Precision
from flowfactory.contracts.seeds import Draws
from flowfactory.contracts.types import Conditions
from flowfactory.data.rows import load_rows
from flowfactory.discovery.components import Target
from flowfactory.discovery.entries import Source
from flowfactory.errors import RunError
from flowfactory.export.card import write_card
from flowfactory.export.forms import FORMS, Trained, device
from flowfactory.metrics import merit
from flowfactory.metrics.clock import Clock
from flowfactory.models.pipeline import PipelineAdapter
from flowfactory.policy.finite import all_finite
from flowfactory.policy.weights import Weights
from flowfactory.processes.distributed import DTYPES
from flowfactory.runs import archive, history
from flowfactory.spec.tables import Full, Spec
from flowfactory.training.assembly import load_model

TOLERANCE = 1e-5
"""Largest difference of a velocity that was read back, relative to the largest velocity."""


@attrs.frozen
class Exported:
    """What was written, and how far its velocities are from those of the trained network.

    difference: between what was read back and the trained network in the run's precision, relative to the largest
    velocity. rounding: the same between that network and the trained one itself, with its LoRA apart and in float32.
    """

    folder: Path
    difference: float
    rounding: float


def export(
    run: Path,
    spec: Spec,
    model: Target,
    source: Source,
    display: Display,
    form: str = "lora",
    epoch: int | Literal["best"] | None = None,
    weights: str | None = None,
    folder: Path | None = None,
) -> Exported:
    """Write a run's weights for diffusers, read them back and compare.

    Args:
        run: the run's folder. spec: its spec. model: what makes the adapter; source: its distribution.
        form: "lora", "kohya" or "merged" (see `forms`); a fully fine-tuned model is always whole.
        epoch: of which checkpoint; "best", as `[checkpoint] best` judges evaluations; the last when absent.
        weights: which set; when absent the averaged one, or the current one where nothing is averaged.
        folder: where to; `export/<form>` in the run's folder when absent.

    Raises:
        RunError: there is no such checkpoint, the model cannot be written so, or what was written does not do what
            was trained.
    """
    spec = _whole(spec)
    form = "merged" if isinstance(spec.tuning, Full) else form
    weights = weights or ("ema" if spec.optimizer.ema else "current")
    saved = find(run, best_epoch(run, spec) if epoch == "best" else epoch, weights)
    folder = folder or run / "export" / form
    folder.mkdir(parents=True, exist_ok=True)
    try:
        trained = load(spec, model, source, saved, display)
        with display.phase("writing"):
            before = velocities(spec, trained.adapter, trained.encoded)
            FORMS[form].write(trained, folder)
            trained.round()
            expected = velocities(spec, trained.adapter, trained.encoded)
            python, encoded, adapter = FORMS[form].python(trained), trained.encoded, type(trained.adapter)
            del trained
        with display.phase("reading it back"):
            actual = velocities(spec, FORMS[form].read(spec, folder, adapter, encoded), encoded)
    except (ValueError, AssertionError) as error:
        raise RunError(f"{run} cannot be exported as {form}: {error}") from error
    done = Exported(folder, difference(expected, actual), difference(before, expected))
    if not done.difference <= TOLERANCE:
        raise RunError(f"{folder} is no good: read back, its velocities are {done.difference:.1e} off the largest")
    number = archive.epoch_of(saved.parent)
    write_card(
        folder, run, spec, f"`{weights}` after epoch {number}", number, python, _checked(done, spec.run.precision)
    )
    return done


def _whole(spec: Spec) -> Spec:
    """A spec with its base as it was published: what is exported is not tied to how the base was rounded."""
    own = spec.model.spec
    if not isinstance(own, PipelineSpec):
        return spec
    return attrs.evolve(spec, model=attrs.evolve(spec.model, spec=attrs.evolve(own, quantize=None)))


def best_epoch(run: Path, spec: Spec) -> int:
    """The epoch of the best evaluation whose checkpoint was kept.

    Raises:
        RunError: no checkpoint was evaluated, or the run's table says that none is to be the best.
    """
    (past,) = history.read([run])
    kept = {archive.epoch_of(path) for path in archive.checkpoints(run / archive.CHECKPOINTS)}
    best = merit.best(spec, [(epoch, line) for epoch, line in past.metrics.items() if epoch in kept])
    if best is None:
        why = f"its [checkpoint] best is `{spec.checkpoint.best}`, and no checkpoint has an evaluation by that"
        raise RunError(f"{run} has no best checkpoint: {why}")
    return best.epoch


def find(run: Path, epoch: int | None, weights: str) -> Path:
    """The file of a weight set.

    Raises:
        RunError: there is none; the message names those there are. Or the checkpoint is damaged.
    """
    found = {path.name: path for path in archive.checkpoints(run / archive.CHECKPOINTS)}
    if not found:
        raise RunError(f"{run} has no checkpoint to export")
    name = list(found)[-1] if epoch is None else archive.name(epoch)
    if name not in found:
        raise RunError(f"{run} has no checkpoint {name}; there is {', '.join(found)}")
    if damage := archive.damage(found[name]):
        others = [other for other in found if other != name and not archive.damage(found[other])]
        rest = f"--epoch takes another ({', '.join(others)})" if others else "no other one is intact"
        raise RunError(f"{damage}: this checkpoint is damaged; {rest}")
    sets = {path.stem: path for path in sorted(found[name].glob("*.safetensors")) if path.stem != "optimizer"}
    if weights not in sets:
        raise RunError(f"{found[name]} has no weights {weights!r}; there are {', '.join(sets)}")
    return sets[weights]


def load(spec: Spec, model: Target, source: Source, saved: Path, display: Display) -> Trained:
    """The base model with the weights of a checkpoint's file in it.

    Raises:
        ValueError: the model's adapter drives no diffusers pipeline.
        RunError: a weight in the file is not finite.
    """
    adapter: Adapter[Any] = model(spec.model.spec)
    if not isinstance(adapter, PipelineAdapter):
        raise ValueError(f"its model's adapter `{spec.model.name}` drives no diffusers pipeline")
    (row, *_) = load_rows(Path(spec.data.prompts))
    cache = load_model(spec, adapter, source, [row], device(), display, Clock(device()))
    full = isinstance(spec.tuning, Full)
    targets = [] if full else adapter.lora_targets()
    networks = adapter.networks().items()
    dtypes = {f"{name}.{path}": p.dtype for name, network in networks for path, p in network.named_parameters()}
    weights = Weights(adapter.networks(), spec.tuning, targets, [], spec.run.seed)
    weights.restore("current", all_finite(load_file(saved), saved))
    trained = Trained(spec, adapter, weights, targets, dtypes, cache[row])
    if full:
        trained.round()
    return trained


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
