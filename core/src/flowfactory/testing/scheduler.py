"""What every scheduler owes: the densities it says it has, the ODE it solves, and no memory of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.distributions import Normal

from flowfactory.contracts.scheduler import Moments, Scheduler, StochasticScheduler, euler, to_storage
from flowfactory.contracts.specs import StochasticSpec
from flowfactory.testing.mean import gaussian_velocity, schedule
from flowfactory.testing.subject import Check, NotOwed, Subject, expect

SHAPE = (3, 4, 2)
"""A batch of three latents."""
STEPS = 10
MEAN, SPREAD = 0.5, 0.4
"""Of the data whose exact velocity schedulers are tried on."""
SMALL = 1e-4
"""An `eta` next to 0."""


class SchedulerSubject(Subject):
    """A scheduler."""

    def checks(self) -> Sequence[Check]:
        spec: Any = self.contribution.provides.spec
        return CHECKS if spec.density == "none" else (*CHECKS, *STOCHASTIC_CHECKS)

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


def spec_and_target_agree(subject: SchedulerSubject) -> None:
    """Its spec says it has a density exactly where its target has one."""
    stochastic = isinstance(subject.make(), StochasticScheduler)
    expect(
        stochastic == isinstance(subject.spec, StochasticSpec) == (subject.spec.density != "none"),
        f"the target is {'' if stochastic else 'not '}stochastic, and its spec's density is {subject.spec.density!r}",
    )


def trajectories_are_sound(subject: SchedulerSubject) -> None:
    """Every step, from noise to data, gives finite float32 latents of the same shape and changes none it is given."""
    scheduler, sigmas = subject.make(), schedule(STEPS)
    x, state = noise(0, *SHAPE), scheduler.start()
    for i in range(STEPS):
        v, kept = noise(i + 1, *SHAPE), x.clone()
        moved, state = scheduler.advance(state, v, x, sigmas[i].expand(3), sigmas[i + 1].expand(3))
        expect(moved.dtype == torch.float32, f"`advance` returns {moved.dtype}, not float32")
        expect(moved.shape == x.shape, f"`advance` returns {tuple(moved.shape)} for {tuple(x.shape)}")
        expect(moved.isfinite().all(), f"`advance` returns infinities at step {i}, from {sigmas[i]} to {sigmas[i + 1]}")
        expect(torch.equal(x, kept), "`advance` changes the latents it is given")
        x = moved


def batch_independence(subject: SchedulerSubject) -> None:
    """A trajectory does not depend on what else is in the batch."""
    scheduler, start = subject.make(), noise(0, *SHAPE)
    together = travel(scheduler, start, schedule(STEPS))
    alone = torch.cat([travel(scheduler, start[i : i + 1], schedule(STEPS)) for i in range(3)])
    _near(together, alone, 1e-5, "a trajectory alone differs from the same one in a batch")


def no_hidden_state(subject: SchedulerSubject) -> None:
    """State is passed along, never kept: two trajectories step by step in turn are what they are one by one."""
    scheduler, sigmas = subject.make(), schedule(STEPS)
    starts = [noise(seed, *SHAPE) for seed in (0, 1)]
    expected = [travel(subject.make(), start, sigmas) for start in starts]
    states, xs = [scheduler.start(), scheduler.start()], list(starts)
    for i in range(STEPS):
        for k in (0, 1):
            xs[k], states[k] = _step(scheduler, states[k], xs[k], sigmas[i], sigmas[i + 1])
    for k in (0, 1):
        expect(torch.equal(xs[k], expected[k]), "a trajectory changes when another is sampled meanwhile")


def solves_the_ode(subject: SchedulerSubject) -> None:
    """Its deterministic steps converge to the probability-flow ODE, as their number grows."""
    start = noise(0, 4, 16)
    exact = MEAN + SPREAD * start
    few, many = (float((travel(subject.make(), start, schedule(n)) - exact).abs().max()) for n in (20, 160))
    sound = many < max(0.3 * few, 1e-4) and many < 0.05
    expect(sound, f"it misses the exact solution by {few:.1e} with 20 steps and by {many:.1e} with 160")


def straight_lines_are_exact(subject: SchedulerSubject) -> None:
    """Where all data are one point, its deterministic steps go there."""
    end = travel(subject.make(), noise(0, *SHAPE), schedule(STEPS), spread=0.0)
    gap = float((end - MEAN).abs().max())
    expect(gap < 1e-4, f"trajectories end {gap:.1e} beside the one point there is")


def euler_outside_the_window(subject: SchedulerSubject) -> None:
    """Where it is not stochastic, a stochastic scheduler takes Euler steps."""
    scheduler = subject.stochastic
    x, v, sigma, sigma_next = noise(0, *SHAPE), noise(1, *SHAPE), torch.full((3,), 0.6), torch.full((3,), 0.4)
    moved, _ = scheduler.advance(scheduler.start(), v, x, sigma, sigma_next)
    expect(torch.equal(moved, euler(v, x, sigma, sigma_next)), "`advance` is not the Euler step")


def moments_are_sound(subject: SchedulerSubject) -> None:
    """Means and standard deviations are finite, of the right shape, positive and float32, before the last step."""
    scheduler, sigmas = subject.stochastic, schedule(STEPS)
    for i in range(STEPS - 1):
        at = _at(scheduler, sigmas, i)
        expect(at.mean.shape == SHAPE and at.mean.isfinite().all(), f"the mean of step {i} is {at.mean}")
        expect(at.std.shape == (3, 1, 1), f"the standard deviations of step {i} have the shape {tuple(at.std.shape)}")
        expect((at.std > 0).all() and at.std.isfinite().all(), f"the standard deviations of step {i} are {at.std}")
        expect(at.mean.dtype == at.std.dtype == torch.float32, f"they are {at.mean.dtype} and {at.std.dtype}")


def density_is_what_it_claims(subject: SchedulerSubject) -> None:
    """Its log-probability is that of `torch.distributions.Normal`, averaged over elements, or the squared error."""
    scheduler, sigmas = subject.stochastic, schedule(STEPS)
    for i in range(STEPS - 1):
        x, v, x_next = (noise(seed, *SHAPE) for seed in (10 + i, 30 + i, 50 + i))
        here = (sigmas[i].expand(3), sigmas[i + 1].expand(3), float(sigmas[1]))
        moments = scheduler.moments_of(v, x, *here)
        found = scheduler.logprob(v, x, x_next, *here)
        if subject.spec.density == "gaussian":
            density: Any = Normal(moments.mean.double(), moments.std.double())
            expected = density.log_prob(x_next.double()).mean((1, 2))
        else:
            expected = -((x_next - moments.mean).double() ** 2).mean((1, 2))
        _near(expected, found.double(), 1e-4, f"the {subject.spec.density} log-probability of step {i} is wrong")


def steps_are_drawn_from_it(subject: SchedulerSubject) -> None:
    """A step is its mean plus its standard deviation times the noise, rounded to how it is stored."""
    scheduler, sigmas = subject.stochastic, schedule(STEPS)
    x, v, z = noise(0, *SHAPE), noise(1, *SHAPE), noise(2, *SHAPE)
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
    x, v, x_next = (noise(seed, *SHAPE) for seed in (0, 1, 2))
    sigma, sigma_next = torch.tensor([0.9, 0.6, 0.3]), torch.tensor([0.8, 0.4, 0.2])
    together = scheduler.logprob(v, x, x_next, sigma, sigma_next, 0.95)
    for i in range(3):
        own = slice(i, i + 1)
        alone = scheduler.logprob(v[own], x[own], x_next[own], sigma[own], sigma_next[own], 0.95)
        _near(together[own], alone, 1e-5, f"the log-probability of sample {i} depends on its batch")


def gradient_reaches_the_velocity(subject: SchedulerSubject) -> None:
    """A step's log-probability has a gradient with respect to the velocity, which is how it changes."""
    scheduler, sigmas = subject.stochastic, schedule(STEPS)
    x, v, x_next = noise(0, *SHAPE), noise(1, *SHAPE).requires_grad_(), noise(2, *SHAPE)
    here = (sigmas[3].expand(3), sigmas[4].expand(3), float(sigmas[1]))
    before = scheduler.logprob(v, x, x_next, *here)
    expect(before.requires_grad, "the log-probability has no gradient with respect to the velocity")
    (slope,) = torch.autograd.grad(before.sum(), v)
    expect((slope.flatten(1).norm(dim=1) > 0).all(), "the gradient with respect to the velocity is 0")
    with torch.no_grad():
        more, less = (scheduler.logprob(v + step * slope, x, x_next, *here) for step in (1e-2, -1e-2))
    found, expected = (more - less) / 2e-2, slope.square().sum((1, 2))
    expect((found > 0).all(), "following the gradient makes the step less likely")
    _near(expected / found, torch.ones(3), 0.02, "its gradient is not how its log-probability changes")


