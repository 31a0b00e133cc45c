"""Branches: what grows, what it takes, and what the trainer sees of what it scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from epochs import GROUP, PROMPTS, epoch, level_of
from flowfactory.builtin import FlowSDESpec
from flowfactory.contracts.scheduler import to_storage
from flowfactory.contracts.specs import Branches, Needs
from flowfactory.contracts.types import Rollout, Sample
from flowfactory.sampling.branched import Branched, branch, leaves_under
from flowfactory.sampling.rollout import Noise, rollout
from flowfactory.sampling.source import Collected, Member
from flowfactory.sampling.studio import Made
from flowfactory.schedulers.flow_sde import FlowSDE
from flowfactory.spec.window import Growth, grown
from flowfactory_plugin_branchgrpo import BranchGRPOSpec
from flowfactory_plugin_branchgrpo.branchgrpo import BranchGRPO
from flowfactory_plugin_tempflow import TempFlowSpec
from flowfactory_plugin_tempflow.tempflow import TempFlow
from support import GRID, STORAGE, Case, FieldPolicy, close, each
from torch import Tensor

FAN, TREE = Branches(3), Branches(2, (0, 2), "tree")


def field(x: Tensor, sigma: Tensor) -> Tensor:
    """The goldens' velocity."""
    level = sigma.reshape(-1, *(1,) * (x.dim() - 1)).to(x)
    return 0.5 * x + level * torch.sin(x) - 0.3


class Counted(FieldPolicy):
    """Counts the rows that pass."""

    def __init__(self) -> None:
        super().__init__(field)
        self.rows = 0
        self.largest = 0

    def velocity(self, x: Tensor, *rest: Any) -> Tensor:
        self.rows += len(x)
        self.largest = max(self.largest, len(x))
        return super().velocity(x, *rest)


# --- what grows ----------------------------------------------------------------------------------------------------


def test_a_fan_takes_as_many_passes_as_tempflow() -> None:
    growth = grown(Branches(6), range(9), 10)
    assert sum(growth.rows) == 9 + 6 * 45 == 279
    assert (len(growth.steps), len(growth.leaves)) == (54, 54)
    assert set(growth.parents) == {-1}


def test_a_tree_shares_what_lies_before_its_splits() -> None:
    growth = grown(Branches(2, (0, 3, 6, 9), "tree"), range(19), 20)
    assert growth.rows == (1, *[2] * 3, *[4] * 3, *[8] * 3, *[16] * 10)
    assert (len(growth.steps), len(growth.leaves), sum(growth.rows)) == (202, 16, 203)
    assert [len(own) for own in leaves_under(growth)][:10] == [8] * 6 + [4] * 4


def test_who_descends_from_whom() -> None:
    growth = grown(TREE, (0, 1, 2), 4)
    assert growth.steps == (0, 0, 1, 1, 2, 2, 2, 2)
    assert growth.parents == (-1, -1, 0, 1, 2, 2, 3, 3)
    assert growth.leaves == (4, 5, 6, 7)
    assert leaves_under(growth) == [[0, 1], [2, 3], [0, 1], [2, 3], [0], [1], [2], [3]]


def test_calls_are_of_full_pieces() -> None:
    growth = grown(TREE, (0, 1, 2), 4)
    assert growth.rows == (1, 2, 2, 4)
    assert (growth.together(8), growth.together(3)) == (2, 1)
    assert growth.calls(5, 8) == 2 * 4 + 4
    assert growth.calls(1, 3) == 1 + 1 + 1 + 2


# --- branches ------------------------------------------------------------------------------------------------------


@each("branch_credit", lambda case: case["name"].startswith("tempflow") and case["precision"] == "float32")
def test_branches_equal_tempflows(case: Case) -> None:
    given, expected = case["inputs"], case["outputs"]
    sigmas, width = given["sigmas"].float(), given["children"]
    count, steps = len(sigmas) - 1, len(sigmas) - 2
    starts = len(given["start"])
    drawn = given["noise"].unflatten(0, (starts, width)).transpose(1, 2).flatten(1, 2)
    policy, growth = Counted(), grown(Branches(width), range(steps), count)
    noise = Noise(given["start"], drawn)
    parts, ends = branch(policy, FlowSDE(FlowSDESpec(eta=given["eta"])), sigmas, growth, noise, {}, torch.float32, 4)
    assert policy.rows == expected["forward_calls"] * starts
    assert policy.largest <= 4
    for step, part in enumerate(parts):
        assert part.steps == (step,)
        close(part.latents[step], expected["trunk"][:, step].repeat_interleave(width, 0), 2e-6)
        close(part.latents[step + 1], expected["child_latents"][:, step], 2e-6)
        close(part.logprobs[step], expected["child_log_prob"][:, step], 5e-6)
    finals = expected["final_latents"].unflatten(0, (starts, width)).transpose(1, 2).flatten(1, 2)
    close(ends, finals, 3e-6)


