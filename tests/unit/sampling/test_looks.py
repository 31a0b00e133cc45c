"""Looks at the states on the way: what becomes of them, and what the trainer sees of their scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from epochs import GROUP, PROMPTS, brightness, epoch, made_up
from flowfactory.builtin import FlowSDESpec
from flowfactory.contracts.scheduler import to_storage
from flowfactory.contracts.specs import Needs
from flowfactory.contracts.types import Sample
from flowfactory.rewards.advantages import Scores
from flowfactory.sampling.chains import Chains, Looks
from flowfactory.sampling.rollout import Noise, rollout
from flowfactory.sampling.source import Collected
from flowfactory.schedulers.flow_sde import FlowSDE
from flowfactory.spec.window import looked_at
from support import GRID, STORAGE, Case, FieldPolicy, close, each
from torch import Tensor


def field(x: Tensor, sigma: Tensor) -> Tensor:
    """The goldens' velocity."""
    level = sigma.reshape(-1, *(1,) * (x.dim() - 1)).to(x)
    return 0.5 * x + level * torch.sin(x) - 0.3


def looked(
    kind: Any, sigmas: Tensor, steps: tuple[int, ...], noise: Noise, dtype: torch.dtype = torch.float32
) -> tuple[dict[int, Tensor], Tensor, FieldPolicy]:
    """What looks end in by their steps, the samples, and the policy that was asked."""
    policy, scheduler = FieldPolicy(field), FlowSDE(FlowSDESpec(eta=0.7))
    looks = Looks(kind, looked_at(kind, steps), sigmas, dtype)
    made = rollout(policy, scheduler, sigmas, steps, noise, {}, dtype, told=looks.told)
    return {step: looks.end(step, policy, scheduler, {}) for step in looks.found}, made.final, policy


def in_float32(case: Case) -> bool:
    return case["name"].startswith("looks") and case["precision"] == "float32"


@each("step_credit", in_float32)
def test_looks_equal_the_reference(case: Case) -> None:
    given, expected = case["inputs"], case["outputs"]
    sigmas, steps = torch.tensor(given["sigmas"]), tuple(range(*given["window"]))
    noise = Noise(given["start"], given["noise"])
    ends, final, _ = looked("completed", sigmas, steps, noise)
    close(ends[steps[0]], expected["pure_ode"], 2e-6)
    for k, step in enumerate(steps[1:]):
        close(ends[step], expected["completions"][:, k], 2e-6)
    close(final, expected["completions"][:, -1], 2e-6)
    estimates, _, _ = looked("estimated", sigmas, steps, noise)
    assert list(estimates) == [*steps, steps[-1] + 1]
    for k, step in enumerate(estimates):
        close(estimates[step], expected["estimates"][:, k], 4e-6)


def random_noise(steps: int, count: int = 3) -> Noise:
    generator = torch.Generator().manual_seed(0)
    return Noise(torch.randn(count, 4, 5, generator=generator), torch.randn(count, steps, 4, 5, generator=generator))


@pytest.mark.parametrize("dtype", STORAGE, ids=str)
@pytest.mark.parametrize("steps", [(0, 1, 2), (2, 3), (1, 4, 7), (8,)], ids=str)
def test_each_look_is_what_a_plain_loop_makes_of_its_state(steps: tuple[int, ...], dtype: torch.dtype) -> None:
    """To the bit, and without asking the network twice about one state."""
    noise, policy, scheduler = random_noise(len(steps)), FieldPolicy(field), FlowSDE(FlowSDESpec(eta=0.7))
    ends, final, asked = looked("completed", GRID, steps, noise, dtype)
    estimates, _, _ = looked("estimated", GRID, steps, noise, dtype)
    x, wanted = to_storage(noise.start, dtype), dict[int, Tensor]()
    for i in range(10):
        levels = GRID[i].expand(3), GRID[i + 1].expand(3)
        v = policy.velocity(x, levels[0], {})
        wanted[i] = x
        if i in steps:
            drawn = noise.steps[:, steps.index(i)]
            x = scheduler.step(v, x, *levels, float(GRID[1]), drawn, dtype).x
        else:
            x = to_storage(scheduler.advance(None, v, x, *levels)[0], dtype)
    assert torch.equal(final, x)
    for step, end in ends.items():
        y = wanted[step]
        for i in range(step, 10):
            levels = GRID[i].expand(3), GRID[i + 1].expand(3)
            y = to_storage(scheduler.advance(None, policy.velocity(y, levels[0], {}), y, *levels)[0], dtype)
        assert torch.equal(end, y)
    for step, estimate in estimates.items():
        v = policy.velocity(wanted[step], GRID[step].expand(3), {})
        assert torch.equal(estimate, wanted[step].float() - GRID[step] * v.float())
    assert len(asked.calls) == 10 + sum(9 - step for step in steps)


