"""What was published and has no plugin, written as a stranger would: with public names, in one local file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import attrs
import torch
from flowfactory import (
    Batch,
    ClippedSpec,
    Draws,
    Loss,
    Moments,
    Needs,
    NoKeys,
    Policy,
    Provides,
    Role,
    Scores,
    StochasticScheduler,
    StochasticSpec,
    Trainer,
    TrainerSpec,
    clipped_loss,
    clipped_terms,
    hookimpl,
    key,
    like_latents,
    noised,
    per_sample_mean,
)
from torch import Tensor
from torch.nn.functional import softplus


@attrs.frozen(eq=False)
class Term:
    """Noise to start from and to compare with `(B, …)`, a level `(B,)`; what the student makes there `(B, …)`."""

    start: Tensor
    noise: Tensor
    level: Tensor
    made: Tensor


class Student(Trainer[Any]):
    """A student of one step: `x = z - v(z)` of pure noise; the fake network learns what it makes."""

    def terms(self, policy: Policy, batch: Batch, draws: Draws) -> Sequence[Term]:
        shape, device = batch.rollout.final.shape[1:], batch.rollout.final.device
        start, noise = (draws.normal(*shape).to(device) for _ in range(2))
        level = 0.05 + 0.9 * draws.uniform().to(device)
        return [Term(start, noise, level, self.student(policy, batch, start))]

    def student(self, policy: Policy, batch: Batch, z: Tensor) -> Tensor:
        return z - policy.velocity(z, torch.ones(len(z), device=z.device), batch.conditions).float()

    def fitted(self, policy: Policy, batch: Batch, term: Term) -> Loss:
        v = policy.velocity(noised(term.made, term.noise, term.level), term.level, batch.conditions).float()
        return Loss({"fake": (v - (term.noise - term.made)).square().mean()})

    def judged(self, policy: Policy, batch: Batch, x: Tensor, level: Tensor, *names: str) -> list[Tensor]:
        found = []
        with torch.no_grad():
            for name in names:
                with policy.using(name):
                    found.append(policy.velocity(x, level, batch.conditions).float())
        return found

    def pulled(self, x: Tensor, term: Term, gap: Tensor, teacher: Tensor, more: Tensor, **said: Tensor) -> Loss:
        """`dL/dx = w s gap + more`, with DMD's `w`."""
        level = like_latents(term.level, x)
        distance = per_sample_mean((level * (teacher - (term.noise - x.detach()))).abs())
        pull = level * gap / like_latents(distance + 1e-6, x) + more
        return Loss({"student": (x * pull).mean()}, {"gap": gap.abs().mean(), **said})


# --- DMD2 with its discriminator -------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class AdversarialSpec(TrainerSpec):
    """Keys of the trainer `adversarial`."""

    weight: float = key("Weight of the discriminator.", default=0.03, ge=0)

    @property
    def needs(self) -> Needs:
        roles = {"fake": Role(steps=2, lr=4.0), "critic": Role(steps=2, lr=4.0)}
        return Needs(source="media", scores=False, reference=True, roles=roles)


class Adversarial(Student):
    """DMD2 (arXiv:2405.14867): distribution matching, and a discriminator between data and what the student makes.

    The critic is a copy of the network, and its logit the mean of what it says. The student's gradient through it is
    taken where its weights are in use.
    """

    def loss(self, policy: Policy, batch: Batch, term: Term) -> Loss:
        if batch.role == "fake":
            return self.fitted(policy, batch, term)
        if batch.role == "critic":
            real = self.logit(policy, batch, noised(batch.rollout.final, term.noise, term.level), term.level)
            made = self.logit(policy, batch, noised(term.made, term.noise, term.level), term.level)
            return Loss({"critic": (softplus(-real) + softplus(made)).mean()}, {"margin": (real - made).mean()})
        x = self.student(policy, batch, term.start)
        at = noised(x.detach(), term.noise, term.level)
        teacher, fake = self.judged(policy, batch, at, term.level, "reference", "fake")
        with policy.using("critic"):
            leaf = at.requires_grad_()
            fooled = softplus(-self.logit(policy, batch, leaf, term.level)).sum()
            (slope,) = torch.autograd.grad(fooled, leaf)
        slope = slope * like_latents(1 - term.level, x) * x[0].numel()
        return self.pulled(x, term, teacher - fake, teacher, self.spec.weight * slope)

    def logit(self, policy: Policy, batch: Batch, x: Tensor, level: Tensor) -> Tensor:
        return 10 * per_sample_mean(policy.velocity(x, level, batch.conditions).float())


# --- TDM-R1 ----------------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class SurrogateSpec(TrainerSpec):
    """Keys of the trainer `surrogate`."""

    weight: float = key("Weight of the learned reward.", default=1.0, ge=0)
    beta: float = key("How sharply it is learned.", default=20.0, gt=0)

    @property
    def needs(self) -> Needs:
        return Needs(reference=True, roles={"fake": Role(steps=2), "surrogate": Role(steps=2)})


