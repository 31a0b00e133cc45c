"""What is learnt about a size when it is first asked for, and the pipeline's own noise levels there."""

from __future__ import annotations

from typing import Any, TypeVar

import attrs
import numpy as np
import torch
from torch import Tensor

from flowfactory.builtin import PipelineSpec
from flowfactory.contracts.key import Size
from flowfactory.contracts.types import Conditions
from flowfactory.models import tap
from flowfactory.models.called import GUIDED, CalledPipeline

SpecT = TypeVar("SpecT", bound=PipelineSpec)


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


class SurveyedPipeline(CalledPipeline[SpecT]):
    """An adapter that looks at a size before it computes anything there."""

    def __init__(self, spec: SpecT) -> None:
        super().__init__(spec)
        self._surveys: dict[Size, Survey] = {}
        self._schedules: dict[tuple[int, Size], Tensor] = {}
        self._timesteps: dict[Size, dict[float, float]] = {}

    def _reach(
        self, x: Tensor, level: float, conditions: Conditions, guidance: float, size: Size, seed: int = 0
    ) -> tap.Reached:
        pinned = tap.scheduler(self.pipe.scheduler, [level, 0.0], [self._timestep(level, size)])
        return self._reached(self._run(conditions, guidance, size, pinned, x, seed=seed))

    def _reached(self, outcome: Any) -> tap.Reached:
        if not isinstance(outcome, tap.Reached):
            raise self._refusal("it never calls its scheduler's step")
        return outcome

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
