"""What trainers owe that learn from groups, steps, data, teachers, roles or rewards' gradients; see `problem`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import product

import torch
from torch import Tensor

from flowfactory.contracts.specs import Needs
from flowfactory.contracts.types import Conditions, Lineage, Row
from flowfactory.rewards.advantages import Scores
from flowfactory.testing.mean import MeanPolicy
from flowfactory.testing.problem import SAMPLES, STEPS, Problem
from flowfactory.testing.subject import NotOwed, Subject, expect


def groups_prefer_their_best(subject: Subject) -> None:
    """A group's loss moves the weights to where its best sample is likelier, compared with its worst."""
    problem = Problem(subject.make())
    if problem.needs.batch != "groups":
        raise NotOwed("its loss is one of samples")
    made, A = problem.sample(SAMPLES), problem.judged(SAMPLES)
    if not A.any():
        raise NotOwed("it compares no samples")
    for group in sorted(set(made.groups.tolist())):
        own = (made.groups == group).nonzero().flatten()
        batch = problem.batch(made, A, own)
        move = -problem.gradient(problem.total(problem.losses(batch, problem.terms(batch, own.tolist()))))
        best, worst = (problem.likelihood(made, int(own[i])) for i in (A[own].argmax(), A[own].argmin()))
        gain = float(move @ problem.gradient(best - worst))
        expect(gain > 0, f"it prefers the worst of samples {own.tolist()} to the best: a gain of {gain:.2e}")


def targets_get_likelier(subject: Subject) -> None:
    """Its loss on what rows show moves the weights to where that is likelier."""
    problem = Problem(subject.make())
    if problem.needs.source != "media":
        raise NotOwed("it learns from other samples")
    made = problem.sample(SAMPLES)
    batch = problem.batch(made, problem.judged(SAMPLES))
    move = -problem.gradient(problem.total(problem.losses(batch, problem.terms(batch, SAMPLES))))
    likelihood = torch.stack([problem.likelihood(made, sample) for sample in SAMPLES]).sum()
    gain = float(move @ problem.gradient(likelihood))
    expect(gain > 0, f"it makes what the data show less likely: a gain of {gain:.2e}")


def groups_share_their_draws(subject: Subject) -> None:
    """Samples of a group are compared at the same noise and level: equal ones would be asked about at one point."""
    problem = Problem(subject.make())
    if problem.needs.draws != "group":
        raise NotOwed("each of its samples has draws of its own")
    made = problem.sample(SAMPLES)
    for latents in made.rollout.latents.values():
        latents.zero_()
    batch = problem.batch(made, problem.judged(SAMPLES))
    for term in problem.terms(batch, SAMPLES):
        seen = Watched(problem.policy)
        problem.trainer.loss(seen, batch, term)
        counts = Counter(seen.points)
        alone = sum(count == 1 for count in counts.values())
        expect(not alone, f"{alone} of its samples have a noise or a level of their own")


def gradients_go_as_far_as_said(subject: Subject) -> None:
    """What follows rewards' gradients asks, with a gradient, for as many velocities of a sample as its needs say."""
    problem = Problem(subject.make())
    said = min(problem.needs.gradient, STEPS)
    if not said:
        raise NotOwed("it follows no gradient of rewards")
    batch = problem.batch(problem.sample(SAMPLES), problem.judged(SAMPLES))
    terms, before = problem.terms(batch, SAMPLES), problem.policy.trained
    problem.losses(batch, terms)
    found = (problem.policy.trained - before) / len(batch.advantages)
    expect(found == said, f"its needs say {said} of {STEPS} steps, and it asks for {found:g}: `plan` would be wrong")


