"""What is learnt of a size and of a number of steps when first asked for, and refused where it is not right."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from typing import Any, TypeVar

import attrs
import numpy as np
import torch
from torch import Tensor

from flowfactory.builtin import PipelineSpec
from flowfactory.contracts.key import Size
from flowfactory.contracts.types import Conditions
from flowfactory.models import stepping, tap, targets
from flowfactory.models.called import GUIDED, CalledPipeline
from flowfactory.models.recording import lengths
from flowfactory.models.stepping import Reached

SpecT = TypeVar("SpecT", bound=PipelineSpec)

ROUNDING = 1e-5
"""Share of its length by which an answer may be off, beside a few times what the same question's two answers are."""

NOISE = 1e-2
"""The most by which two answers to one question may be apart, as a share of their length."""

AMONG = "it puts its condition image among the latents that it decodes, and latents are decoded here without an image"


@attrs.frozen(eq=False)
class Survey:
    """What was learnt about a size when it was first asked for.

    shape: of one latent. handed: the pipeline takes latents in that shape; otherwise they replace what its
    `prepare_latents` returns. place: where they are in that, if it returns others beside them. part: where they are
    among those that are stepped, if the pipeline steps others, too. dtype: in which they are stepped. sigmas,
    timesteps: a schedule of 1000 steps, or of as many as the pipeline always takes. noise: how far two answers to one
    question are apart, as a share.
    """

    shape: tuple[int, ...]
    handed: bool
    dtype: torch.dtype
    sigmas: Tensor
    timesteps: Tensor
    place: tap.Place | None = None
    part: tap.Place | None = None
    noise: float = 0.0


