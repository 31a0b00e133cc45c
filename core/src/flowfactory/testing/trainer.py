"""What every trainer owes, on a problem small enough to be exact: see `problem`."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from flowfactory.testing.grouped import (
    each_role_trains_its_own_weights,
    gradients_go_as_far_as_said,
    groups_of_one_are_no_fault,
    groups_prefer_their_best,
    groups_share_their_draws,
    passes_are_as_said,
    scores_of,
    steps_have_their_own_advantages,
    students_are_brought_back,
    targets_get_likelier,
    teachers_are_approached,
    teachers_take_no_gradient,
)
from flowfactory.testing.problem import SAMPLES, STEPS, Problem, parts_of
from flowfactory.testing.subject import Check, NotOwed, Subject, expect

EPOCHS = 60
NEARER, BOUND = 0.5, 0.75
"""How far samples come at least, as a share of their squared distance: freely, or kept to the reference by the loss."""


class TrainerSubject(Subject):
    """A trainer with the problem it is tried on; every check begins with it anew."""

    def checks(self) -> Sequence[Check]:
        return CHECKS

    def problem(self) -> Problem:
        """The problem, before any update."""
        return Problem(self.make())


def needs_are_sound(subject: TrainerSubject) -> None:
    """Its needs can be met, and its spec names the same ones."""
    needs = subject.make().needs
    expect(needs == subject.spec.needs, "the trainer's needs are not its spec's, which `check` judges specs by")
    own = needs.rollout == "current" or needs.rollout in needs.sets
    expect(own, f"it samples with the weights {needs.rollout!r}, which are not among its `sets`")
    ways = needs.looks != "none", needs.branches is not None
    if any(ways):
        expect(not all(ways), "it looks at what is on the way of branches: leave out `looks` or `branches`")
        owed = needs.source == "rollouts" and needs.scores and needs.trajectory == "steps"
        expect(owed, 'single steps are compared where samples are made and scored: say `trajectory="steps"`')
    named = {*needs.sets, *needs.roles}
    expect(not named & {"current", "reference", "ema"}, f"`sets` or `roles`, {named}, name weights core keeps itself")
    expect(not needs.sets & needs.roles.keys(), f"`sets` and `roles` share a name: {named}")
    if needs.source != "rollouts":
        expect(not needs.gradient, "it learns from the data, which nobody scores: leave out `gradient`")
        expect(not needs.scores, f"it learns from {needs.source} of the data, which nobody scores: say `scores=False`")
        stored = needs.trajectory == "final" and needs.density == "none" and needs.rollout == "current"
        expect(stored, "it learns from the data, which have no trajectories: leave out what it asks of them")


def better_scores_better_advantages(subject: TrainerSubject) -> None:
    """Advantages are float64, one per sample or for each of its steps, NaN for one that takes no part. Of a group the
    best takes part, no worse sample has a greater one, and the scores decide: not all take part alike."""
    _owed_if_scored(subject)
    scores = torch.tensor([0.1, 0.4, 0.2, 0.9, 5.0, 5.5, 7.0, 6.0], dtype=torch.float64)
    groups = torch.tensor([0] * 4 + [1] * 4)
    for found in _advantages(subject, scores, groups):
        expect(found.dtype == torch.float64 and not found.isinf().any(), f"they are {found.tolist()}, {found.dtype}")
        for group in (0, 1):
            own, by_score = found[groups == group], scores[groups == group].argsort()
            ranked = own[by_score]
            present = ranked[~ranked.isnan()]
            said = f"scores {scores[groups == group].tolist()} have advantages {own.tolist()}"
            expect(not ranked[-1].isnan(), f"{said}: the best takes no part")
            expect((present.diff() >= 0).all(), said)
            expect(len(present) < len(ranked) or present[0] < present[-1], f"{said}: all alike")


def equal_scores_have_equal_advantages(subject: TrainerSubject) -> None:
    """Samples of a group that score the same and take part have the same advantage."""
    _owed_if_scored(subject)
    groups = torch.tensor([0] * 4 + [1] * 4)
    scores = torch.tensor([0.7] * 4 + [0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    for found in _advantages(subject, scores, groups):
        present = found[:4][~found[:4].isnan()]
        alike = len(present) == 0 or float(present.max() - present.min()) < 1e-6
        expect(alike, f"equal scores have advantages {found[:4].tolist()}")


def missing_scores_take_no_part(subject: TrainerSubject) -> None:
    """A sample without a score has an advantage of 0, which teaches nothing, or NaN, which takes no part."""
    _owed_if_scored(subject)
    scores = torch.tensor([0.1, torch.nan, 0.3, 0.4], dtype=torch.float64)
    for found in _advantages(subject, scores, torch.tensor([0] * 4)):
        expect(found[1].isnan() or found[1] == 0, f"without a score a sample has the advantage {float(found[1])}")
        expect(not found[[0, 2, 3]].isnan().all(), "one missing score keeps its whole group from taking part")


def terms_leave_no_trace(subject: TrainerSubject) -> None:
    """Choosing terms and computing losses changes no weight, leaves the current ones active and draws from nobody."""
    problem = subject.problem()
    before, _, random = _weights(problem), torch.rand(()), torch.get_rng_state()  # drawn, so that any seeding shows
    batch = problem.batch(problem.sample(SAMPLES), problem.judged(SAMPLES))
    terms = problem.terms(batch, SAMPLES)
    expect(len(terms), "it has no terms: there is nothing to train on")
    problem.losses(batch, terms)
    expect(all(torch.equal(a, b) for a, b in zip(before, _weights(problem), strict=True)), "it changes weights")
    expect(problem.policy.active == "current", f"it leaves the weights {problem.policy.active!r} active")
    expect(torch.equal(random, torch.get_rng_state()), "it draws from torch's global random numbers; use `draws`")


def same_seed_same_terms(subject: TrainerSubject) -> None:
    """The same seed has the same losses, bit for bit, whatever was drawn elsewhere meanwhile."""
    problem = subject.problem()
    made, A = problem.sample(SAMPLES), problem.judged(SAMPLES)
    problem.nudge(1e-3)
    found = []
    for elsewhere in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(elsewhere)
            batches = [problem.batch(made, A, role=turn) for turn in problem.turns]
            asked = [problem.losses(batch, problem.terms(batch, SAMPLES)) for batch in batches]
            found.append(parts_of([loss for losses in asked for loss in losses]))
    for name, value in found[0].items():
        expect(torch.equal(value, found[1][name]), f"`{name}` is {value} and then {found[1][name]}")


def parts_are_numbers(subject: TrainerSubject) -> None:
    """Every loss part is one finite number, and every metric one number without a gradient."""
    problem = subject.problem()
    batch = problem.batch(problem.sample(SAMPLES), problem.judged(SAMPLES))
    for loss in problem.losses(batch, problem.terms(batch, SAMPLES)):
        expect(loss.parts, "a loss has no parts")
        for name, value in loss.parts.items():
            expect(value.dim() == 0 and value.isfinite(), f"part `{name}` is {value}")
        for name, value in loss.metrics.items():
            expect(value.numel() == 1, f"metric `{name}` has the shape {tuple(value.shape)}")
            expect(not value.requires_grad, f"metric `{name}` has a gradient; detach it")


def every_part_carries_a_gradient(subject: TrainerSubject) -> None:
    """Every loss part moves the weights, in the first update or after it."""
    problem = subject.problem()
    made, sizes = problem.sample(SAMPLES), dict[str, float]()
    batches = [problem.batch(made, problem.judged(SAMPLES), role=turn) for turn in problem.turns]
    asked = [(batch, problem.terms(batch, SAMPLES)) for batch in batches]
    for step in (0.0, 1e-5, 1e-2):
        problem.nudge(step)
        for name, value in (part for of in asked for part in parts_of(problem.losses(*of)).items()):
            sizes[name] = max(sizes.get(name, 0.0), float(problem.gradient(value).norm()))
    lost = [name for name, size in sizes.items() if not size > 0]
    expect(not lost, f"no gradient comes from {', '.join(lost)}")


def first_ratio_is_one(subject: TrainerSubject) -> None:
    """Before any update, the ratio it reports is 1 and deviates by 0, exactly."""
    problem = subject.problem()
    made = problem.sample(SAMPLES)
    for on_policy in (True, False) if problem.on_policy else (False,):
        batch = problem.batch(made, problem.judged(SAMPLES), on_policy=on_policy)
        for loss in problem.losses(batch, problem.terms(batch, SAMPLES)):
            if "ratio" not in loss.metrics:
                raise NotOwed("it reports no `ratio`")
            expect(float(loss.metrics["ratio"]) == 1, f"the first ratio is {float(loss.metrics['ratio'])!r}")
            if "ratio_deviation" in loss.metrics:
                expect(float(loss.metrics["ratio_deviation"]) == 0, f"it deviates: {loss.metrics['ratio_deviation']}")


def advantage_raises_likelihood(subject: TrainerSubject) -> None:
    """Raising a sample's advantage moves the weights to where that sample is likelier."""
    _owed_if_scored(subject)
    problem = subject.problem()
    if problem.needs.batch == "groups":
        raise NotOwed("its loss is one of groups")
    made, mixed = problem.sample(SAMPLES), problem.judged(SAMPLES)

    def gradient(advantages: Tensor) -> Tensor:
        batch = problem.batch(made, advantages)
        return problem.gradient(problem.total(problem.losses(batch, problem.terms(batch, SAMPLES))))

    level = gradient(mixed)
    for sample in SAMPLES:
        raised = mixed.clone()
        raised[sample] += 0.25
        change = -(gradient(raised) - level)
        expect(change.norm() > 0, f"raising the advantage of sample {sample} changes nothing")
        gain = float(change @ problem.gradient(problem.likelihood(made, sample)))
        expect(gain > 0, f"raising the advantage of sample {sample} makes it less likely: a gain of {gain:.2e}")