def test_columns_of_scores_are_compared_one_by_one() -> None:
    values = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values[4, 1] = torch.nan
    groups, scores = torch.tensor([0, 0, 0, 1, 1, 1]), Scores({"a": values[:, 0]}, {"a": 2.0})
    for std in ("group", "global"):
        found = scores.advantages(groups, "sum", std, {"a": values})
        for k in range(3):
            alone = Scores({"a": values[:, k]}, {"a": 2.0}).advantages(groups, "sum", std)
            assert torch.equal(found[:, k].nan_to_num(9), alone.nan_to_num(9))


# --- an epoch ------------------------------------------------------------------------------------------------------

STEPS = 3


@pytest.fixture
def looking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs of three stochastic steps, whose looks are darker the later they are."""
    monkeypatch.setattr(Chains, "sample", made_up)
    monkeypatch.setattr("flowfactory.sampling.rollouts.epoch_steps", lambda *_: range(STEPS))
    monkeypatch.setattr("flowfactory.sampling.chains.epoch_steps", lambda *_: range(STEPS))


def looks_seen(folder: Path, target: Any, kind: Any = "completed", **more: Any) -> tuple[list[Any], list[Collected]]:
    """What the trainer compares, and what comes of an epoch."""
    seen = list[Any]()

    def compare(scores: Any, groups: Tensor) -> Tensor:
        seen.append((scores, groups))
        gains = {label: column.diff(dim=1) for label, column in scores.looks.items()}
        return scores.advantages(groups, "sum", "group", gains)

    needs = Needs(looks=kind, trajectory="steps")
    outcomes = epoch(folder, {"r": target}, compare=compare, needs=needs, **more)
    assert all(isinstance(outcome, Collected) for outcome in outcomes), outcomes
    return seen, outcomes  # type: ignore[return-value]


@pytest.mark.usefixtures("looking")
@pytest.mark.parametrize(("kind", "states"), [("completed", 4), ("estimated", 4)])
def test_the_trainer_sees_every_state(tmp_path: Path, kind: str, states: int) -> None:
    seen, (made,) = looks_seen(tmp_path, brightness, kind)
    ((scores, groups),) = seen
    looks, final = scores.looks["r"], scores.values["r"]
    assert looks.shape == (PROMPTS * GROUP, states)
    columns = range(1, 4) if kind == "completed" else range(1, 5)
    for k, column in enumerate(columns):
        close(looks[:, k], final * (1 - column / 8), 1e-6)
    if kind == "completed":
        assert torch.equal(looks[:, -1], final)
    assert made.advantages.shape == (PROMPTS * GROUP, STEPS)
    assert groups.tolist() == [i // GROUP for i in range(PROMPTS * GROUP)]
    assert made.metrics["reward/r/mean"] == pytest.approx(float(final.mean()))


@pytest.mark.usefixtures("looking")
@pytest.mark.parametrize("overlap", [True, False])
def test_any_number_of_processes_sees_the_same(tmp_path: Path, overlap: bool) -> None:
    one, _ = looks_seen(tmp_path, brightness)
    two, _ = looks_seen(tmp_path, brightness, world=2, overlap=overlap)
    assert len(two) == 2
    for scores, _ in two:
        assert torch.equal(scores.looks["r"], one[0][0].looks["r"])


def fails_at(slot: int, column: int, last: Any = ...) -> Any:
    """A reward that raises on one look of one group, or says something else of the last sample there."""
    batches = dict[int, int]()

    def target(batch: list[Sample]) -> list[float | None]:
        at = batch[0].slot
        batches[at] = batches.get(at, -1) + 1
        said: list[float | None] = [float(s.media.double().mean()) for s in batch]
        if (at, batches[at]) != (slot, column):
            return said
        if last is ...:
            raise ValueError("too dark")
        return [*said[:-1], last]

    return target


KEYS = {"r": {"on_error": "drop-group", "max_dropped": 0.2, "micro_batch": GROUP, "retries": 0}}


@pytest.mark.usefixtures("looking")
@pytest.mark.parametrize("how", [..., float("nan")], ids=["raises", "nan"])
@pytest.mark.parametrize(("column", "lost"), [(1, {0}), (2, {0, 1}), (3, {1, 2}), (0, {0, 1, 2})])
def test_a_failed_look_takes_the_steps_beside_it(tmp_path: Path, column: int, lost: set[int], how: Any) -> None:
    """Of its own group alone; a sample that fails takes all of its group."""
    _, (made,) = looks_seen(tmp_path, fails_at(2, column, how), keys=KEYS, overlap=False)
    missing = made.advantages.isnan()
    own = torch.tensor([m.group.slot == 2 for m in made.members])
    assert not missing[~own].any()
    assert (
        {k for k in range(STEPS) if missing[own][:, k].all()}
        == lost
        == {k for k in range(STEPS) if missing[own][:, k].any()}
    )
    assert made.metrics["reward/dropped_groups"] == (column == 0)
    (line,) = (tmp_path / "failures" / "failures.jsonl").read_text().splitlines()
    assert '"slot": 2' in line


@pytest.mark.usefixtures("looking")
@pytest.mark.parametrize(("column", "lost"), [(1, {0}), (2, {0, 1}), (3, {1, 2})])
def test_a_look_without_a_score_takes_the_steps_beside_it_of_one_sample(
    tmp_path: Path, column: int, lost: set[int]
) -> None:
    _, (made,) = looks_seen(tmp_path, fails_at(2, column, None), keys=KEYS, overlap=False)
    missing = {
        (m.group.slot, m.replica, k)
        for m, own in zip(made.members, made.advantages, strict=True)
        for k in range(STEPS)
        if own[k].isnan()
    }
    assert missing == {(2, GROUP - 1, k) for k in lost}


@pytest.mark.usefixtures("looking")
def test_a_group_that_fails_at_several_looks_is_lost_once(tmp_path: Path) -> None:
    """A sixth of the groups is lost, which is allowed; counted by looks it would be more."""

    def target(batch: list[Sample]) -> list[float]:
        if batch[0].slot == 2:
            raise ValueError("too dark")
        return [float(s.media.double().mean()) for s in batch]

    _, (made,) = looks_seen(tmp_path, target, keys=KEYS)
    assert made.metrics["reward/dropped_groups"] == 1
    assert len((tmp_path / "failures" / "failures.jsonl").read_text().splitlines()) == 1


@pytest.mark.usefixtures("looking")
def test_groups_that_are_replaced_are_looked_at_anew(tmp_path: Path) -> None:
    def flat(batch: list[Sample]) -> list[float]:
        return [0.5 if "0" in s.row.prompt or "1" in s.row.prompt else float(s.media.double().mean()) for s in batch]

    seen, (made,) = looks_seen(tmp_path, flat, refill=4)
    ((scores, _),) = seen
    assert made.metrics["refill/groups"] > 0
    for i, member in enumerate(made.members):
        expected = scores.values["r"][i]
        if "0" not in (prompt := f"prompt {member.group.row}") and "1" not in prompt:
            close(scores.looks["r"][i], expected * torch.tensor([7, 6, 5, 8]) / 8, 1e-6)
