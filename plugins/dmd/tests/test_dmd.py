"""DMD2's and TDM's losses against the numbers of others' code, gradients included; and what a student is asked."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from flowfactory.builtin import ODESpec
from flowfactory.contracts.seeds import Draws
from flowfactory.contracts.types import Batch, Rollout
from flowfactory.schedulers.ode import ODE
from flowfactory_plugin_dmd import FAKE, DMDSpec, TDMSpec
from flowfactory_plugin_dmd import dmd as dmds
from flowfactory_plugin_dmd import tdm as tdms
from flowfactory_plugin_dmd.dmd import DMD
from flowfactory_plugin_dmd.student import Start
from flowfactory_plugin_dmd.tdm import TDM, between, mixed
from support import GRID, Case, FieldPolicy, close, each
from torch import Tensor


@attrs.frozen(eq=False)
class Given(Start):
    """A start from which a student has made what a case says."""

    data: Tensor
    noise: Tensor

    def made(self, policy: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.data, self.noise


def batch_of(x: Tensor, role: str = "current") -> Batch:
    rollout = Rollout(GRID, (), dict.fromkeys(range(len(GRID)), x), {})
    return Batch(rollout, {}, torch.zeros(len(x)).double(), True, ODE(ODESpec()), role=role)


def given_start(data: Tensor, noise: Tensor, sigma_next: Tensor) -> Given:
    return Given(data.detach(), torch.ones_like(sigma_next), sigma_next, data, noise)


def guided(case: Case) -> Tensor:
    v, bare, scale = (case["inputs"][n] for n in ("velocity_teacher", "velocity_teacher_negative", "teacher_guidance"))
    taught: Tensor = v.float() if bare is None else bare + scale * (v - bare)
    return taught


def gradient(loss: Any, of: Tensor) -> Tensor:
    return torch.autograd.grad(sum(loss.parts.values()), of)[0]  # type: ignore[arg-type]


DMD_CASES = each("distribution_matching", lambda case: case["name"].startswith("dmd2"))
TDM_CASES = each("distribution_matching", lambda case: case["name"].startswith("tdm"))


@DMD_CASES
def test_the_student_of_dmd_equals_fastgens(case: Case) -> None:
    given, expected = case["inputs"], case["outputs"]
    x = given["generated"].float().clone().requires_grad_()
    start = given_start(x, given["noise"], torch.zeros(len(x)))
    policy = FieldPolicy(torch.zeros(1), reference=guided(case), fake=given["velocity_fake"].float())
    term = dmds.Term(given["noise"].float(), given["sigma"].float(), start, None)
    loss = DMD(DMDSpec(guidance=3.5)).loss(policy, batch_of(x), term)
    close(loss.parts["student"], expected["generator_loss"], 1e-7, 1e-5)
    close(gradient(loss, x), expected["grad_generated"], 1e-7, 1e-4)
    assert (policy.calls, policy.guidances) == (["reference", FAKE], [3.5, None])


@DMD_CASES
def test_the_fake_network_of_dmd_equals_fastgens(case: Case) -> None:
    given, expected = case["inputs"], case["outputs"]
    v = given["velocity_fake"].float().clone().requires_grad_()
    x, policy = given["generated"].float(), FieldPolicy(torch.zeros(1), fake=v)
    term = dmds.Term(given["noise"].float(), given["sigma"].float(), given_start(x, x, torch.zeros(len(x))), x)
    with policy.using(FAKE):
        loss = DMD(DMDSpec(fake_loss="velocity")).loss(policy, batch_of(x, FAKE), term)
        data = DMD(DMDSpec()).loss(policy, batch_of(x, FAKE), term)
    close(loss.parts[FAKE], expected["fake_loss"], 1e-7, 1e-5)
    close(gradient(loss, v), expected["grad_fake_velocity"], 1e-7, 1e-4)
    close(data.parts[FAKE], (expected["x0_fake"] - x).square().mean(), 1e-6, 1e-5)


@TDM_CASES
def test_tdm_equals_flow_factory(case: Case) -> None:
    given, expected = case["inputs"], case["outputs"]
    x = given["clean"].float().clone().requires_grad_()
    n, m, s, fresh = (given[key].float() for key in ("model_noise", "sigma_mid", "sigma", "fresh_noise"))
    noise, ratio = mixed(n, fresh, s, m, given["importance_clip"])
    close(noise, expected["mixed_noise"], 2e-6)
    close(ratio, expected["importance"], 1e-6, 1e-5)
    width = given["huber_c"] if given["huber"] else 0.0
    trainer = TDM(TDMSpec(huber=width, most=given["snr_gamma"], importance=given["importance_clip"]))
    fake = given["velocity_fake"].float().clone().requires_grad_()
    policy = FieldPolicy(torch.zeros(1), reference=given["velocity_teacher"].float(), fake=fake)
    start = given_start(x, n, m)
    loss = trainer.loss(policy, batch_of(x), tdms.Term(start, s, fresh, None))
    close(loss.parts["student"], expected["generator_loss"], 1e-6, 1e-5)
    close(gradient(loss, x), expected["grad_clean"], 1e-7, 1e-4)
    with policy.using(FAKE):
        learned = trainer.loss(policy, batch_of(x, FAKE), tdms.Term(start, s, fresh, (x.detach(), n)))
    close(learned.parts[FAKE], expected["fake_loss"], 1e-6, 1e-5)
    by_data = gradient(learned, fake) / -s.reshape(-1, *(1,) * (x.dim() - 1))
    close(by_data, expected["grad_fake_x0"], 1e-7, 1e-4)


TRAINERS = pytest.mark.parametrize("trainer", [DMD(DMDSpec()), TDM(TDMSpec())], ids=["dmd", "tdm"])


@TRAINERS
def test_a_fake_network_that_is_the_teacher_moves_nobody(trainer: Any) -> None:
    w = torch.tensor(0.3, requires_grad=True)
    field = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    policy = FieldPolicy(lambda x, sigma: w * x, reference=field, fake=field)
    batch = batch_of(torch.randn(6, 4, generator=torch.Generator().manual_seed(2)))
    (term,) = trainer.terms(policy, batch, Draws([(0, "a", i) for i in range(6)]))
    loss = trainer.loss(policy, batch, term)
    assert float(gradient(loss, w)) == 0
    assert float(loss.parts["student"]) == 0


@TRAINERS
def test_it_starts_from_any_step_and_the_fake_network_sees_what_the_student_made(trainer: Any) -> None:
    n = 200
    states = {i: torch.full((n, 2), float(i)) for i in range(len(GRID))}
    batch = attrs.evolve(batch_of(torch.zeros(n, 2), FAKE), rollout=Rollout(GRID, (), states, {}))
    policy = FieldPolicy(lambda x, sigma: torch.ones_like(x))
    (term,) = trainer.terms(policy, batch, Draws([(0, "a", i) for i in range(n)]))
    steps = term.start.x[:, 0].long()
    assert set(steps.tolist()) == set(range(10))
    assert torch.equal(term.start.sigma, GRID[steps])
    assert torch.equal(term.start.sigma_next, GRID[steps + 1])
    made = term.made[0] if isinstance(term.made, tuple) else term.made
    close(made, states[0] + (steps - GRID[steps])[:, None], 1e-5)
    assert policy.calls == ["current"]


@pytest.mark.parametrize("levels", ["uniform", "logit-normal"])
@pytest.mark.parametrize("interval", ["step", "above"])
def test_tdm_compares_within_the_step_or_above_its_end(interval: Any, levels: Any) -> None:
    trainer, draws = TDM(TDMSpec(interval=interval, levels=levels)), Draws([(0, "a", i) for i in range(400)])
    (term,) = trainer.terms(FieldPolicy(torch.zeros(1)), batch_of(torch.zeros(400, 2)), draws)
    inside = term.level < term.start.sigma
    assert bool(((term.level > term.start.sigma_next) & (term.level < 1)).all())
    assert bool(inside.all()) == (interval == "step")


def test_a_level_between_0_and_1_is_logit_normal() -> None:
    u = torch.linspace(0, 1, 2001)
    levels = between(torch.zeros(2001), torch.ones(2001), u, normal=True)
    close(levels.logit().std(), torch.tensor(1.0), 0.02)
    close(levels.median(), torch.tensor(0.5), 1e-3)


def test_the_noise_of_a_step_to_data_is_fresh() -> None:
    fresh, n = torch.randn(3, 4), torch.randn(3, 4)
    noise, ratio = mixed(n, fresh, torch.tensor([0.2, 0.5, 0.9]), torch.zeros(3), 20.0)
    close(noise, fresh, 1e-6)
    close(ratio, torch.ones(3), 1e-6)


def test_needs() -> None:
    needs = DMDSpec(fake_steps=3, fake_lr=2.0).needs
    assert (needs.scores, needs.trajectory, needs.reference, needs.density) == (False, "states", True, "none")
    (role,) = needs.roles.values()
    assert (role.steps, role.lr) == (3, 2.0)


def test_one_level_only() -> None:
    with pytest.raises(ValueError, match="`count` is 1"):
        DMDSpec(times=attrs.evolve(DMDSpec().times, count=2))