def microbatch_invariance(subject: TrainerSubject) -> None:
    """The loss of a batch, and its gradient, are the means of those of its parts, over their samples or groups."""
    for turn in subject.problem().turns:
        problem = subject.problem()
        made, A = problem.sample(SAMPLES), problem.judged(SAMPLES)
        first = int((made.groups == made.groups[0]).sum())
        whole = problem.batch(made, A, role=turn)
        terms, parts = problem.terms(whole, SAMPLES), []
        for chosen in (slice(0, first), slice(first, 8)):
            batch = problem.batch(made, A, chosen, role=turn)
            parts.append((batch, problem.terms(batch, SAMPLES[chosen]), problem.units(batch) / problem.units(whole)))
        for step in (1e-5, 1e-2):
            problem.nudge(step)
            expected = problem.total(problem.losses(whole, terms))
            both = torch.stack([share * problem.total(problem.losses(batch, own)) for batch, own, share in parts]).sum()
            _near(expected, both, "the loss")
            _near(problem.gradient(expected), problem.gradient(both), "its gradient")


def order_does_not_matter(subject: TrainerSubject) -> None:
    """The loss of a batch does not depend on the order of its samples, or of its groups where those are whole."""
    problem, found = subject.problem(), []
    A, groups = problem.judged(SAMPLES), problem.groups(SAMPLES).tolist()
    other = [5, 2, 7, 0, 3, 6, 1, 4]
    if problem.needs.batch == "groups" or problem.needs.source == "pairs":
        other = sorted(SAMPLES, key=lambda i: -groups[i])
    for order in (list(SAMPLES), other):
        batch = problem.batch(problem.sample(order), A[order])
        found.append(problem.gradient(problem.total(problem.losses(batch, problem.terms(batch, order)))))
    _near(found[0], found[1], "the gradient")