class SurveyedPipeline(CalledPipeline[SpecT]):
    """An adapter that looks at a size, and at a number of steps, before it computes anything there."""

    def __init__(self, spec: SpecT) -> None:
        super().__init__(spec)
        self._surveys: dict[Size, Survey] = {}
        self._schedules: dict[tuple[int, Size], Tensor] = {}
        self._timesteps: dict[Size, dict[float, float]] = {}
        self._shapes: dict[tuple[Any, ...], tuple[int, ...]] = {}

    def _reach(
        self, x: Tensor, level: float, conditions: Conditions, guidance: float, size: Size, seed: int = 0
    ) -> Reached:
        self._refuse_other_shape(conditions, size)
        pinned = stepping.scheduler(self.pipe.scheduler, [level, 0.0], [self._timestep(level, size)])
        outcome = self._run(conditions, guidance, size, pinned, self._as_stepped(x, size), seed=seed)
        return self._reached(outcome, pinned).part(self._survey(size).part)

    def _as_stepped(self, x: Tensor, size: Size) -> Tensor:
        """In the precision in which the pipeline steps latents, where that is wider than theirs."""
        return x.to(torch.promote_types(x.dtype, self._survey(size).dtype))

    def _reached(self, outcome: Any, scheduler: Any) -> Reached:
        if isinstance(outcome, Reached):
            return outcome
        if scheduler.watch.frames:
            raise self._refusal("it steps only some of its frames, and takes the others from its condition image")
        raise self._refusal("it never calls its scheduler's step")

    def _handed(self, size: Size) -> bool:
        return self._survey(size).handed

    def _place(self, size: Size) -> tap.Place | None:
        return self._survey(size).place

    def _refuse_other_shape(self, conditions: Conditions, size: Size) -> None:
        """Where what is made has the shape of a condition image, every row's has to lead to the same."""
        if "height" in self._parameters:
            return
        shape, expected = (self._shape_made(own, size) for own in (conditions, self._stand_in()))
        if shape != expected:
            raise self._refusal(
                f"what it makes has the shape of its condition image, and of one of a row it makes latents {shape}, "
                f"where those of {_words(size)} are {expected}; give all rows images of one shape"
            )

    def _shape_made(self, conditions: Conditions, size: Size) -> tuple[int, ...]:
        """Of what its autoencoder would decode, by the sizes of the images that conditions are of."""
        pictures = tuple(name for name in conditions if name.startswith(f"{tap.IMAGE}."))
        key = size, *(tuple(lengths(conditions, name)[0].tolist()) for name in pictures)
        if key not in self._shapes:
            finished = stepping.scheduler(self.pipe.scheduler, [0.0], [])
            own = {name: tensor[:1] for name, tensor in conditions.items()}
            z = targets.handed(self.pipe.vae, lambda _: self._run(own, 1.0, size, finished, None), torch.empty(0))
            self._shapes[key] = tuple(z.shape[1:])
        return self._shapes[key]

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
        """The pipeline's own noise levels and what it tells its network at each but the last, which is 0."""
        scheduler = stepping.scheduler(self.pipe.scheduler)
        with tap.stopping_at(self._networks.values()):
            self._run(self._stand_in(), 1.0, size, scheduler, None, steps)
        sigmas, timesteps = scheduler.sigmas.float().cpu(), scheduler.timesteps.cpu()
        if sigmas[0] > 1:
            raise self._refusal(f"its noise levels begin at {sigmas[0]:g}; those of flow matching are 1 at most")
        if len(sigmas) != len(timesteps) + 1 or sigmas[-1] != 0 or not (sigmas.diff() < 0).all():
            raise self._refusal("its noise levels do not fall from noise to data, one for each step")
        return sigmas, timesteps

    def _learn(self, steps: int, size: Size) -> Tensor:
        """The noise levels `(steps+1,)` of runs of this many steps, if all that is computed at them is right."""
        self._survey(size)
        sigmas, timesteps = self._schedule(steps, size)
        if len(timesteps) != steps:
            what = f"its schedule has {len(timesteps)} steps, however many are asked for"
            raise self._refusal(f"{what}; set [sampling] steps to {len(timesteps)}, not {steps}")
        self._timesteps.setdefault(size, {}).update(zip(sigmas.tolist(), timesteps.tolist(), strict=False))
        self._refuse_counting(steps, size)
        return sigmas

    @torch.no_grad()
    def _refuse_counting(self, steps: int, size: Size) -> None:
        """Hold the first, a middle and the last of its own steps to what is answered for them at any time.

        The networks rest in the others. Latents keep the precision of the first step, as they have here in all.
        """
        survey, conditions, looked = self._survey(size), self._stand_in(), {0, steps // 2, steps - 1}
        own = stepping.scheduler(self.pipe.scheduler, wanted=looked)
        with stepping.resting(tap.networks(self.pipe), own.watch):
            self._reached(self._run(conditions, GUIDED, size, own, None, steps), own)
        if own.watch.rises:
            raise self._refusal("its scheduler steps against what its network predicts, which then is no velocity")
        for number, seen in sorted(own.watch.noted.items()):
            theirs = seen.part(survey.part)
            ours = self._reach(theirs.sample, float(own.sigmas[number]), conditions, GUIDED, size)
            self._see_finite(theirs.model_output, ours.model_output)
            if not (gap := _gap(ours.model_output, theirs.model_output)) <= ROUNDING + 4 * survey.noise:
                where = f"at step {number + 1} of {steps} it is {gap:.1e} of its length off what it is at any time"
                raise self._refusal(
                    "what it computes depends on the number of the step, not only on the noise level: "
                    f"{where}; fewer [sampling] steps may do, or another guidance in the checkpoint's own configuration"
                )

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
        changed = with_other_pictures(conditions)
        own, prepared = self._prepared(conditions, size)
        look = Survey(tuple(own.sample.shape[1:]), True, own.sample.dtype, *self._schedule(1000, size))
        if prepared is not None and (part := _place(prepared, own.sample)):
            look = attrs.evolve(look, shape=prepared.shape[1:], part=part)
        elif prepared is not None:
            look = attrs.evolve(look, place=_place(own.sample, prepared))
        x = torch.randn(1, *look.shape, generator=torch.Generator().manual_seed(0))
        x = x.to(self._dtype).to(own.sample)  # as core hands it over: some are stepped in float32 all the same
        level = float(look.sigmas[0])
        try:
            one = self._first_answer(look, x, level, conditions, size, prepared)
        except tap.Refused as error:
            again = self._prepared(changed, size)[1] if changed else None
            if prepared is not None and again is not None and not _same(prepared, again):
                raise self._refusal(AMONG) from error
            raise
        again, other = (self._reach(x, level, conditions, 1.0, size, seed).model_output for seed in (0, 1))
        self._see_finite(one.model_output, again, other)
        noise = _gap(again, one.model_output)
        if not noise <= NOISE:
            raise self._refusal(f"asked the same twice, its answers are {noise:.1e} of their length apart")
        if not _gap(other, one.model_output) <= ROUNDING + 4 * noise:
            raise self._refusal("it adds fresh noise in every call")
        if changed and not _gap(self._reach(x, level, changed, 1.0, size).model_output, one.model_output):
            raise self._refusal("it does not look at its condition image where it is handed latents to begin with")
        self._surveys[size] = attrs.evolve(self._surveys[size], noise=noise)
        frames, channels, height, width = (1, *self.decode(x, size).shape[1:])[-4:]
        if channels != 3:
            raise self._refusal(f"it makes media of {channels} channels, and those here have red, green and blue")
        if (made := Size(height, width, frames)) != size:
            raise tap.Refused(f"{self.spec.path} cannot make {_words(size)}; asked for it, it makes {_words(made)}")
        if changed:
            with_image, with_another = (self._decoded(x, size, own) for own in (conditions, changed))
            if not _gap(with_another, with_image) <= ROUNDING + 4 * noise:
                raise self._refusal(AMONG)

    def _prepared(self, conditions: Conditions, size: Size) -> tuple[Reached, Tensor | None]:
        """The first step of the pipeline's own run, and what its `prepare_latents` returned, if it has that."""
        noted, own = list[Tensor](), stepping.scheduler(self.pipe.scheduler)
        with tap.noting_latents(self.pipe, noted):
            reached = self._reached(self._run(conditions, GUIDED, size, own, None), own)
        return reached, noted[0] if noted else None

    @abstractmethod
    def _decoded(self, x: Tensor, size: Size, conditions: Conditions) -> Tensor:
        """What the pipeline makes of latents; of these conditions only the images may matter."""

    def _see_finite(self, *answers: Tensor) -> None:
        """Refuse what nothing can be compared with."""
        if not all(bool(answer.isfinite().all()) for answer in answers):
            why = "[run] precision is too narrow for it, a number of [model] is too large, or its weights are damaged"
            raise self._refusal(f"what it computes is not finite (NaN or infinite): {why}")

    def _first_answer(
        self,
        look: Survey,
        x: Tensor,
        level: float,
        conditions: Conditions,
        size: Size,
        prepared: Tensor | None,
    ) -> Reached:
        """At `x`, handed over, or in the place of latents that the pipeline prepares and perhaps packs."""
        self._surveys[size] = look
        try:
            one = self._reach(x, level, conditions, 1.0, size)
            if _same(one.sample, x):
                return one
        except tap.Refused:
            pass
        self._surveys[size] = attrs.evolve(look, handed=False)
        try:
            one = self._reach(x, level, conditions, 1.0, size)
        except tap.Refused as error:
            if prepared is None or look.place or prepared.shape[1:] == look.shape:
                raise
            which = f"latents {look.shape} out of the {tuple(prepared.shape[1:])} that it prepares"
            raise self._refusal(f"it steps {which}, and which of these they are cannot be told") from error
        if not _same(one.sample, x):
            raise self._refusal("it changes the latents it is given")
        return one


def _gap(one: Tensor, other: Tensor) -> float:
    """The length of the difference as a share of the length of the whole."""
    if one.shape != other.shape:
        return float("inf")
    return float((one.float() - other.float()).norm() / other.float().norm().clamp(min=1e-12))


def with_other_pictures(conditions: Conditions) -> Conditions:
    """Negatives in the place of condition images that are kept whole; nothing if there are none."""
    whole = {name: t for name, t in conditions.items() if name.startswith(f"{tap.IMAGE}.") and t.shape[-1] == 3}
    return {**conditions, **{name: 255 - pixels for name, pixels in whole.items()}} if whole else {}


def _same(sample: Tensor, x: Tensor) -> bool:
    """Whether they have the same values, in whichever of two precisions is coarser."""
    return sample.shape == x.shape and (torch.equal(sample.to(x.dtype), x) or torch.equal(sample, x.to(sample.dtype)))


def _place(part: Tensor, whole: Tensor) -> tap.Place | None:
    """Where the values of some latents are at the ends of the axes of others, of which there are more."""
    sizes = [*zip(part.shape[1:], whole.shape[1:], strict=False)]
    if part.dim() != whole.dim() or part.shape == whole.shape or any(few > many for few, many in sizes):
        return None
    ends = [[slice(0, few)] + [slice(many - few, many)] * (few < many) for few, many in sizes]
    places = ((slice(None), *place) for place in itertools.product(*ends))
    return next((place for place in places if _same(whole[place], part)), None)


def _words(size: Size) -> str:
    return f"{size.height}x{size.width}" + (f" with {size.frames} frames" if size.frames > 1 else "")
