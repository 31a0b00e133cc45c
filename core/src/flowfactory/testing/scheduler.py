"""What every scheduler owes: the densities it says it has, the noise it adds, and steps that are in `mean`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.distributions import Normal

from flowfactory.contracts.scheduler import Moments, NoisyScheduler, StochasticScheduler, euler, to_storage
from flowfactory.contracts.specs import StochasticSpec
from flowfactory.testing.mean import (
    LATENTS,
    MIDDLE,
    STEPS,
    WIDTH,
    batch_independence,
    calls_are_as_said,
    gaussian_velocity,
    near,
    no_hidden_state,
    noise,
    schedule,
    solves_the_ode,
    step_of,
    straight_lines_are_exact,
    trajectories_are_sound,
)
from flowfactory.testing.subject import Check, NotOwed, Subject, expect

SMALL = 1e-4
"""An `eta` next to 0."""


class SchedulerSubject(Subject):
    """A scheduler."""

    def checks(self) -> Sequence[Check]:
        spec: Any = self.contribution.provides.spec
        if spec.density == "none":
            return (*CHECKS, *NOISY_CHECKS) if issubclass(spec, StochasticSpec) else CHECKS
        return (*CHECKS, *STOCHASTIC_CHECKS)

    @property
    def stochastic(self) -> StochasticScheduler[Any]:
        """A new one with log-probabilities.

        Raises:
            NotOwed: it is deterministic.
        """
        made = self.make()
        if not isinstance(made, StochasticScheduler):
            raise NotOwed("it is deterministic")
        return made

    @property
    def noisy(self) -> NoisyScheduler[Any]:
        """A new one with noise of no known density.

        Raises:
            NotOwed: it has none.
        """
        made = self.make()
        if not isinstance(made, NoisyScheduler):
            raise NotOwed("it has no noise without a density")
        return made


def spec_and_target_agree(subject: SchedulerSubject) -> None:
    """Its spec says it has a density exactly where its target has one, and a window where its target has noise."""
    made, spec = subject.make(), subject.spec
    stochastic, noisy = isinstance(made, StochasticScheduler), isinstance(made, NoisyScheduler)
    expect(
        stochastic == (spec.density != "none") and (stochastic or noisy) == isinstance(spec, StochasticSpec),
        f"the target is {'' if stochastic else 'not '}stochastic, and its spec's density is {spec.density!r}",
    )


def euler_outside_the_window(subject: SchedulerSubject) -> None:
    """Where it is not stochastic, a stochastic scheduler takes Euler steps."""
    scheduler = subject.stochastic
    x, v, sigma, sigma_next = noise(0, *LATENTS), noise(1, *LATENTS), torch.full((3,), 0.6), torch.full((3,), 0.4)
    moved, _ = scheduler.advance(scheduler.start(), v, x, sigma, sigma_next)
    expect(torch.equal(moved, euler(v, x, sigma, sigma_next)), "`advance` is not the Euler step")


def moments_are_sound(subject: SchedulerSubject) -> None:
    """Means and standard deviations are finite, of the right shape, positive and float32, before the last step."""
    scheduler, sigmas = subject.stochastic, schedule(STEPS)
    for i in range(STEPS - 1):
        at = _at(scheduler, sigmas, i)
        expect(at.mean.shape == LATENTS and at.mean.isfinite().all(), f"the mean of step {i} is {at.mean}")
        expect(at.std.shape == (3, 1, 1), f"the standard deviations of step {i} have the shape {tuple(at.std.shape)}")
        expect((at.std > 0).all() and at.std.isfinite().all(), f"the standard deviations of step {i} are {at.std}")
        expect(at.mean.dtype == at.std.dtype == torch.float32, f"they are {at.mean.dtype} and {at.std.dtype}")


def density_is_what_it_claims(subject: SchedulerSubject) -> None:
    """Its log-probability is that of `torch.distributions.Normal`, averaged over elements, or the squared error."""
    scheduler, sigmas = subject.stochastic, schedule(STEPS)
    for i in range(STEPS - 1):
        x, v, x_next = (noise(seed, *LATENTS) for seed in (10 + i, 30 + i, 50 + i))
        here = (sigmas[i].expand(3), sigmas[i + 1].expand(3), float(sigmas[1]))
        moments = scheduler.moments_of(v, x, *here)
        found = scheduler.logprob(v, x, x_next, *here)
        if subject.spec.density == "gaussian":
            density: Any = Normal(moments.mean.double(), moments.std.double())
            expected = density.log_prob(x_next.double()).mean((1, 2))
        else:
            expected = -((x_next - moments.mean).double() ** 2).mean((1, 2))
        near(expected, found.double(), 1e-4, f"the {subject.spec.density} log-probability of step {i} is wrong")


def steps_are_drawn_from_it(subject: SchedulerSubject) -> None:
    """A step is its mean plus its standard deviation times the noise, rounded to how it is stored."""
    scheduler, sigmas = subject.stochastic, schedule(STEPS)
    x, v, z = noise(0, *LATENTS), noise(1, *LATENTS), noise(2, *LATENTS)
    here = (sigmas[3].expand(3), sigmas[4].expand(3), float(sigmas[1]))
    moments = scheduler.moments_of(v, x, *here)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        step = scheduler.step(v, x, *here, z, dtype)
        expect(torch.equal(step.x, to_storage(moments.mean + moments.std * z, dtype)), f"a {dtype} step is another")
        again = scheduler.logprob(v, x, step.x, *here)
        expect(torch.equal(step.logprob, again), f"a stored {dtype} step has {again}, and had {step.logprob}")
        expect(step.logprob.shape == (3,), f"log-probabilities have the shape {tuple(step.logprob.shape)}")


def samples_do_not_mix(subject: SchedulerSubject) -> None:
    """The log-probability of a step depends on that sample alone, and each has its own noise level."""
    scheduler = subject.stochastic
    x, v, x_next = (noise(seed, *LATENTS) for seed in (0, 1, 2))
    sigma, sigma_next = torch.tensor([0.9, 0.6, 0.3]), torch.tensor([0.8, 0.4, 0.2])
    together = scheduler.logprob(v, x, x_next, sigma, sigma_next, 0.95)
    for i in range(3):
        own = slice(i, i + 1)
        alone = scheduler.logprob(v[own], x[own], x_next[own], sigma[own], sigma_next[own], 0.95)
        near(together[own], alone, 1e-5, f"the log-probability of sample {i} depends on its batch")


def gradient_reaches_the_velocity(subject: SchedulerSubject) -> None:
    """A step's log-probability has a gradient with respect to the velocity, which is how it changes."""
    scheduler, sigmas = subject.stochastic, schedule(STEPS)
    x, v, x_next = noise(0, *LATENTS), noise(1, *LATENTS).requires_grad_(), noise(2, *LATENTS)
    here = (sigmas[3].expand(3), sigmas[4].expand(3), float(sigmas[1]))
    before = scheduler.logprob(v, x, x_next, *here)
    expect(before.requires_grad, "the log-probability has no gradient with respect to the velocity")
    (slope,) = torch.autograd.grad(before.sum(), v)
    expect((slope.flatten(1).norm(dim=1) > 0).all(), "the gradient with respect to the velocity is 0")
    with torch.no_grad():
        more, less = (scheduler.logprob(v + step * slope, x, x_next, *here) for step in (1e-2, -1e-2))
    found, expected = (more - less) / 2e-2, slope.square().sum((1, 2))
    expect((found > 0).all(), "following the gradient makes the step less likely")
    near(expected / found, torch.ones(3), 0.02, "its gradient is not how its log-probability changes")