def random_noise(branches: int, starts: int = 2) -> Noise:
    generator = torch.Generator().manual_seed(0)
    return Noise(
        torch.randn(starts, 4, 5, generator=generator), torch.randn(starts, branches, 4, 5, generator=generator)
    )


def plainly(
    growth: Growth, steps: Sequence[int], noise: Noise, dtype: torch.dtype, leaf: int
) -> tuple[Tensor, dict[int, Any]]:
    """One sample, from its start, by itself: where it ends, and its branches' steps."""
    own, branches = leaf, dict[int, int]()
    while own >= 0:
        branches[growth.steps[own]] = own
        own = growth.parents[own]
    x, scheduler, taken = to_storage(noise.start, dtype), FlowSDE(FlowSDESpec(eta=0.7)), dict[int, Any]()
    for i in range(len(GRID) - 1):
        levels = GRID[i].expand(len(x)), GRID[i + 1].expand(len(x))
        v = field(x, levels[0])
        if i in branches:
            step = scheduler.step(v, x, *levels, float(GRID[1]), noise.steps[:, branches[i]], dtype)
            taken[branches[i]] = x, step.x, step.logprob
            x = step.x
        else:
            x = to_storage(scheduler.advance(None, v, x, *levels)[0], dtype)
    return x, taken