def groups_of_one_are_no_fault(subject: Subject) -> None:
    """A group of which one sample is left has a finite loss, and one that can be differentiated."""
    problem = Problem(subject.make())
    if problem.needs.batch != "groups" or problem.needs.source == "pairs":
        raise NotOwed("none of its losses can be of one sample of a group")
    batch = problem.batch(problem.sample(SAMPLES), problem.judged(SAMPLES), slice(0, 1))
    for loss in problem.losses(batch, problem.terms(batch, [0])):
        total = torch.stack(list(loss.parts.values())).sum()
        expect(total.isfinite() and total.requires_grad, f"its loss is {total}")
        expect(problem.gradient(total).isfinite().all(), f"its gradient is {problem.gradient(total).tolist()}")


def teachers_take_no_gradient(subject: Subject) -> None:
    """What weights that never move say of a sample has no gradient, and is the same after updates."""
    problem = Problem(subject.make())
    before = {name: problem.probed(name) for name in problem.needs.loaded}
    if not before:
        raise NotOwed("it loads no weights")
    made, seen = problem.sample(SAMPLES), Watched(problem.policy)
    batch = problem.batch(made, problem.judged(SAMPLES))
    for term in problem.terms(batch, SAMPLES):
        problem.trainer.loss(seen, batch, term)
    bare = sorted(seen.with_gradient & before.keys())
    expect(not bare, f"it asks {bare} with gradients, which reach what is trained; ask in `terms`")
    problem.learn(epochs=3, groups=4, group=8, lr=0.05)
    moved = [name for name, velocity in before.items() if not torch.equal(velocity, problem.probed(name))]
    expect(not moved, f"{moved} never move, and say something else after updates")


def teachers_are_approached(subject: Subject) -> None:
    """It learns from the weights it loads: its velocities come nearer to theirs."""
    problem = Problem(subject.make())
    if len(problem.needs.loaded) != 1 or problem.needs.scores or problem.needs.source != "rollouts":
        raise NotOwed("it has not one teacher and nothing else to learn from")
    (teacher,) = problem.needs.loaded
    before = (problem.probed("current") - problem.probed(teacher)).square().mean()
    problem.learn(epochs=60, groups=4, group=8, lr=0.05)
    after = (problem.probed("current") - problem.probed(teacher)).square().mean()
    said = f"after 60 updates, squared distances from {teacher!r} are {float(after):.3f} and were {float(before):.3f}"
    expect(after < 0.5 * before, said)


def scores_of(needs: Needs, values: Tensor, groups: Tensor) -> Scores:
    """Scores of samples, or of branches of one step; those of looks rise evenly on the way, from 0."""
    looks = {"one": values[:, None] * torch.linspace(0, 1, STEPS)} if needs.looks != "none" else {}
    alone, none = torch.full_like(groups, -1), torch.zeros(len(groups))
    lineage = None if needs.branches is None else Lineage(torch.zeros_like(groups), alone, none)
    return Scores({"one": values}, {"one": 1.0}, looks, lineage)


def steps_have_their_own_advantages(subject: Subject) -> None:
    """Where looks are compared, the advantage of a sample's step makes that step likelier, and no other."""
    problem = Problem(subject.make())
    if problem.needs.looks == "none":
        raise NotOwed("it looks at no states on the way")
    made = problem.sample(SAMPLES)
    for sample, step in ((0, 0), (3, 2), (6, STEPS - 2)):
        A = torch.zeros(len(SAMPLES), STEPS - 1, dtype=torch.float64)
        A[sample, step] = 1.0
        batch = problem.batch(made, A)
        move = -problem.gradient(problem.total(problem.losses(batch, problem.terms(batch, SAMPLES))))
        one = slice(sample, sample + 1)
        conditions = {name: tensor[one] for name, tensor in made.conditions.items()}
        own = problem.gradient(problem.logprob(made.rollout[one], step, conditions))
        alike = float(torch.cosine_similarity(move, own, dim=0))
        said = f"the advantage of sample {sample} at step {step} moves the weights elsewhere"
        expect(alike > 0.99, f"{said}: a cosine of {alike:.2f}")


