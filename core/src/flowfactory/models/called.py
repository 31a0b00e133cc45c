"""How a pipeline is called: what it is given in place of its prompts, its latents and its scheduler."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor, nn

from flowfactory.builtin import PipelineSpec
from flowfactory.contracts.adapter import Adapter
from flowfactory.contracts.key import Size
from flowfactory.contracts.types import Conditions, Row
from flowfactory.models import tap
from flowfactory.models.quantized import quantize, tell_peft
from flowfactory.models.recording import (
    SEEN,
    SHAPES,
    Call,
    Recorder,
    Replay,
    as_one_row,
    flatten,
    nothing,
    one_row_a_call,
    suffixes,
)

SpecT = TypeVar("SpecT", bound=PipelineSpec)

GUIDED = 5.0
"""A guidance scale at which every pipeline encodes negative prompts."""


class CalledPipeline(Adapter[SpecT]):
    """An adapter whose calls of its pipeline end where the tap stops them.

    alone: whether the pipeline takes one row at a time, and so has to be called for each.
    onto: what puts a network on a device instead of moving it as a whole; to be set before a pipeline is loaded.
    """

    alone: ClassVar[bool] = False
    onto: Callable[[nn.Module, torch.device], object] | None = None
    pipe: DiffusionPipeline
    _dtype: torch.dtype
    _parameters: Mapping[str, Any]

    def __init__(self, spec: SpecT) -> None:
        super().__init__(spec)
        self._networks: dict[str, nn.Module] = {}
        self._suffixes: dict[tuple[tuple[str, ...], ...], dict[str, str]] = {}
        self._sample: Conditions | None = None
        self._pictures = 0
        self._alone: set[int] = set()
        self._singly = set[str]()  # what has failed with several rows, and succeeded with each of them
        self._encodes = False  # whether its calls use the autoencoder before the network; known once it was called

    def guidance_scales(self, guidance: float) -> dict[str, float]:
        """The pipeline's own names for `guidance` and the spec's `true_cfg`."""
        if "true_cfg_scale" not in self._parameters:
            return {"guidance_scale": guidance}
        if tap.embeds_guidance(self.pipe):
            return {"guidance_scale": guidance, "true_cfg_scale": self.spec.true_cfg}
        return {"true_cfg_scale": guidance}

    def _refuse_unusable_keys(self) -> None:
        if self.spec.true_cfg != 1 and self.spec.true_cfg not in self.guidance_scales(1.0).values():
            raise self._refusal("it has no use for `true_cfg`; its guidance is [sampling] guidance")
        if self.spec.max_sequence_length is not None and "max_sequence_length" not in self._parameters:
            raise self._refusal("it has no use for `max_sequence_length`")

    def _placed(self, pipe: DiffusionPipeline, device: torch.device, dtype: torch.dtype) -> DiffusionPipeline:
        """The pipeline on `device`, its networks in the bits the spec wants; but for those that `onto` will place."""
        kind = self.spec.quantize
        if self.onto is not None:
            placed_later = [*tap.networks(pipe).values()]
            for module in tap.modules(pipe).values():
                if module not in placed_later:
                    module.to(device)
            return pipe
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
        arguments |= {"guidance_schedule": None}  # some have one by default in the place of one scale
        if size is not None:
            arguments |= {"height": size.height, "width": size.width, "num_frames": size.frames}
            arguments |= {"frames": size.frames}  # as some name it
            arguments |= {"max_area": size.height * size.width}
        if self.spec.max_sequence_length is not None:
            arguments |= {"max_sequence_length": self.spec.max_sequence_length}
        if "last_image" in self._parameters and isinstance(images := arguments.get("image"), list) and len(images) == 2:
            arguments |= {"image": images[0], "last_image": images[1]}
        if scales.get("true_cfg_scale", GUIDED) <= 1:
            del arguments["negative_prompt"]
        return {name: value for name, value in arguments.items() if name in self._parameters}

    def _record(
        self, row: Row, images: Sequence[Image.Image], times: int, replaced: Mapping[str, Any] = MappingProxyType({})
    ) -> list[Call]:
        """What the `encode_*` methods return, before the network is first called.

        Args:
            times: how often the row is in the batch; 0: it is handed over by itself, as no batch.
            replaced: stand-ins for parts of the pipeline.
        """
        given = self._parameters.get("image")
        if (self.edits or (given and given.default is given.empty)) and not images:
            what = "edits images" if self.edits else "needs an image"
            raise self._refusal(f"it {what}, and the prompt {row.prompt!r} has none; give its row an `image`")
        default = self._parameters["negative_prompt"].default if "negative_prompt" in self._parameters else None
        negative = default or "" if row.negative_prompt is None else row.negative_prompt
        arguments = self._arguments(GUIDED, None, _batch(row.prompt, negative, images, times))
        recorder, at_the_vae = self._heard(arguments, replaced)
        if not (images and at_the_vae):
            return [(tap.IMAGE, tap.outline(image, max(1, times))) for image in images] + recorder.calls
        if times:
            raise self._refusal("it encodes its condition image together with its latents, for one row at a time")
        if not recorder.calls:  # prompts are encoded after that
            recorder, _ = self._heard(arguments, replaced, beyond=True)
        seen = [(SEEN, tap.outline(image, 1)) for image in recorder.seen]
        return [(tap.IMAGE, tap.pixels(image)) for image in images] + seen + recorder.calls

    def _heard(
        self, arguments: Mapping[str, Any], replaced: Mapping[str, Any], beyond: bool = False
    ) -> tuple[Recorder, bool]:
        """A call up to the first of a network, and whether it ended at the autoencoder before that.

        Args:
            beyond: whether to let the autoencoder encode.
        """
        recorder = Recorder()
        members = {name: recorder.around(name, method) for name, method in tap.encode_methods(self.pipe).items()}
        stopping = nullcontext() if beyond else tap.stopping_at_the_vae(self.pipe, recorder.idle)
        with tap.seeded(self.pipe), tap.stopping_at(self._networks.values()), stopping:
            outcome = self._call({**members, **replaced}, arguments)
        return recorder, isinstance(outcome, tap.AtTheVae)

    def _encode(self, row: Row, images: Sequence[Image.Image]) -> Conditions:
        """In a batch where the pipeline can tell rows apart there; otherwise as one row that stays alone."""
        if not self.alone and len(images) not in self._alone:
            try:
                return self._encode_in_batch(row, images)
            except torch.OutOfMemoryError:
                raise
            except ValueError:
                self._alone.add(len(images))
        calls = self._recorded(row, images, 0)
        with self._in_words():
            return flatten(calls, as_one_row(calls))

    def _encode_in_batch(self, row: Row, images: Sequence[Image.Image]) -> Conditions:
        calls = self._recorded(row, images, 1)
        kind = tuple(name for name, _ in calls), nothing(calls)
        if kind not in self._suffixes:
            self._suffixes[kind] = suffixes(calls, self._record(row, images, 2))
        return flatten(calls, self._suffixes[kind])

    def _recorded(self, row: Row, images: Sequence[Image.Image], times: int) -> list[Call]:
        if images and "image" not in self._parameters:
            raise self._refusal("it takes no condition images; leave `image` out of rows")
        calls = self._record(row, images, times)
        whole = images and calls[0][1].shape[3] > 0  # it is encoded in every call
        if images and not whole and not any("image" in name for name, _ in calls[len(images) :]):
            how = "in no method of its own, or together with its latents"
            raise self._refusal(f"it encodes its condition image {how}, so that the result cannot be kept")
        return calls

    def _one_by_one(self, conditions: Conditions) -> bool:
        return self.alone or one_row_a_call(conditions)

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
        replay = Replay(conditions, self._refusal)
        batch = 0 if one_row_a_call(conditions) else len(conditions[SHAPES])
        members: dict[str, Any] = {name: replay.method(name) for name in tap.encode_methods(self.pipe)}
        members |= tap.checking_all_but_prompts(self.pipe)
        members["scheduler"] = scheduler
        kept = [name for name in conditions if name.startswith(f"{tap.IMAGE}.")]
        images = [tap.picture(replay.method(tap.IMAGE)()) for _ in kept]
        arguments = _batch("", "", images, batch) | {"num_inference_steps": steps}
        if x is not None and self._handed(size):
            arguments["latents"] = x
        elif x is not None and not tap.prepares_latents(self.pipe):
            raise self._refusal("it takes no latents in place of its own")
        elif x is not None:
            members["prepare_latents"] = tap.replacing_latents(self.pipe, x, self._place(size))
        with tap.seeded(self.pipe, seed), tap.steady_vae(self.pipe) as encoded:
            outcome = self._call(members, self._arguments(guidance, size, arguments))
        self._encodes = self._encodes or bool(encoded)
        return outcome

    def _call(self, members: Mapping[str, Any], arguments: Mapping[str, Any]) -> Any:
        with self._in_words():
            return tap.run(self.pipe, members, arguments)

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        """Whatever a pipeline raises becomes a refusal, but for what it can do nothing about.

        Raises:
            Refused: with the pipeline's own words, or with the place in its code that failed.
        """
        try:
            yield
        except (tap.Refused, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise self._refusal(tap.words(error)) from error

    def _refusal(self, why: str) -> tap.Refused:
        return tap.refusal(self.spec.path, type(self.pipe).__name__, why)

    @abstractmethod
    def _handed(self, size: Size) -> bool:
        """Whether the pipeline takes latents in the shape in which its scheduler sees them."""

    @abstractmethod
    def _place(self, size: Size) -> tap.Place | None:
        """Where these are among the latents that the pipeline prepares, if there are others."""


def _batch(prompt: str, negative: str, images: Sequence[Image.Image], times: int) -> dict[str, Any]:
    """A row `times` over, as a pipeline takes batches; 0: the row by itself."""
    if times == 0:
        given: Any = images[0] if len(images) == 1 else [*images]
        arguments: dict[str, Any] = {"prompt": prompt, "negative_prompt": negative}
    else:
        given = images[0] if len(images) == times == 1 else [*images] * times
        arguments = {"prompt": [prompt] * times, "negative_prompt": [negative] * times}
    return arguments | ({"image": given} if images else {})