def eta_to_zero_is_euler(subject: SchedulerSubject) -> None:
    """Without noise, its stochastic step is the Euler step."""
    scheduler = subject.stochastic
    if "eta" not in {field.name for field in attrs.fields(type(subject.spec))}:
        raise NotOwed("its spec has no `eta`")
    quiet, sigmas = subject.target(attrs.evolve(subject.spec, eta=SMALL)), schedule(STEPS)
    for i in range(STEPS - 1):
        at, loud = _at(quiet, sigmas, i), _at(scheduler, sigmas, i)
        x, v = noise(0, *LATENTS), noise(1, *LATENTS)
        expected = euler(v, x, sigmas[i].expand(3), sigmas[i + 1].expand(3))
        near(expected, at.mean, 1e-4, f"at eta {SMALL:g}, step {i} is not Euler's")
        expect(
            (at.std < 1e-2 * loud.std).all(), f"at eta {SMALL:g}, step {i} still has noise of {float(at.std.max()):.1e}"
        )


def keeps_the_marginals(subject: SchedulerSubject) -> None:
    """Where it claims to keep the model's marginals: many small stochastic steps lead to the data's distribution."""
    scheduler = subject.stochastic
    if not scheduler.keeps_marginals:
        raise NotOwed("it does not claim to (`keeps_marginals`)")
    count, steps = 20_000, 400
    sigmas, draws = schedule(steps, shift=1.0), torch.Generator().manual_seed(0)
    x = torch.randn(count, 1, generator=draws)
    for i in range(steps - 1):
        sigma, sigma_next = sigmas[i].expand(count), sigmas[i + 1].expand(count)
        z = torch.randn(count, 1, generator=draws)
        v = gaussian_velocity(x, sigma, MIDDLE, WIDTH)
        x = scheduler.step(v, x, sigma, sigma_next, float(sigmas[1]), z, torch.float32).x
    _expect_marginals(x)