def terms_keep_the_past(subject: TrainerSubject) -> None:
    """A term keeps what the rollout's weights said: copied, it has the same loss after the weights have moved."""
    problem = subject.problem()
    batch = problem.batch(problem.sample(SAMPLES), problem.judged(SAMPLES), on_policy=False)
    terms = problem.terms(batch, SAMPLES)
    kept = copy.deepcopy(terms)
    problem.nudge(0.1)
    one, two = (problem.total(problem.losses(batch, some)) for some in (terms, kept))
    expect(torch.equal(one, two), "a term shares memory with the weights, so it changes with them; clone it")


def learns(subject: TrainerSubject) -> None:
    """It learns: samples come to lie around where the reward is, or the data."""
    problem = subject.problem()
    needs = problem.needs
    if needs.source == "rollouts" and not (needs.scores or needs.gradient):
        raise NotOwed("neither rewards nor data say where its samples should lie")
    bound = needs.reference and needs.batch == "groups"
    before, after = problem.learn(EPOCHS, groups=4, group=8, lr=0.05)
    said = f"after {EPOCHS} updates, squared distances are {after:.3f} and were {before:.3f}"
    expect(after < (BOUND if bound else NEARER) * before, said)


CHECKS = (
    needs_are_sound,
    better_scores_better_advantages,
    equal_scores_have_equal_advantages,
    missing_scores_take_no_part,
    terms_leave_no_trace,
    same_seed_same_terms,
    parts_are_numbers,
    every_part_carries_a_gradient,
    first_ratio_is_one,
    advantage_raises_likelihood,
    groups_prefer_their_best,
    targets_get_likelier,
    groups_share_their_draws,
    groups_of_one_are_no_fault,
    teachers_take_no_gradient,
    teachers_are_approached,
    gradients_go_as_far_as_said,
    steps_have_their_own_advantages,
    each_role_trains_its_own_weights,
    passes_are_as_said,
    students_are_brought_back,
    microbatch_invariance,
    order_does_not_matter,
    terms_keep_the_past,
    learns,
)


def _advantages(subject: TrainerSubject, values: Tensor, groups: Tensor) -> list[Tensor]:
    """Advantages `(N,)`: one tensor, or one for each step."""
    found = subject.make().advantages(scores_of(subject.spec.needs, values, groups), groups)
    steps = (STEPS - 1,) if found.dim() > 1 and subject.spec.needs.looks != "none" else ()
    expect(found.shape == (len(values), *steps), f"of {len(values)} samples there are {tuple(found.shape)}")
    return list(found.reshape(len(values), -1).T)


def _owed_if_scored(subject: TrainerSubject) -> None:
    if not subject.make().needs.scores:
        raise NotOwed("it compares no scores")


def _weights(problem: Problem) -> list[Tensor]:
    weights = problem.policy.weights
    every = [weights.tensors(name).values() for name in ("current", *weights.sets)]
    return [tensor.detach().clone() for tensors in every for tensor in tensors]


def _near(one: Tensor, two: Tensor, what: str) -> None:
    gap, size = float((one - two).detach().abs().max()), float(one.detach().abs().max())
    expect(gap <= 1e-6 + 1e-4 * size, f"{what} differs by {gap:.1e}, of {size:.1e}")