def eta_to_zero_is_euler(subject: SchedulerSubject) -> None:
    """Without noise, its stochastic step is the Euler step."""
    scheduler = subject.stochastic
    if "eta" not in {field.name for field in attrs.fields(type(subject.spec))}:
        raise NotOwed("its spec has no `eta`")
    quiet, sigmas = subject.target(attrs.evolve(subject.spec, eta=SMALL)), schedule(STEPS)
    for i in range(STEPS - 1):
        at, loud = _at(quiet, sigmas, i), _at(scheduler, sigmas, i)
        x, v = noise(0, *SHAPE), noise(1, *SHAPE)
        expected = euler(v, x, sigmas[i].expand(3), sigmas[i + 1].expand(3))
        _near(expected, at.mean, 1e-4, f"at eta {SMALL:g}, step {i} is not Euler's")
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
        v = gaussian_velocity(x, sigma, MEAN, SPREAD)
        x = scheduler.step(v, x, sigma, sigma_next, float(sigmas[1]), z, torch.float32).x
    mean, spread = float(x.mean()), float(x.std())
    expected = f"{MEAN} and {SPREAD}"
    expect(abs(mean - MEAN) < 0.03, f"samples have mean {mean:.3f} and spread {spread:.3f}, not {expected}")
    expect(abs(spread / SPREAD - 1) < 0.05, f"samples have mean {mean:.3f} and spread {spread:.3f}, not {expected}")