def each_role_trains_its_own_weights(subject: Subject) -> None:
    """In every turn the loss asks no other weights with gradients, and has one."""
    problem = Problem(subject.make())
    if not problem.needs.roles:
        raise NotOwed("it has no roles")
    problem.nudge(0.1)
    made, judged = problem.sample(SAMPLES), problem.judged(SAMPLES)
    for turn in problem.turns:
        batch, seen = problem.batch(made, judged, role=turn), Watched(problem.policy)
        terms = problem.terms(batch, SAMPLES)
        gradient = problem.gradient(problem.total(problem.losses(batch, terms, seen)))
        bare = sorted(seen.with_gradient - {turn})
        expect(not bare, f"in the turn of {turn!r} it asks {bare} with gradients, which reach what is trained")
        expect(gradient.norm() > 0, f"in the turn of {turn!r} its loss has no gradient")


def passes_are_as_said(subject: Subject) -> None:
    """In every turn, of the first update and of a later one, it asks for as many velocities as its spec says."""
    problem = Problem(subject.make())
    made, judged = problem.sample(SAMPLES), problem.judged(SAMPLES)
    sizes = Counter(made.groups.tolist()).values()
    for turn, update in product(problem.turns, (0, 1)):
        said = [subject.spec.passes(turn, update, size, len(problem.steps), STEPS) for size in sizes]
        if None in said:
            raise NotOwed("its spec does not say how many velocities it asks for")
        batch = problem.batch(made, judged, on_policy=problem.on_policy and not update, role=turn)
        before = problem.policy.forward, problem.policy.trained
        problem.losses(batch, problem.terms(batch, SAMPLES))
        asked = tuple(b - a for a, b in zip(before, (problem.policy.forward, problem.policy.trained), strict=True))
        owed = tuple(sum(each) for each in zip(*said, strict=True))
        words = f"its spec says {owed} velocities without and with a gradient in the turn of {turn!r}, update {update}"
        expect(asked == owed, f"{words}, and it asks for {asked}: `plan` would be wrong")


def students_are_brought_back(subject: Subject) -> None:
    """With roles, a reference and no scores: weights that have been moved away come to sample as the reference does."""
    problem = Problem(subject.make())
    needs = problem.needs
    if not needs.roles or not needs.reference or needs.scores or needs.gradient or needs.source != "rollouts":
        raise NotOwed("it does not learn to sample as its reference does")
    with torch.no_grad():
        problem.policy.parameters[0].add_(1.0)
    before = problem.policy.parameters[0].detach().square().mean()
    problem.learn(epochs=60, groups=4, group=8, lr=0.05)
    after = problem.policy.parameters[0].detach().square().mean()
    said = (
        f"after 60 updates, squared distances from the reference are {float(after):.3f}, and were {float(before):.3f}"
    )
    expect(after < 0.3 * before, said)


class Watched:
    """A policy, and how it was asked.

    points: each the weights, the noise level and the latents. with_gradient: the weights asked with gradients.
    """

    def __init__(self, policy: MeanPolicy) -> None:
        self._policy = policy
        self.with_gradient: set[str] = set()
        self.points: list[tuple[str, float, tuple[float, ...]]] = []

    def velocity(self, x: Tensor, sigma: Tensor, conditions: Conditions, guidance: float | None = None) -> Tensor:
        """The policy's velocity."""
        if torch.is_grad_enabled():
            self.with_gradient.add(self._policy.active)
        self.points += [
            (self._policy.active, float(level), tuple(at.tolist())) for level, at in zip(sigma, x, strict=True)
        ]
        return self._policy.velocity(x, sigma, conditions, guidance)

    def decode(self, x: Tensor) -> Tensor:
        """The policy's media."""
        return self._policy.decode(x)

    def reward(self, media: Tensor, rows: Sequence[Row]) -> Tensor:
        """The policy's reward."""
        return self._policy.reward(media, rows)

    def using(self, weights: str) -> AbstractContextManager[None]:
        """The policy's weights of that name."""
        return self._policy.using(weights)

    def move(self, weights: str, decay: float) -> None:
        """Move the policy's set."""
        self._policy.move(weights, decay)
