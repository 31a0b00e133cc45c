"""DiffusionOPD's loss against the numbers of others' code, gradients included; and who teaches whom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import pytest
import torch
from flowfactory.builtin import CPSSpec, FlowSDESpec, ODESpec
from flowfactory.contracts.scheduler import Scheduler
from flowfactory.contracts.seeds import Draws
from flowfactory.contracts.types import Batch, Rollout, Row
from flowfactory.sampling.rollout import Noise, rollout
from flowfactory.schedulers.cps import CPS
from flowfactory.schedulers.flow_sde import FlowSDE
from flowfactory.schedulers.ode import ODE
from flowfactory_plugin_opd import OPDSpec, Teacher
from flowfactory_plugin_opd.opd import OPD, Term
from support import GRID, Case, FieldPolicy, close, each
from torch import Tensor

NO_DRAWS = Draws([])
NAMES = ("one", "two")


def trainer_of(count: int, **keys: Any) -> OPD:
    """A trainer with so many teachers."""
    teachers = tuple(Teacher(from_="some/where", name=name) for name in NAMES[:count])  # type: ignore[arg-type]
    return OPD(OPDSpec(teachers=teachers, **{"fraction": 1.0, **keys}))


def batch_of(given: dict[str, Any], teachers: int) -> tuple[Batch, int]:
    """The stored step of a case, and which it is; its samples learn from all teachers."""
    x, levels = given["latents"].float(), [given["sigma"], given["sigma_next"]]
    if levels[0] != 1:
        levels = [1.0, *([given["sigma_max"]] if given["sigma_max"] > levels[0] else []), *levels]
    step = len(levels) - 2
    levels += [0.0] if levels[-1] else []
    steps = (step,) if given["eta"] else ()
    scheduler: Scheduler[Any] = FlowSDE(FlowSDESpec(eta=given["eta"])) if steps else ODE(ODESpec())
    latents = dict.fromkeys(range(len(levels)), x)
    made = Rollout(torch.tensor(levels), steps, latents, dict.fromkeys(steps, torch.zeros(len(x))))
    rows = [Row("a", metadata={"teacher": list(NAMES[:teachers])})] * len(x)
    return Batch(made, {}, torch.zeros(len(x)).double(), True, scheduler, rows=rows), step


def guided(v: Tensor, bare: Tensor | None, scale: float | None) -> Tensor:
    return v if bare is None or scale is None else bare.float() + scale * (v - bare.float())


@each("opd")
@pytest.mark.parametrize("distance", ["step", "velocity"])
def test_loss_equals_the_authors(case: Case, distance: str) -> None:
    given, expected = case["inputs"], case["outputs"]
    taught = given["teacher_velocities"].float()
    count = taught.shape[1]
    batch, step = batch_of(given, count)
    bare = given["teacher_uncond"]
    fields = {name: guided(taught[:, i], bare, given["teacher_guidance"]) for i, name in enumerate(NAMES[:count])}
    trainer = trainer_of(count, distance=distance)
    v = given["velocity"].float().clone().requires_grad_()
    policy = FieldPolicy(guided(v, given["velocity_uncond"], given["guidance"]), **fields)
    with torch.no_grad():
        (term,) = (term for term in trainer.terms(policy, batch, NO_DRAWS) if term.step == step)
    loss = trainer.loss(policy, batch, term)
    total = torch.stack(list(loss.parts.values())).sum()
    close(loss.metrics["gap"], expected["loss_velocity_mse"], 1e-12, 1e-5)
    if distance == "velocity":
        close(total, expected["loss_velocity_mse"], 1e-12, 1e-5)
        return
    close(total, expected["loss_exact"], 1e-12, 1e-5)
    (gradient,) = torch.autograd.grad(total, v)
    close(gradient, expected["grad_exact_wrt_velocity"], 1e-7, 1e-4)
    fall = given["sigma"] - given["sigma_next"] if given["eta"] else 1.0
    close(total * fall, expected["loss_code"], 1e-12, 1e-5)  # theirs lacks this division: see docs/papers.md


@each("opd")
def test_losses_of_samples_equal_the_authors(case: Case) -> None:
    """Each sample's own, as the loss of a batch of one."""
    given, expected = case["inputs"], case["outputs"]
    count = given["teacher_velocities"].shape[1]
    whole, step = batch_of(given, count)
    for i, wanted in enumerate(expected["per_sample_exact"]):
        one = torch.tensor([i])
        batch = attrs.evolve(
            whole, rollout=whole.rollout[one], advantages=whole.advantages[one], groups=whole.groups[one],
            rows=whole.rows[i : i + 1],
        )  # fmt: skip
        taught = given["teacher_velocities"].float()[one]
        fields = {
            name: guided(taught[:, k], None if given["teacher_uncond"] is None else given["teacher_uncond"][one],
                         given["teacher_guidance"])
            for k, name in enumerate(NAMES[:count])
        }  # fmt: skip
        bare = None if given["velocity_uncond"] is None else given["velocity_uncond"][one]
        policy = FieldPolicy(guided(given["velocity"].float()[one], bare, given["guidance"]), **fields)
        trainer = trainer_of(count)
        (term,) = (term for term in trainer.terms(policy, batch, NO_DRAWS) if term.step == step)
        close(torch.stack(list(trainer.loss(policy, batch, term).parts.values())).sum(), wanted, 1e-12, 1e-5)


