"""DiffusionOPD (arXiv:2605.15055), on-policy distillation: teachers say where the steps of the student should lead.

    L = mean_k (mu - mu_k)² / (2 S²)        a stochastic step: the divergence of the two Gaussians, a mean over elements
    L = mean_k (mu - mu_k)² / 2             a deterministic one, taken for Euler's: D² / 2 (v - v_k)²

at the states `x` of the student's own trajectory; `mu_k` is the mean of the same step by the velocity `v_k(x)` of a
teacher of the sample's row. There is no reward, no ratio and no advantage. Losses of several teachers add up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
import torch
from flowfactory import (
    Batch,
    Conditions,
    Draws,
    Loss,
    Policy,
    Rollout,
    Row,
    Trainer,
    Transition,
    per_sample_mean,
)
from torch import Tensor

from flowfactory_plugin_opd import COLUMN, OPDSpec, Teacher


@attrs.frozen(eq=False)
class Lesson:
    """What a teacher says of a step: the samples `(n,)` that it teaches, by their place, and velocities `(n, …)`."""

    pupils: Tensor
    velocity: Tensor


@attrs.frozen(eq=False)
class Term:
    """One step of the trajectories, and what each teacher says of it; some may have no pupils here."""

    step: int
    lessons: Mapping[str, Lesson]


class OPD(Trainer[OPDSpec]):
    """On-policy distillation, one term per step of the student."""

    def terms(self, policy: Policy, batch: Batch, draws: Draws) -> Sequence[Term]:
        steps = self.steps(batch)
        lessons = {teacher.name: self._ask(policy, batch, teacher, steps) for teacher in self.spec.teachers}
        return [Term(step, {name: own[i] for name, own in lessons.items()}) for i, step in enumerate(steps)]

    def steps(self, batch: Batch) -> Sequence[int]:
        """Which steps to learn at: the stochastic ones, or the first ones of a deterministic trajectory."""
        return batch.rollout.steps or self.spec.learned(len(batch.rollout.sigmas) - 1)

    def loss(self, policy: Policy, batch: Batch, term: Term) -> Loss:
        v = velocity(policy, batch.rollout, term.step, batch.conditions)
        parts, gap = {}, v.new_zeros(())
        for name, lesson in term.lessons.items():
            own = v[lesson.pupils]
            squared = per_sample_mean((own - lesson.velocity) ** 2)
            distance = squared if self.spec.distance == "velocity" else divergence(batch, term.step, own, lesson)
            parts[name] = distance.sum() / len(v)
            gap = gap + squared.detach().sum() / len(v)
        return Loss(parts, {"gap": gap})

    def _ask(self, policy: Policy, batch: Batch, teacher: Teacher, steps: Sequence[int]) -> list[Lesson]:
        """What a teacher says of its pupils' steps. Without any it is asked of one sample all the same: divided
        networks are called as often by every process."""
        pupils = self._pupils(batch, teacher)
        asked = pupils if len(pupils) else pupils.new_zeros(1)
        rollout, conditions = batch.rollout[asked], {name: tensor[asked] for name, tensor in batch.conditions.items()}
        with policy.using(teacher.name):
            said = [velocity(policy, rollout, step, conditions, teacher.guidance) for step in steps]
        return [Lesson(pupils, v[: len(pupils)].clone()) for v in said]

    def _pupils(self, batch: Batch, teacher: Teacher) -> Tensor:
        """The places `(n,)` of the samples that learn from a teacher."""
        count, device = len(batch.groups), batch.groups.device
        if len(self.spec.teachers) == 1:
            return torch.arange(count, device=device)
        found = [i for i, row in enumerate(batch.rows) if teacher.name in named(row)]
        return torch.tensor(found, dtype=torch.long, device=device)


def named(row: Row) -> Sequence[str]:
    """The teachers of a row; that of its source, where it names none."""
    found: str | Sequence[str] = row.metadata.get(COLUMN, row.source)
    return [found] if isinstance(found, str) else found


def velocity(
    policy: Policy, rollout: Rollout, step: int, conditions: Conditions, guidance: float | None = None
) -> Tensor:
    """The policy's velocity `(B, …)` where a step starts, float32."""
    x = rollout.latents[step]
    sigma = rollout.sigmas[step].to(x.device).expand(len(x))
    return policy.velocity(x, sigma, conditions, guidance).float()


def divergence(batch: Batch, step: int, v: Tensor, lesson: Lesson) -> Tensor:
    """How far apart the pupils' velocities `(n, …)` and their teacher's make a step lead, `(n,)`."""
    if step in batch.rollout.steps:
        whole, pupils = Transition.of(batch, step), lesson.pupils
        at = attrs.evolve(whole, x=whole.x[pupils], sigma=whole.sigma[pupils], sigma_next=whole.sigma_next[pupils])
        moments, taught = at.moments(v), at.moments(lesson.velocity)
        return per_sample_mean((moments.mean - taught.mean) ** 2 / (2 * moments.std**2))
    fall = float(batch.rollout.sigmas[step] - batch.rollout.sigmas[step + 1])
    return fall**2 / 2 * per_sample_mean((v - lesson.velocity) ** 2)
