"""DRaFT-K (arXiv:2309.17400), carried to flow matching: the gradient of the reward through the last `K` steps.

    x_0 = the sampler's deterministic steps from x_{N-K}, which has no gradient          L = -mean R(decode(x_0))

over all samples. The steps before are those of the rollout. A multistep solver begins anew at `x_{N-K}`.
"""

from __future__ import annotations

from collections.abc import Sequence

from flowfactory import Batch, Draws, Loss, Policy, Trainer, field_of
from torch import Tensor

from flowfactory_plugin_refl import DraftSpec


class Draft(Trainer[DraftSpec]):
    """DRaFT-K; its one term is the number of the first step with a gradient."""

    def terms(self, policy: Policy, batch: Batch, draws: Draws) -> Sequence[int]:
        return [self.spec.learned(len(batch.rollout.sigmas) - 1).start]

    def loss(self, policy: Policy, batch: Batch, term: int) -> Loss:
        reward = policy.reward(policy.decode(sampled(policy, batch, term)), batch.rows)
        return Loss({"reward": -reward.mean()}, {"reward": reward.detach().mean()})


def sampled(policy: Policy, batch: Batch, first: int) -> Tensor:
    """The samples `(B, …)` float32, made again from step `first` on, with a gradient."""
    rollout, scheduler = batch.rollout, batch.scheduler
    x, state, field = rollout.latents[first].float(), scheduler.start(), field_of(policy, batch.conditions)
    levels = rollout.sigmas.to(x.device)[:, None].expand(-1, len(x))
    for step in range(first, len(levels) - 1):
        v = scheduler.look(field, x, levels[step], levels[step + 1])
        x, state = scheduler.advance(state, v, x, levels[step], levels[step + 1])
    return x