class Surrogate(Student):
    """TDM-R1 (arXiv:2603.07700): a reward without gradient is learned by a network, and the student follows that.

    The surrogate learns by comparison what samples say: `R = err_reference - err`, up with the advantage. With
    `R ~ log p / p_reference`, its slope is the difference of the two estimates.
    """

    def loss(self, policy: Policy, batch: Batch, term: Term) -> Loss:
        if batch.role == "fake":
            return self.fitted(policy, batch, term)
        if batch.role == "surrogate":
            clean = batch.rollout.final.float()
            x = noised(clean, term.noise, term.level)
            (known,) = self.judged(policy, batch, x, term.level, "reference")
            v, target = policy.velocity(x, term.level, batch.conditions).float(), term.noise - clean
            reward = per_sample_mean((known - target).square()) - per_sample_mean((v - target).square())
            advantage = batch.advantages.float()
            loss = softplus(-self.spec.beta * advantage * reward).mean()
            return Loss({"surrogate": loss}, {"agrees": (advantage * reward).detach().mean()})
        x = self.student(policy, batch, term.start)
        at = noised(x.detach(), term.noise, term.level)
        teacher, fake, learned = self.judged(policy, batch, at, term.level, "reference", "fake", "surrogate")
        gap = teacher - fake
        return self.pulled(x, term, gap + self.spec.weight * (learned - teacher), teacher, torch.zeros_like(x))


# --- DenseGRPO's noise -----------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class FittedSpec(StochasticSpec):
    """Keys of the scheduler `fitted`."""

    etas: tuple[float, ...] = key(
        "Factors of the noise at evenly spaced levels from noise to data; in between on straight lines.", min_length=2
    )


class Fitted(StochasticScheduler[FittedSpec]):
    """Flow-SDE with a factor of each noise level's own."""

    keeps_marginals: ClassVar[bool] = True

    def moments(self, v: Tensor, x: Tensor, sigma: Tensor, sigma_next: Tensor, ceiling: float) -> Moments:
        D, etas = sigma - sigma_next, torch.tensor(self.spec.etas, device=x.device)
        place = (1 - sigma) * (len(etas) - 1)
        low = place.long().clamp(max=len(etas) - 2)
        g = torch.lerp(etas[low], etas[low + 1], place - low) * torch.sqrt(sigma / (1 - sigma.clamp(max=ceiling)))
        return Moments(x - D * v - g**2 * D / (2 * sigma) * (x + (1 - sigma) * v), g * torch.sqrt(D))


@attrs.frozen(kw_only=True)
class DenseSpec(ClippedSpec):
    """Keys of clipped policy gradients."""

    @property
    def needs(self) -> Needs:
        return attrs.evolve(super().needs, looks="completed")


class Dense(Trainer[DenseSpec]):
    """DenseGRPO (arXiv:2601.20218), which says of each step how often it gained: what its noise is fitted by."""

    gained: Mapping[int, Tensor]

    def advantages(self, scores: Scores, groups: Tensor) -> Tensor:
        gains = {label: looks.diff(dim=1) for label, looks in scores.looks.items()}
        (own,) = gains.values()
        moved = (own != 0).sum(0).clamp(min=1)
        self.gained = dict(enumerate(((own > 0).sum(0) / moved).unbind()))
        return scores.advantages(groups, self.spec.aggregate, self.spec.std, gains)

    def terms(self, policy: Policy, batch: Batch, draws: Draws) -> Sequence[Any]:
        return clipped_terms(policy, batch, self.spec)

    def loss(self, policy: Policy, batch: Batch, term: Any) -> Loss:
        loss = clipped_loss(policy, batch, term, self.spec)
        return Loss(loss.parts, {**loss.metrics, **{f"gained_{k}": share for k, share in self.gained.items()}})


def redness(samples: Sequence[Any]) -> list[float]:
    return [float(s.media[0].mean() - s.media[1:].mean()) for s in samples]


@hookimpl
def flowfactory_trainers() -> Iterable[Provides]:
    yield Provides("adversarial", AdversarialSpec, Adversarial, "DMD2 with its discriminator.")
    yield Provides("surrogate", SurrogateSpec, Surrogate, "TDM-R1: a reward that is learned.")
    yield Provides("dense", DenseSpec, Dense, "DenseGRPO, which says how often each step gained.")


@hookimpl
def flowfactory_schedulers() -> Iterable[Provides]:
    yield Provides("fitted", FittedSpec, Fitted, "Flow-SDE with a factor for each noise level.")


@hookimpl
def flowfactory_rewards() -> Iterable[Provides]:
    yield Provides("redness", NoKeys, redness, "How red an image is.")