def noise_keeps_the_marginals(subject: SchedulerSubject) -> None:
    """Where it claims to keep the model's marginals: with noise in every step, samples have the data's distribution."""
    scheduler = subject.noisy
    if not scheduler.keeps_marginals:
        raise NotOwed("it does not claim to (`keeps_marginals`)")
    steps, draws = 100, torch.Generator().manual_seed(0)
    start, *noises = (torch.randn(20_000, 1, generator=draws) for _ in range(steps + 1))
    _expect_marginals(_diffused(scheduler, start, schedule(steps, shift=1.0), noises))


def noise_is_each_samples_own(subject: SchedulerSubject) -> None:
    """Stochastic steps are finite and float32, move with their noise, and depend on nothing else in the batch."""
    scheduler, sigmas, start = subject.noisy, schedule(STEPS), noise(0, *LATENTS)
    noises = [noise(i + 1, *LATENTS) for i in range(STEPS)]
    together = _diffused(scheduler, start, sigmas, noises)
    expect(together.dtype == torch.float32 and together.isfinite().all(), f"it leads to {together}")
    alone = [_diffused(scheduler, start[i : i + 1], sigmas, [z[i : i + 1] for z in noises]) for i in range(3)]
    near(together, torch.cat(alone), 1e-5, "a stochastic trajectory alone differs from the same one in a batch")
    others = _diffused(scheduler, start, sigmas, [-z for z in noises])
    expect(not torch.allclose(together, others), "its stochastic steps do not depend on their noise")


def _expect_marginals(x: Tensor) -> None:
    mean, spread = float(x.mean()), float(x.std())
    expected = f"{MIDDLE} and {WIDTH}"
    expect(abs(mean - MIDDLE) < 0.03, f"samples have mean {mean:.3f} and spread {spread:.3f}, not {expected}")
    expect(abs(spread / WIDTH - 1) < 0.05, f"samples have mean {mean:.3f} and spread {spread:.3f}, not {expected}")


CHECKS = (
    spec_and_target_agree,
    calls_are_as_said,
    trajectories_are_sound,
    batch_independence,
    no_hidden_state,
    solves_the_ode,
    straight_lines_are_exact,
)
STOCHASTIC_CHECKS = (
    euler_outside_the_window,
    moments_are_sound,
    density_is_what_it_claims,
    steps_are_drawn_from_it,
    samples_do_not_mix,
    gradient_reaches_the_velocity,
    eta_to_zero_is_euler,
    keeps_the_marginals,
)
NOISY_CHECKS = (noise_is_each_samples_own, noise_keeps_the_marginals)


def _diffused(scheduler: NoisyScheduler[Any], x: Tensor, sigmas: Tensor, noises: Sequence[Tensor]) -> Tensor:
    """A trajectory from `x`, stochastic in all steps but the last; each step's noise is like `x`."""
    state = scheduler.start()
    for i in range(len(sigmas) - 2):
        here, there = sigmas[i].expand(len(x)), sigmas[i + 1].expand(len(x))
        v = scheduler.look(lambda x, s: gaussian_velocity(x, s, MIDDLE, WIDTH), x, here, there)
        x, state = scheduler.diffuse(state, v, x, here, there, noises[i])
    x, _ = step_of(scheduler, state, x, sigmas[-2], sigmas[-1])
    return x


def _at(scheduler: StochasticScheduler[Any], sigmas: Tensor, step: int) -> Moments:
    x, v, sigma = noise(0, *LATENTS), noise(1, *LATENTS), sigmas[step].expand(3)
    return scheduler.moments_of(v, x, sigma, sigmas[step + 1].expand(3), float(sigmas[1]))