# --- what is learned, and from whom --------------------------------------------------------------------------------


def taken(scheduler: Scheduler[Any], rows: Sequence[Row], steps: tuple[int, ...] = ()) -> Batch:
    """A rollout by `0.3 x`, one sample for each row, conditioned on its number."""
    n = len(rows)
    random = torch.Generator().manual_seed(0)
    noise = Noise(torch.randn(n, 3, 4, generator=random), torch.randn(n, len(steps), 3, 4, generator=random))
    conditions = {"number": torch.arange(float(n))}
    field = FieldPolicy(lambda x, sigma: 0.3 * x)
    made = rollout(field, scheduler, GRID, steps, noise, conditions, torch.float32, "states")
    return Batch(made, conditions, torch.zeros(n).double(), True, scheduler, rows=rows)


def of(*teachers: str | list[str]) -> list[Row]:
    return [Row("a", metadata={"teacher": name}) for name in teachers]


def student(scale: float | Tensor) -> FieldPolicy:
    """A student and two teachers; all are multiples of `x`."""
    return FieldPolicy(lambda x, sigma: scale * x, one=lambda x, sigma: 0.5 * x, two=lambda x, sigma: -0.5 * x)


def losses(trainer: OPD, policy: FieldPolicy, batch: Batch) -> list[tuple[Term, dict[str, Tensor]]]:
    return [(term, dict(trainer.loss(policy, batch, term).parts)) for term in trainer.terms(policy, batch, NO_DRAWS)]


def test_a_row_learns_from_the_teachers_it_names() -> None:
    """Alone or with others in its batch; lists add up."""
    rows = of("one", "two", ["one", "two"], "two")
    trainer, batch = trainer_of(2), taken(ODE(ODESpec()), rows)
    for term, parts in losses(trainer, student(0.1), batch):
        x, fall = batch.rollout.latents[term.step], float(GRID[term.step] - GRID[term.step + 1])
        squared = fall**2 / 2 * x.square().flatten(1).mean(1)
        close(parts["one"], (0.4**2 * squared)[[0, 2]].sum() / 4, 1e-9, 1e-5)
        close(parts["two"], (0.6**2 * squared)[[1, 2, 3]].sum() / 4, 1e-9, 1e-5)


def test_a_row_that_names_nobody_learns_from_the_teacher_of_its_source() -> None:
    rows = [Row("a", source="two"), Row("a", source="two", metadata={"teacher": "one"}), Row("a", source="one")]
    trainer, batch = trainer_of(2), taken(ODE(ODESpec()), rows)
    (term, *_) = trainer.terms(student(0.1), batch, NO_DRAWS)
    assert {name: lesson.pupils.tolist() for name, lesson in term.lessons.items()} == {"one": [1, 2], "two": [0]}