@pytest.mark.parametrize("dtype", STORAGE, ids=str)
@pytest.mark.parametrize("together", [1, 5, 100])
@pytest.mark.parametrize(
    ("branches", "steps"),
    [(FAN, (0, 1, 2)), (FAN, (2, 5)), (Branches(2, (3,)), (1, 3)), (TREE, (0, 1, 2, 3)), (TREE, (0, 2, 5))],
    ids=["fan", "gaps", "chosen", "tree", "tree-gaps"],
)
def test_each_branch_is_what_a_plain_loop_makes(
    branches: Branches, steps: tuple[int, ...], together: int, dtype: torch.dtype
) -> None:
    """To the bit, and no state is asked about twice."""
    growth = grown(branches, steps, 10)
    noise, policy = random_noise(len(growth.steps)), Counted()
    parts, ends = branch(policy, FlowSDE(FlowSDESpec(eta=0.7)), GRID, growth, noise, {}, dtype, together)
    assert policy.rows == 2 * sum(growth.rows)
    assert policy.largest <= together
    rows = {
        number: (part, place, len(part) // 2)
        for part in parts
        for place, number in enumerate(n for n, step in enumerate(growth.steps) if (step,) == part.steps)
    }
    assert len(rows) == len(growth.steps)
    for number, leaf in enumerate(growth.leaves):
        end, taken = plainly(growth, steps, noise, dtype, leaf)
        assert torch.equal(ends[:, number], end)
        for own, (x, x_next, logprob) in taken.items():
            part, place, each_start = rows[own]
            (step,) = part.steps
            assert torch.equal(part.latents[step][place::each_start], x)
            assert torch.equal(part.latents[step + 1][place::each_start], x_next)
            assert torch.equal(part.logprobs[step][place::each_start], logprob)


def test_a_tree_that_does_not_part_is_a_trajectory() -> None:
    steps = (0, 2, 3)
    growth, policy, scheduler = grown(Branches(1, (0,), "tree"), steps, 10), FieldPolicy(field), FlowSDE(FlowSDESpec())
    noise = random_noise(3)
    parts, ends = branch(policy, scheduler, GRID, growth, noise, {}, torch.bfloat16, 8)
    plain = rollout(policy, scheduler, GRID, steps, noise, {}, torch.bfloat16)
    assert torch.equal(ends[:, 0], plain.final)
    for part in parts:
        (step,) = part.steps
        assert torch.equal(part.logprobs[step], plain.logprobs[step])
        assert torch.equal(part.latents[step + 1], plain.latents[step + 1])


# --- an epoch ------------------------------------------------------------------------------------------------------

STEPS, T = (0, 1, 2), 4


def made_up(way: Any, epoch: int, members: Sequence[Member], decoded: bool) -> Made:
    """Media that differ by prompt, start and branch; the log-probability of a branch is its number, halved."""
    growth, rows, ends = way.growth, way.studio.conditions.rows, len(way.growth.leaves)
    parts, columns = [], [[] for _ in range(way.columns)]
    for m in members:
        for step in sorted(set(growth.steps)):
            own = torch.tensor([n for n, at in enumerate(growth.steps) if at == step])
            latents = torch.full((len(own), 1), level_of(m))
            parts.append(
                Rollout(torch.linspace(1, 0, T + 1), (step,), {step: latents, step + 1: latents}, {step: own / 2})
            )
        for number in range(ends):
            media = torch.full((3, 4, 4), brightness_of(m, number))
            sample = Sample(rows[m.group.row], media, m.group.slot, m.replica * ends + number)
            columns[number // way.leaves].append(sample)
    return Made(parts, columns, [torch.zeros(1)])


def brightness_of(member: Member, leaf: int) -> float:
    return ((7 * member.group.row + 5 * member.replica + 3 * leaf**2) % 97) / 97


def brightness(batch: list[Sample]) -> list[float]:
    return [float(s.media.double().mean()) for s in batch]


@pytest.fixture
def branching(monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs of four steps, of which three are stochastic, that branch."""
    monkeypatch.setattr(Branched, "sample", made_up)
    for module in ("branched", "rollouts"):
        monkeypatch.setattr(f"flowfactory.sampling.{module}.epoch_steps", lambda *_: STEPS)


def seen_of(
    folder: Path, branches: Branches, target: Any = brightness, trainer: Any = None, **more: Any
) -> tuple[list[tuple[Any, Tensor]], list[Collected]]:
    """What the trainer compares, or any, and what comes of an epoch."""
    seen = list[Any]()

    def compare(scores: Any, groups: Tensor) -> Tensor:
        seen.append((scores, groups))
        return trainer.advantages(scores, groups) if trainer else scores.advantages(groups, "sum", "group")

    needs = Needs(branches=branches, trajectory="steps")
    outcomes = epoch(folder, {"r": target}, compare=compare, needs=needs, steps=T, **more)
    assert all(isinstance(outcome, Collected) for outcome in outcomes), outcomes
    return seen, outcomes  # type: ignore[return-value]


KINDS = pytest.mark.parametrize("branches", [FAN, TREE], ids=["fan", "tree"])


@pytest.mark.usefixtures("branching")
@KINDS
def test_the_trainer_sees_branches_by_what_they_lead_to(tmp_path: Path, branches: Branches) -> None:
    (((scores, groups),), (made,)) = seen_of(tmp_path, branches)
    growth, starts = grown(branches, STEPS, T), PROMPTS * GROUP
    count = len(growth.steps)
    assert len(groups) == len(made.members) == starts * count
    values = scores.values["r"].reshape(starts, count)
    members = {(m.group.slot, m.replica // count): m.group for m in made.members}
    for start in range(starts):
        slot, replica = divmod(start, GROUP)
        ends = [brightness_of(Member(members[slot, replica], replica), leaf) for leaf in range(len(growth.leaves))]
        expected = torch.tensor([sum(ends[i] for i in own) / len(own) for own in leaves_under(growth)])
        close(values[start], expected, 1e-6)
    lineage = scores.lineage
    assert lineage.steps.reshape(starts, count)[3].tolist() == list(growth.steps)
    assert lineage.parents.reshape(starts, count)[2].tolist() == [p if p < 0 else p + 2 * count for p in growth.parents]
    assert lineage.logprobs.reshape(starts, count)[1].tolist() == [n / 2 for n in range(count)]
    together = {}
    for i, group in enumerate(groups.tolist()):
        start, branch_number = divmod(i, count)
        together.setdefault(group, set()).add(
            (start // GROUP if branches.kind == "fan" else start, growth.steps[branch_number])
        )
    assert all(len(own) == 1 for own in together.values())


@pytest.mark.usefixtures("branching")
@KINDS
def test_rows_to_learn_from_lie_by_step_and_know_their_parents(tmp_path: Path, branches: Branches) -> None:
    _, (made,) = seen_of(tmp_path, branches, updates=2)
    growth, half = grown(branches, STEPS, T), len(made.members) // 2
    steps = [made.trajectories.steps(i)[0] for i in range(len(made.members))]
    assert steps[:half] == sorted(steps[:half])
    assert steps[half:] == sorted(steps[half:])
    assert {m.group.slot for m in made.members[:half]}.isdisjoint(m.group.slot for m in made.members[half:])
    count = len(growth.steps)
    assert made.parents is not None
    for i, member in enumerate(made.members):
        start, number = divmod(member.replica, count)
        parent = growth.parents[number]
        assert steps[i] == growth.steps[number]
        assert made.parents[i] == (parent if parent < 0 else start * count + parent)
        assert float(made.trajectories[[i]].logprobs[steps[i]]) == number / 2


@pytest.mark.usefixtures("branching")
@KINDS
def test_any_number_of_processes_sees_the_same(tmp_path: Path, branches: Branches) -> None:
    one, (alone,) = seen_of(tmp_path, branches)
    two, both = seen_of(tmp_path, branches, world=2)
    for scores, groups in two:
        assert torch.equal(groups, one[0][1])
        assert torch.equal(scores.values["r"], one[0][0].values["r"])
        assert torch.equal(scores.lineage.logprobs, one[0][0].lineage.logprobs)

    def by_name(made: Collected) -> dict[tuple[int, int], float]:
        return {(m.group.slot, m.replica): float(a) for m, a in zip(made.members, made.advantages, strict=True)}

    assert by_name(alone) == by_name(both[0]) | by_name(both[1])


def failing(slot: int, piece: int, last: Any = ...) -> Any:
    """A reward that raises on one piece of what it is asked about a prompt, or has another score for its last."""
    asked = list[int]()

    def target(batch: list[Sample]) -> list[float | None]:
        asked.append(batch[0].slot)
        if batch[0].slot != slot or asked.count(slot) - 1 != piece:
            return list(brightness(batch))
        if last is ...:
            raise ValueError("too dark")
        return [*brightness(batch)[:-1], last]

    return target


KEYS = {"r": {"on_error": "drop-group", "max_dropped": 0.2, "micro_batch": 100}}
Branch = tuple[int, int, int]
"""Slot, start, and number among the branches of a start."""
OURS = pytest.mark.parametrize(
    ("branches", "trainer"),
    [
        (FAN, None),
        (TREE, None),
        (FAN, TempFlow(TempFlowSpec(width=3))),
        (TREE, BranchGRPO(BranchGRPOSpec(splits=(0, 2)))),
        (TREE, BranchGRPO(BranchGRPOSpec(splits=(0, 2), worth="likely"))),
    ],
    ids=["fan", "tree", "tempflow", "branchgrpo", "likely"],
)


def lost_of(made: Collected, growth: Growth) -> set[Branch]:
    """The branches that teach nothing."""
    everyone = zip(made.members, made.advantages, strict=True)
    return {(m.group.slot, *divmod(m.replica, len(growth.steps))) for m, a in everyone if a.isnan()}


def others_of(made: Collected, slot: int) -> list[float]:
    """The advantages of other prompts."""
    return [float(a) for m, a in zip(made.members, made.advantages, strict=True) if m.group.slot != slot]


@pytest.mark.usefixtures("branching")
@OURS
@pytest.mark.parametrize("how", [..., float("nan")], ids=["raises", "nan"])
def test_a_failure_takes_the_step_of_a_fan_or_one_tree(
    tmp_path: Path, branches: Branches, trainer: Any, how: Any
) -> None:
    _, (made,) = seen_of(tmp_path, branches, failing(2, 1, how), trainer, keys=KEYS, overlap=False)
    growth = grown(branches, STEPS, T)
    count = len(growth.steps)
    if branches.kind == "fan":
        lost = {(2, start, n) for start in range(GROUP) for n in range(count) if growth.steps[n] == 1}
    else:
        lost = {(2, 1, n) for n in range(count)}
    assert lost_of(made, growth) == lost
    assert made.metrics["reward/dropped_groups"] == 1
    _, (whole,) = seen_of(tmp_path / "whole", branches, trainer=trainer, overlap=False)
    assert others_of(made, 2) == others_of(whole, 2)


@pytest.mark.usefixtures("branching")
@OURS
def test_a_sample_without_a_score_takes_what_leads_to_it_alone(
    tmp_path: Path, branches: Branches, trainer: Any
) -> None:
    """What leads to others, too, is worth what these are."""
    ((scores, _),), (made,) = seen_of(tmp_path, branches, failing(2, 1, None), trainer, keys=KEYS, overlap=False)
    growth = grown(branches, STEPS, T)
    count = len(growth.steps)
    if branches.kind == "fan":
        last = max(n for n in range(count) if growth.steps[n] == 1)
        assert lost_of(made, growth) == {(2, GROUP - 1, last)}
    else:
        assert lost_of(made, growth) == {(2, 1, growth.leaves[-1])}
        own = scores.values["r"].reshape(-1, count)[2 * GROUP + 1]
        assert own[growth.parents[growth.leaves[-1]]] == own[growth.leaves[-2]]


@pytest.mark.usefixtures("branching")
@KINDS
def test_groups_that_teach_nothing_are_replaced(tmp_path: Path, branches: Branches) -> None:
    def flat(batch: list[Sample]) -> list[float]:
        return [
            0.5 if s.row.prompt in ("prompt 0", "prompt 1") else x
            for s, x in zip(batch, brightness(batch), strict=True)
        ]

    _, (made,) = seen_of(tmp_path, branches, flat, refill=4)
    assert made.metrics["refill/groups"] > 0
    count = len(grown(branches, STEPS, T).steps)
    for i, member in enumerate(made.members):
        first = Member(member.group, member.replica // count)
        assert float(made.trajectories[[i]].latents[made.trajectories.steps(i)[0]]) == pytest.approx(level_of(first))
