"""Any flow-matching pipeline of diffusers as an adapter, driven through the pipeline's own `__call__`: the tap.

The pipeline computes everything itself. The tap only decides what its scheduler answers, and stops the call once it has
what it came for, so whatever a pipeline does before and inside a step is done here too, bit for bit.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, ClassVar, TypeVar

import attrs
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import load_image
from PIL import Image
from torch import Tensor, nn

from flowfactory.builtin import PipelineSpec
from flowfactory.contracts.key import Size
from flowfactory.contracts.types import Conditions, Cut, Row
from flowfactory.models import lengths, reading, stepping, tap, targets
from flowfactory.models.recording import SHAPES, alike, of_one_kind, together
from flowfactory.models.survey import SurveyedPipeline, with_other_pictures

SpecT = TypeVar("SpecT", bound=PipelineSpec)


OTHER = "two dogs and "
"""Before any prompt it makes another, though not where a tokenizer knows no word and cuts all of it at one length."""


class PipelineAdapter(SurveyedPipeline[SpecT]):
    """A diffusers pipeline, found by `path` alone: text-to-image or text-to-video, with or without condition images.

    `guidance` is the pipeline's `guidance_scale`. Pipelines with a `true_cfg_scale` take it for that, except where the
    network is distilled to embed guidance: there `true_cfg_scale` is the spec's `true_cfg`. A row without a negative
    prompt has the pipeline's own default, or else the empty one.

    pipeline: which pipeline the checkpoint must be; none: any that can be trained.
    """

    not_encoded: ClassVar[frozenset[str]] = frozenset({"quantize", "single_file"})
    pipeline: ClassVar[type[Any] | None] = None

    def __init__(self, spec: SpecT) -> None:
        super().__init__(spec)
        self._inverses: dict[Size, targets.Inverse] = {}

    def load(self, device: torch.device, dtype: torch.dtype, encoded: Conditions | None = None) -> None:
        pipe = reading.read(self.spec, dtype, encoded is None, self.pipeline)
        for reason in reading.reasons_against(pipe):
            raise tap.refusal(self.spec.path, type(pipe).__name__, reason)
        self.adopt(self._placed(pipe, device, dtype), device, dtype, encoded)

    def adopt(
        self, pipe: DiffusionPipeline, device: torch.device, dtype: torch.dtype, encoded: Conditions | None = None
    ) -> None:
        """Drive a pipeline that is on `device`, but for networks that `onto` puts there; see `load`."""
        self.pipe, self._dtype = pipe, dtype
        if self.onto is not None:
            for network in tap.networks(pipe).values():
                self.onto(network, device)
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
        """Each row by itself, so that the result does not depend on the other rows."""
        with self._in_words():
            encoded = [self._of_row(row) for row in rows]
            if self._sample is None:
                self._refuse_deaf(rows[0], encoded[0])
        self._sample = self._sample or encoded[0]
        self._pictures = max(len(row.images) for row in rows)
        return self.collate(encoded)

    def _of_row(self, row: Row) -> Conditions:
        return self._encode(row, [load_image(str(path)) for path in row.images])

    def _refuse_deaf(self, row: Row, encoded: Conditions) -> None:
        """Such a model would be trained on prompts that it never reads."""
        for prompt in (OTHER + row.prompt, ""):
            try:
                other = self._of_row(attrs.evolve(row, prompt=prompt))
            except tap.Refused:  # prompts may have to be of some form
                return
            if not alike(encoded, other):
                return
        length = self.spec.max_sequence_length
        why = f"[model] max_sequence_length = {length} leaves nothing of it; set more, or leave the key out"
        if length is None:
            why = "see whether its text encoders and tokenizers belong together; if they do, report this"
        raise self._refusal(f"what it encodes does not depend on the prompt: {why}")

    def collate(self, parts: Sequence[Conditions]) -> Conditions:
        return super().collate(of_one_kind(parts))

    def cut(self, prompts: Sequence[str]) -> Sequence[Cut]:
        """From how many tokens each tokenizer is told to keep, minus those that the pipeline itself adds."""
        images = [Image.new("RGB", (64, 64))] * (self._pictures or int(self.edits))

        @torch.no_grad()
        def encode(prompt: str, replaced: Mapping[str, Any]) -> None:
            self._record(Row(prompt), images, 0 if self.alone or len(images) in self._alone else 1, replaced)

        try:
            return lengths.cut(lengths.tokenizers(self.pipe), encode, prompts)
        except tap.Refused:  # prompts may have to be of some form
            return []

    def encodes_with(self, file: PurePath) -> bool:
        """Everything but the weights of the trained networks, the scheduler, and what lies beside the pipeline."""
        folder, _, name = str(file).rpartition("/")
        if folder.startswith("transformer"):
            return name == "config.json"
        return bool(folder or name == "model_index.json") and folder != "scheduler"

    def drop_encoders(self) -> None:
        pictures = bool(with_other_pictures(self._stand_in()))
        for name in self._others():
            if not name.startswith("vae") and not self._in_every_call(name, pictures):
                setattr(self.pipe, name, None)
        gc.collect()

    def latent_shape(self, size: Size) -> tuple[int, ...]:
        return self._survey(size).shape

    def sigmas(self, steps: int, size: Size) -> Tensor:
        if (steps, size) not in self._schedules:
            self._schedules[steps, size] = self._learn(steps, size)
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

        def asked(rows: list[int]) -> Tensor:
            return self._perhaps_singly("velocity", rows, ask, conditions)

        return together(list(zip(levels, shapes, strict=True)), asked)

    def _perhaps_singly(
        self, what: str, rows: list[int], ask: Callable[[list[int]], Tensor], conditions: Conditions
    ) -> Tensor:
        """Ask for all rows at once, or for one after another if the pipeline takes no more, or fails with more."""
        if len(rows) == 1:
            return ask(rows)
        if self._one_by_one(conditions) or what in self._singly:
            return torch.cat([ask([row]) for row in rows])
        try:
            return ask(rows)
        except tap.Refused:
            answers = torch.cat([ask([row]) for row in rows])
            self._singly.add(what)
            return answers

    def decode(self, x: Tensor, size: Size) -> Tensor:
        """By the pipeline, which is given a schedule without steps, or else one step that changes nothing."""
        return self._decoded(x, size, self._stand_in())

    def _decoded(self, x: Tensor, size: Size, conditions: Conditions) -> Tensor:
        def ask(rows: list[int]) -> Tensor:
            return self._decoded_at_once(x[rows], size, conditions)

        return self._perhaps_singly("decode", [*range(len(x))], ask, conditions)

    def _decoded_at_once(self, x: Tensor, size: Size, conditions: Conditions) -> Tensor:
        conditions = {name: t.expand(len(x), *t.shape[1:]) for name, t in conditions.items()}
        x = self._as_stepped(x, size)
        finished = stepping.scheduler(self.pipe.scheduler, [0.0], [])
        try:
            media: Tensor = self._run(conditions, 1.0, size, finished, x)[0].float()
        except tap.Refused:
            level = float(self._survey(size).sigmas[-2])
            still = stepping.scheduler(
                self.pipe.scheduler, [level, 0.0], [self._timestep(level, size)], wanted=(1,), still=True
            )
            media = self._run(conditions, 1.0, size, still, x)[0].float()
        return targets.over_white(media[:, 0] if media.dim() == 5 and size.frames == media.shape[1] == 1 else media)

    @torch.no_grad()
    def encode_media(self, media: Tensor, size: Size) -> Tensor:
        """By the pipeline's VAE, and by the inverse of what the pipeline does between latents and decoding."""
        if size not in self._inverses:
            shape, device = self.latent_shape(size), next(self.pipe.vae.parameters()).device
            self._inverses[size] = targets.inverse(self.pipe.vae, lambda x: self.decode(x, size), shape, device)
        return targets.encoded(self.pipe.vae, media, self._inverses[size])

    def place(self, device: torch.device) -> None:
        """Parts that every call uses stay: networks that are not trained, an autoencoder that encodes images there."""
        for name, module in self._others().items():
            if not self._in_every_call(name, self._encodes):
                module.to(device)

    def _in_every_call(self, name: str, encodes: bool) -> bool:
        """Whether a part is a network, or no encoder of prompts where images are encoded in every call."""
        return "transformer" in name or (encodes and not re.fullmatch(tap.ENCODER, name))

    @classmethod
    def tiny(cls, folder: Path) -> Path:
        """Stable Diffusion 3."""
        from flowfactory.models.tiny import stable_diffusion_3

        stable_diffusion_3().save_pretrained(folder)
        return folder
