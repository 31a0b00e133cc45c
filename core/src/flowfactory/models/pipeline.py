"""Any flow-matching pipeline of diffusers as an adapter, driven through the pipeline's own `__call__`: the tap.

The pipeline computes everything itself. The tap only decides what its scheduler answers, and stops the call once it has
what it came for, so whatever a pipeline does before and inside a step is done here too, bit for bit.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

import attrs
import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import load_image
from PIL import Image
from torch import Tensor, nn

from flowfactory.builtin import PipelineSpec
from flowfactory.contracts.adapter import Adapter
from flowfactory.contracts.key import Size
from flowfactory.contracts.types import Conditions, Cut, Row
from flowfactory.models import lengths, tap, targets
from flowfactory.models.quantized import quantize, tell_peft
from flowfactory.models.recording import SHAPES, Call, Recorder, Replay, flatten, suffixes, together

SpecT = TypeVar("SpecT", bound=PipelineSpec)

GUIDED = 5.0
"""A guidance scale at which every pipeline encodes negative prompts."""


@attrs.frozen(eq=False)
class Survey:
    """What was learnt about a size when it was first asked for.

    shape: of one latent. handed: the pipeline takes latents in that shape; otherwise they replace what its
    `prepare_latents` returns. sigmas, timesteps: a schedule of 1000 steps.
    """

    shape: tuple[int, ...]
    handed: bool
    sigmas: Tensor
    timesteps: Tensor


class PipelineAdapter(Adapter[SpecT]):
    """A diffusers pipeline, found by `path` alone: text-to-image or text-to-video, with or without condition images.

    `guidance` is the pipeline's `guidance_scale`. Pipelines with a `true_cfg_scale` take it for that, except where the
    network is distilled to embed guidance: there `true_cfg_scale` is the spec's `true_cfg`. A row without a negative
    prompt has the pipeline's own default, or else the empty one.

    alone: whether the pipeline takes one row at a time, and so has to be called for each.
    """

    not_encoded: ClassVar[frozenset[str]] = frozenset({"quantize", "single_file"})
    alone: ClassVar[bool] = False
    pipe: DiffusionPipeline

    def __init__(self, spec: SpecT) -> None:
        super().__init__(spec)
        self._networks: dict[str, nn.Module] = {}
        self._suffixes: dict[tuple[str, ...], dict[str, str]] = {}
        self._sample: Conditions | None = None
        self._surveys: dict[Size, Survey] = {}
        self._inverses: dict[Size, targets.Inverse] = {}
        self._schedules: dict[tuple[int, Size], Tensor] = {}
        self._timesteps: dict[Size, dict[float, float]] = {}

    def load(self, device: torch.device, dtype: torch.dtype, encoded: Conditions | None = None) -> None:
        pipe = tap.read(self.spec, dtype, encoders=encoded is None)
        tap.refuse_unless_flow_matching(pipe)
        self.pipe = self._placed(pipe, device, dtype)
        self.pipe.set_progress_bar_config(disable=True)
        self._parameters = tap.parameters(self.pipe)
        self._networks = tap.networks(self.pipe)
        self._refuse_unusable_keys()
        for module in self._others().values():
            module.requires_grad_(False).eval()
        if encoded is not None:
            self._sample = {name: tensor.to(device) for name, tensor in encoded.items()}

    def networks(self) -> Mapping[str, nn.Module]:
        return self._networks

    def lora_targets(self) -> Sequence[str]:
        """Every linear layer of every attention, by its name from the attention module on where that says enough."""
        modules = {name: m for network in self._networks.values() for name, m in network.named_modules()}
        others = [name for name, module in modules.items() if not isinstance(module, nn.Linear)]
        found = set()
        for name in modules.keys() - others:
            *above, _ = parts = name.split(".")
            if attention := [i for i, part in enumerate(above) if "attn" in part or "attention" in part]:
                ending = ".".join(parts[attention[-1] :])
                found.add(name if any(other.endswith(f".{ending}") for other in others) else ending)
        return sorted(found)

    @torch.no_grad()
    def encode(self, rows: Sequence[Row]) -> Conditions:
        """Each row by itself, so that what becomes of it does not depend on which others it is encoded with."""
        encoded = [self._encode(row, [load_image(str(path)) for path in row.images]) for row in rows]
        self._sample = self._sample or encoded[0]
        return self.collate(encoded)

    def cut(self, prompts: Sequence[str]) -> Sequence[Cut]:
        """By what each tokenizer is asked to leave of a prompt, less what the pipeline itself adds to that."""
        images = [Image.new("RGB", (64, 64))] if self.edits else []

        @torch.no_grad()
        def encode(prompt: str, replaced: Mapping[str, Any]) -> None:
            self._record(Row(prompt), images, 1, replaced)

        return lengths.cut(lengths.tokenizers(self.pipe), encode, prompts)

    def encodes_with(self, file: PurePath) -> bool:
        """Everything but the weights of the trained networks, the scheduler, and what lies beside the pipeline."""
        folder, _, name = str(file).rpartition("/")
        if folder.startswith("transformer"):
            return name == "config.json"
        return bool(folder or name == "model_index.json") and folder != "scheduler"

    def drop_encoders(self) -> None:
        self._stand_in()
        for name in self._others():
            if not name.startswith("vae"):
                setattr(self.pipe, name, None)
        gc.collect()

    def latent_shape(self, size: Size) -> tuple[int, ...]:
        return self._survey(size).shape

    def sigmas(self, steps: int, size: Size) -> Tensor:
        if (steps, size) not in self._schedules:
            sigmas, timesteps = self._schedule(steps, size)
            self._schedules[steps, size] = sigmas
            self._timesteps.setdefault(size, {}).update(zip(sigmas.tolist(), timesteps.tolist(), strict=False))
        return self._schedules[steps, size]

    def velocity(self, x: Tensor, sigma: Tensor, conditions: Conditions, guidance: float, size: Size) -> Tensor:
        """One call of the pipeline for each distinct noise level and prompt length.

        Raises:
            ValueError: the pipeline knows no guidance, and `guidance` is not 1.
        """
        if guidance != 1 and not self.guidance_scales(guidance).keys() & self._parameters.keys():
            raise self._refusal(f"it takes no guidance; set [sampling] guidance to 1, not {guidance:g}")
        levels, shapes = sigma.float().tolist(), map(tuple, conditions[SHAPES].tolist())

        def ask(rows: list[int]) -> Tensor:
            own = conditions if len(rows) == len(x) else {name: tensor[rows] for name, tensor in conditions.items()}
            return self._reach(x[rows], levels[rows[0]], own, guidance, size).model_output

        places = range(len(x)) if self.alone else [0] * len(x)
        return together(list(zip(levels, shapes, places, strict=True)), ask)

    @torch.no_grad()
    def decode(self, x: Tensor, size: Size) -> Tensor:
        """By the pipeline, which is given a schedule without steps."""
        if self.alone and len(x) > 1:
            return torch.cat([PipelineAdapter.decode(self, one, size) for one in x.split(1)])  # type: ignore[no-untyped-call]
        conditions = {name: t.expand(len(x), *t.shape[1:]) for name, t in self._stand_in().items()}
        finished = tap.scheduler(self.pipe.scheduler, [0.0], [])
        media: Tensor = self._run(conditions, 1.0, size, finished, x)[0].float()
        return media[:, 0] if media.dim() == 5 and size.frames == 1 else media

    @torch.no_grad()
    def encode_media(self, media: Tensor, size: Size) -> Tensor:
        """By the pipeline's VAE, and back through whatever the pipeline does between latents and decoding."""
        if size not in self._inverses:
            shape, device = self.latent_shape(size), next(self.pipe.vae.parameters()).device
            self._inverses[size] = targets.inverse(self.pipe.vae, lambda x: self.decode(x, size), shape, device)
        return targets.encoded(self.pipe.vae, media, self._inverses[size])

    def place(self, device: torch.device) -> None:
        for module in self._others().values():
            module.to(device)

    @classmethod
    def tiny(cls, folder: Path) -> Path:
        """Stable Diffusion 3."""
        from flowfactory.models.tiny import stable_diffusion_3

        stable_diffusion_3().save_pretrained(folder)
        return folder

    def guidance_scales(self, guidance: float) -> dict[str, float]:
        """The pipeline's own names for `guidance` and the spec's `true_cfg`."""
        if "true_cfg_scale" not in self._parameters:
            return {"guidance_scale": guidance}
        if tap.embeds_guidance(self.pipe):
            return {"guidance_scale": guidance, "true_cfg_scale": self.spec.true_cfg}
        return {"true_cfg_scale": guidance}

    # --- how the pipeline is called ----------------------------------------------------------------------------------

    def _refuse_unusable_keys(self) -> None:
        if self.spec.true_cfg != 1 and self.spec.true_cfg not in self.guidance_scales(1.0).values():
            raise self._refusal("it has no use for `true_cfg`; its guidance is [sampling] guidance")
        if self.spec.max_sequence_length is not None and "max_sequence_length" not in self._parameters:
            raise self._refusal("it has no use for `max_sequence_length`")

    def _placed(self, pipe: DiffusionPipeline, device: torch.device, dtype: torch.dtype) -> DiffusionPipeline:
        """The pipeline on `device`, its networks in the bits the spec wants."""
        kind = self.spec.quantize
        if kind is None:
            return pipe.to(device)
        for network in tap.networks(pipe).values():
            quantize(network, kind, dtype)
        placed = pipe.to(device)
        for network in tap.networks(placed).values():
            tell_peft(network, kind)
        return placed

    def _others(self) -> dict[str, nn.Module]:
        return {name: module for name, module in tap.modules(self.pipe).items() if name not in self._networks}

    def _arguments(self, guidance: float, size: Size | None, arguments: dict[str, Any]) -> dict[str, Any]:
        """What this pipeline's `__call__` takes of what can be said to any."""
        scales = self.guidance_scales(guidance)
        arguments = arguments | scales | {"output_type": "pt", "return_dict": False, "use_resolution_binning": False}
        if size is not None:
            arguments |= {"height": size.height, "width": size.width, "num_frames": size.frames}
            arguments |= {"max_area": size.height * size.width}
        if self.spec.max_sequence_length is not None:
            arguments |= {"max_sequence_length": self.spec.max_sequence_length}
        if scales.get("true_cfg_scale", GUIDED) <= 1:
            del arguments["negative_prompt"]
        return {name: value for name, value in arguments.items() if name in self._parameters}

    def _record(
        self, row: Row, images: Sequence[Image.Image], times: int, replaced: Mapping[str, Any] = MappingProxyType({})
    ) -> list[Call]:
        """What the `encode_*` methods return for a batch of one row, before the network is first called.

        Args:
            replaced: stand-ins for parts of the pipeline.
        """
        if self.edits and not images:
            raise self._refusal(f"it edits images, and the prompt {row.prompt!r} has none; give its row an `image`")
        default = self._parameters["negative_prompt"].default if "negative_prompt" in self._parameters else None
        negative = default or "" if row.negative_prompt is None else row.negative_prompt
        arguments: dict[str, Any] = {"prompt": [row.prompt] * times, "negative_prompt": [negative] * times}
        recorder = Recorder()
        if images:
            arguments["image"] = images[0] if len(images) == times == 1 else [*images] * times
            recorder.calls += [(tap.IMAGE, tap.outline(image, times)) for image in images]
        members = {name: recorder.around(name, method) for name, method in tap.encode_methods(self.pipe).items()}
        with tap.seeded(self.pipe), tap.stopping_at(self._networks.values()):
            tap.run(self.pipe, {**members, **replaced}, self._arguments(GUIDED, None, arguments))
        return recorder.calls

    def _encode(self, row: Row, images: Sequence[Image.Image]) -> Conditions:
        calls = self._record(row, images, 1)
        if images and not any("image" in name for name, _ in calls[len(images) :]):
            raise self._refusal("it does not encode condition images, or not where that can be kept")
        methods = tuple(name for name, _ in calls)
        if methods not in self._suffixes:
            self._suffixes[methods] = suffixes(calls, self._record(row, images, 2))
        return flatten(calls, self._suffixes[methods])

    def _stand_in(self) -> Conditions:
        """Conditions of any one row, whose prompt is not its negative prompt."""
        if self._sample is None:
            with torch.no_grad():
                self._sample = self._encode(Row("a photo"), [Image.new("RGB", (64, 64))] if self.edits else [])
        return self._sample

    def _run(
        self,
        conditions: Conditions,
        guidance: float,
        size: Size,
        scheduler: Any,
        x: Tensor | None,
        steps: int = 2,
        seed: int = 0,
    ) -> Any:
        """What the pipeline returns, or the `tap.Stop` that ends it, from latents `x` or from its own."""
        replay = Replay(conditions)
        batch = len(conditions[SHAPES])
        members: dict[str, Any] = {name: replay.method(name) for name in tap.encode_methods(self.pipe)}
        members["scheduler"] = scheduler
        arguments: dict[str, Any] = {
            "prompt": [""] * batch,
            "negative_prompt": [""] * batch,
            "num_inference_steps": steps,
        }
        if images := [
            tap.picture(replay.method(tap.IMAGE)()) for name in conditions if name.startswith(f"{tap.IMAGE}.")
        ]:
            arguments["image"] = images[0] if len(images) == batch == 1 else images * batch
        if x is not None and self._survey(size).handed:
            arguments["latents"] = x
        elif x is not None:
            members["prepare_latents"] = tap.replacing_latents(self.pipe, x)
        with tap.seeded(self.pipe, seed):
            return tap.run(self.pipe, members, self._arguments(guidance, size, arguments))

    # --- what the calls are for --------------------------------------------------------------------------------------

    def _reach(
        self, x: Tensor, level: float, conditions: Conditions, guidance: float, size: Size, seed: int = 0
    ) -> tap.Reached:
        pinned = tap.scheduler(self.pipe.scheduler, [level, 0.0], [self._timestep(level, size)])
        return self._reached(self._run(conditions, guidance, size, pinned, x, seed=seed))

    def _reached(self, outcome: Any) -> tap.Reached:
        if not isinstance(outcome, tap.Reached):
            raise self._refusal("it never calls its scheduler's step")
        return outcome

    def _refusal(self, why: str) -> ValueError:
        return ValueError(f"{self.spec.path} ({type(self.pipe).__name__}) cannot be trained here: {why}")

    def _timestep(self, level: float, size: Size) -> float:
        """What the pipeline tells its network at a noise level: a schedule's own entry, or what lies between."""
        if level in (known := self._timesteps.get(size, {})):
            return known[level]
        survey = self._survey(size)
        scale = self.pipe.scheduler.config.num_train_timesteps
        if (survey.timesteps - scale * survey.sigmas[:-1]).abs().max() < 1:
            return float(np.float32(level) * np.float32(scale))
        return float(np.interp(level, survey.sigmas[:-1].flip(0), survey.timesteps.flip(0)))

    @torch.no_grad()
    def _schedule(self, steps: int, size: Size) -> tuple[Tensor, Tensor]:
        """The pipeline's own noise levels `(steps+1,)` and what it tells its network `(steps,)`."""
        scheduler = tap.scheduler(self.pipe.scheduler)
        with tap.stopping_at(self._networks.values()):
            self._run(self._stand_in(), 1.0, size, scheduler, None, steps)
        sigmas, timesteps = scheduler.sigmas.float().cpu(), scheduler.timesteps.cpu()
        if (len(sigmas), len(timesteps)) != (steps + 1, steps) or sigmas[-1] != 0 or not (sigmas.diff() < 0).all():
            raise self._refusal(f"it does not go from noise to data in {steps} falling noise levels")
        return sigmas, timesteps

    def _survey(self, size: Size) -> Survey:
        """Look at a size once, and refuse what could not be trained correctly."""
        if size not in self._surveys:
            try:
                self._look_at(size)
            except BaseException:
                self._surveys.pop(size, None)
                raise
        return self._surveys[size]

    @torch.no_grad()
    def _look_at(self, size: Size) -> None:
        conditions = self._stand_in()
        own = tap.scheduler(self.pipe.scheduler, steps=1)
        second = self._reached(self._run(conditions, GUIDED, size, own, None))
        look = Survey(tuple(second.sample.shape[1:]), True, *self._schedule(1000, size))
        x = torch.randn(second.sample.shape, generator=torch.Generator().manual_seed(0)).to(second.sample)
        level = float(look.sigmas[0])
        self._surveys[size] = look
        try:
            one = self._reach(x, level, conditions, 1.0, size)
        except (ValueError, RuntimeError, TypeError):
            one = None  # some pipelines take latents in another shape, and pack them
        if one is None or not torch.equal(one.sample, x):
            self._surveys[size] = attrs.evolve(look, handed=False)
            one = self._reach(x, level, conditions, 1.0, size)
        two = self._reach(x, level, conditions, 1.0, size, seed=1)
        if not torch.equal(one.sample, x):
            raise self._refusal("it changes the latents it is given")
        if not torch.allclose(one.model_output, two.model_output, rtol=1e-3, atol=1e-6):
            raise self._refusal("it adds fresh noise in every call")
        first = self._reach(second.sample, float(own.sigmas[1]), conditions, GUIDED, size)
        half_the_digits = torch.finfo(second.model_output.dtype).eps ** 0.5
        if (first.model_output - second.model_output).norm() > half_the_digits * second.model_output.norm():
            raise self._refusal("what it computes depends on the number of the step, not only on the noise level")
        frames, _, height, width = (1, *self.decode(x, size).shape[1:])[-4:]
        if (made := Size(height, width, frames)) != size:
            raise ValueError(f"{self.spec.path} cannot make {_words(size)}; the nearest it can is {_words(made)}")


def _words(size: Size) -> str:
    return f"{size.height}x{size.width}" + (f" with {size.frames} frames" if size.frames > 1 else "")