def test_a_teacher_without_pupils_is_asked_as_often_and_adds_nothing() -> None:
    """So that every process calls a divided network as often."""
    counts, w = [], torch.tensor(0.1, requires_grad=True)
    for rows in (of("one", "one"), of("one", "two")):
        policy, batch = student(w), taken(ODE(ODESpec()), rows)
        found = losses(trainer_of(2), policy, batch)
        counts.append({name: policy.calls.count(name) for name in ("current", *NAMES)})
        if "two" not in (row.metadata["teacher"] for row in rows):
            assert all(parts["two"] == 0 and parts["two"].requires_grad for _, parts in found)
    assert counts[0] == counts[1] == {"current": 10, "one": 10, "two": 10}


def test_teachers_are_asked_once_and_before_any_update() -> None:
    trainer, policy, batch = trainer_of(1), student(0.1), taken(ODE(ODESpec()), of("one", "one"))
    terms = trainer.terms(policy, batch, NO_DRAWS)
    assert policy.calls == ["one"] * 10
    for term in (*terms, *terms):
        trainer.loss(policy, batch, term)
    assert policy.calls[10:] == ["current"] * 20


def test_a_teacher_has_its_guidance_and_the_student_the_rollouts() -> None:
    teachers = (Teacher(from_="a/b", name="one", guidance=4.5), Teacher(from_="a/c", name="two"))  # type: ignore[arg-type]
    trainer = OPD(OPDSpec(teachers=teachers))
    policy, batch = student(0.1), taken(ODE(ODESpec()), of("one", "two"))
    trainer.loss(policy, batch, trainer.terms(policy, batch, NO_DRAWS)[0])
    asked = set(zip(policy.calls, policy.guidances, strict=True))
    assert asked == {("one", 4.5), ("two", None), ("current", None)}


@pytest.mark.parametrize(("fraction", "count"), [(0.99, 9), (1.0, 10), (0.5, 5), (0.01, 1)])
def test_of_a_deterministic_trajectory_the_first_steps_are_learned_at(fraction: float, count: int) -> None:
    trainer, batch = trainer_of(1, fraction=fraction), taken(ODE(ODESpec()), of("one"))
    assert list(trainer.steps(batch)) == list(range(count))


@pytest.mark.parametrize("scheduler", [FlowSDE(FlowSDESpec()), CPS(CPSSpec())], ids=["flow-sde", "cps"])
def test_of_a_stochastic_one_those_of_the_window(scheduler: Any) -> None:
    """The loss is the divergence of the Gaussians: their means by the scheduler, its own noise."""
    batch, trainer = taken(scheduler, of("one", "one"), (1, 4)), trainer_of(1)
    found = losses(trainer, student(0.1), batch)
    assert [term.step for term, _ in found] == [1, 4]
    for term, parts in found:
        x, levels = batch.rollout.latents[term.step], GRID[term.step : term.step + 2][:, None].expand(-1, 2)
        mine, theirs = (scheduler.moments_of(w * x, x, *levels, float(GRID[1])) for w in (0.1, 0.5))
        expected = torch.distributions.kl_divergence(
            *(torch.distributions.Normal(m.mean, m.std) for m in (mine, theirs))
        )
        close(parts["one"], expected.mean(), 1e-9, 1e-5)


def test_who_is_as_its_teacher_has_nothing_to_learn() -> None:
    w = torch.tensor(0.5, requires_grad=True)
    for _, parts in losses(trainer_of(1), student(w), taken(ODE(ODESpec()), of("one", "one"))):
        assert float(parts["one"].detach()) == 0
        assert float(torch.autograd.grad(parts["one"], w)[0]) == 0


def test_the_last_steps_count_most_unless_velocities_are_compared() -> None:
    """`D²` of the first and of the last of ten steps with shift 3 are 49 apart."""
    batch = taken(ODE(ODESpec()), of("one"))
    ratios = {}
    for distance in ("step", "velocity"):
        found = [
            float(parts["one"] / batch.rollout.latents[term.step].square().mean())
            for term, parts in losses(trainer_of(1, distance=distance), student(0.1), batch)
        ]
        ratios[distance] = found[-1] / found[0]
    assert ratios == pytest.approx({"step": 49, "velocity": 1}, rel=1e-3)
