"""What is learnt of a size and of a number of steps when first asked for, and refused where it is not right."""

from __future__ import annotations

from typing import Any, TypeVar

import attrs
import numpy as np
import torch
from torch import Tensor

from flowfactory.builtin import PipelineSpec
from flowfactory.contracts.key import Size
from flowfactory.contracts.types import Conditions
from flowfactory.models import stepping, tap
from flowfactory.models.called import GUIDED, CalledPipeline
from flowfactory.models.stepping import Reached

SpecT = TypeVar("SpecT", bound=PipelineSpec)

ROUNDING = 1e-5
"""Share of its length by which an answer may be off, beside a few times what the same question's two answers are."""

NOISE = 1e-2
"""The most by which two answers to one question may be apart, as a share of their length."""


@attrs.frozen
class Region:
    """Where the latents that are trained lie among those that are stepped: at the end of one axis."""

    axis: int
    length: int

    def of(self, whole: Tensor) -> Tensor:
        """The trained latents among all of them."""
        return whole.narrow(self.axis, whole.shape[self.axis] - self.length, self.length)


@attrs.frozen(eq=False)
class Survey:
    """What was learnt about a size when it was first asked for.

    shape: of one latent. handed: the pipeline takes latents in that shape; otherwise they replace what its
    `prepare_latents` returns. region: where they are, if the pipeline steps others beside them. sigmas, timesteps: a
    schedule of 1000 steps, or of as many as the pipeline always takes. noise: how far two answers to one question are
    apart, as a share.
    """

    shape: tuple[int, ...]
    handed: bool
    sigmas: Tensor
    timesteps: Tensor
    region: Region | None = None
    noise: float = 0.0


class SurveyedPipeline(CalledPipeline[SpecT]):
    """An adapter that looks at a size, and at a number of steps, before it computes anything there."""

    def __init__(self, spec: SpecT) -> None:
        super().__init__(spec)
        self._surveys: dict[Size, Survey] = {}
        self._schedules: dict[tuple[int, Size], Tensor] = {}
        self._timesteps: dict[Size, dict[float, float]] = {}

    def _reach(
        self, x: Tensor, level: float, conditions: Conditions, guidance: float, size: Size, seed: int = 0
    ) -> Reached:
        pinned = stepping.scheduler(self.pipe.scheduler, [level, 0.0], [self._timestep(level, size)])
        return self._reached(self._run(conditions, guidance, size, pinned, x, seed=seed), self._survey(size).region)

    def _reached(self, outcome: Any, region: Region | None = None) -> Reached:
        if not isinstance(outcome, Reached):
            raise self._refusal("it never calls its scheduler's step, or not for every frame")
        return outcome if region is None else Reached(region.of(outcome.model_output), region.of(outcome.sample))

    def _handed(self, size: Size) -> bool:
        return self._survey(size).handed

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
            self._reached(self._run(conditions, GUIDED, size, own, None, steps))
        for number, seen in sorted(own.watch.noted.items()):
            theirs = self._reached(seen, survey.region)
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
        prepared: list[tuple[int, ...]] = []
        with tap.noting_latents(self.pipe, prepared):
            own = self._reached(self._run(conditions, GUIDED, size, stepping.scheduler(self.pipe.scheduler), None))
        look = Survey(tuple(own.sample.shape[1:]), True, *self._schedule(1000, size))
        if prepared and (region := _region(prepared[0], own.sample.shape)):
            look = attrs.evolve(look, shape=prepared[0][1:], region=region)
        x = torch.randn(1, *look.shape, generator=torch.Generator().manual_seed(0))
        x = x.to(self._dtype).to(own.sample)  # as core hands it over: some are stepped in float32 all the same
        level = float(look.sigmas[0])
        one = self._first_answer(look, x, level, conditions, size, prepared[0] if prepared else None)
        if not _same(one.sample, x):
            raise self._refusal("it changes the latents it is given")
        again, other = (self._reach(x, level, conditions, 1.0, size, seed).model_output for seed in (0, 1))
        self._see_finite(one.model_output, again, other)
        noise = _gap(again, one.model_output)
        if not noise <= NOISE:
            raise self._refusal(f"asked the same twice, its answers are {noise:.1e} of their length apart")
        if not _gap(other, one.model_output) <= ROUNDING + 4 * noise:
            raise self._refusal("it adds fresh noise in every call")
        if (changed := _with_other_pictures(conditions)) and not _gap(
            self._reach(x, level, changed, 1.0, size).model_output, one.model_output
        ):
            raise self._refusal("it does not look at its condition image where it is handed latents to begin with")
        self._surveys[size] = attrs.evolve(self._surveys[size], noise=noise)
        frames, _, height, width = (1, *self.decode(x, size).shape[1:])[-4:]
        if (made := Size(height, width, frames)) != size:
            raise tap.Refused(f"{self.spec.path} cannot make {_words(size)}; asked for it, it makes {_words(made)}")

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
        prepared: tuple[int, ...] | None,
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
            return self._reach(x, level, conditions, 1.0, size)
        except tap.Refused as error:
            if prepared is None or prepared[1:] == look.shape:
                raise
            what = f"its scheduler steps latents {look.shape}, and what it prepares is {prepared[1:]}"
            raise self._refusal(f"{what}, so that nothing can be handed over in their place") from error


def _gap(one: Tensor, other: Tensor) -> float:
    """The length of the difference as a share of the length of the whole."""
    if one.shape != other.shape:
        return float("inf")
    return float((one.float() - other.float()).norm() / other.float().norm().clamp(min=1e-12))


def _with_other_pictures(conditions: Conditions) -> Conditions:
    """Negatives in the place of condition images that are kept whole; nothing if there are none."""
    whole = {name: t for name, t in conditions.items() if name.startswith(f"{tap.IMAGE}.") and t.shape[-1] == 3}
    return {**conditions, **{name: 255 - pixels for name, pixels in whole.items()}} if whole else {}


def _same(sample: Tensor, x: Tensor) -> bool:
    """Whether they have the same values, in whichever of two precisions is coarser."""
    return sample.shape == x.shape and (torch.equal(sample.to(x.dtype), x) or torch.equal(sample, x.to(sample.dtype)))


def _region(prepared: tuple[int, ...], stepped: tuple[int, ...]) -> Region | None:
    """Where prepared latents are among those that are stepped, if these are longer along one axis alone."""
    longer = [axis for axis, (a, b) in enumerate(zip(prepared, stepped, strict=False)) if a < b]
    if (
        len(prepared) != len(stepped)
        or len(longer) != 1
        or longer[0] == 0
        or any(a > b for a, b in zip(prepared, stepped, strict=True))
    ):
        return None
    return Region(longer[0], prepared[longer[0]])


def _words(size: Size) -> str:
    return f"{size.height}x{size.width}" + (f" with {size.frames} frames" if size.frames > 1 else "")