CHECKS = (
    spec_and_target_agree,
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


def noise(seed: int, *shape: int) -> Tensor:
    """Standard normal numbers, the same for the same seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def travel(scheduler: Scheduler[Any], x: Tensor, sigmas: Tensor, spread: float = SPREAD) -> Tensor:
    """Deterministic steps through the exact velocity field, from noise to data."""
    state = scheduler.start()
    for i in range(len(sigmas) - 1):
        x, state = _step(scheduler, state, x, sigmas[i], sigmas[i + 1], spread)
    return x


def _step(
    scheduler: Scheduler[Any], state: Any, x: Tensor, sigma: Tensor, sigma_next: Tensor, spread: float = SPREAD
) -> tuple[Tensor, Any]:
    here, there = sigma.expand(len(x)), sigma_next.expand(len(x))
    return scheduler.advance(state, gaussian_velocity(x, here, MEAN, spread), x, here, there)


def _at(scheduler: StochasticScheduler[Any], sigmas: Tensor, step: int) -> Moments:
    x, v, sigma = noise(0, *SHAPE), noise(1, *SHAPE), sigmas[step].expand(3)
    return scheduler.moments_of(v, x, sigma, sigmas[step + 1].expand(3), float(sigmas[1]))


def _near(expected: Tensor, found: Tensor, tolerance: float, what: str) -> None:
    gap = float((expected - found).abs().max())
    expect(gap <= tolerance * max(1.0, float(expected.abs().max())), f"{what}, by {gap:.1e}")
