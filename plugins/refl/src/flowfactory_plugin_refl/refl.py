"""ReFL (arXiv:2304.05977), carried to flow matching: the gradient of the reward through one late step.

    X0 = x - sigma v(x, sigma)          L = scale mean max(threshold - R(decode(X0)), 0)

at the state `x` before step `m` of the rollout, which has no gradient; `m` is drawn for each sample among the last
`fraction` of all steps. `X0` is what the velocity there says the data are. The authors tell their network the number
`m` for its time; here it is told the noise level. Their paper's loss of pretraining is not in their code, nor here.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from flowfactory import Batch, Draws, Loss, Policy, Trainer, like_latents
from torch import Tensor

from flowfactory_plugin_refl import ReFLSpec


@attrs.frozen(eq=False)
class State:
    """Where the samples were before the step that was drawn for each: `x` `(B, …)` float32, `sigma` `(B,)`."""

    x: Tensor
    sigma: Tensor


class ReFL(Trainer[ReFLSpec]):
    """ReFL, with one step for each sample."""

    def terms(self, policy: Policy, batch: Batch, draws: Draws) -> Sequence[State]:
        steps = self.spec.learned(len(batch.rollout.sigmas) - 1)
        return [at(batch, steps[-1] - (draws.uniform() * len(steps)).long())]

    def loss(self, policy: Policy, batch: Batch, term: State) -> Loss:
        v = policy.velocity(term.x, term.sigma, batch.conditions).float()
        x0 = term.x - like_latents(term.sigma, term.x) * v
        reward = policy.reward(policy.decode(x0), batch.rows)
        lacking = (self.spec.threshold - reward).relu()
        metrics = {"reward": reward.detach().mean(), "saturated": (lacking.detach() == 0).float().mean()}
        return Loss({"reward": self.spec.scale * lacking.mean()}, metrics)


def at(batch: Batch, steps: Tensor) -> State:
    """The state of each sample before a step of its own, by their numbers `(B,)`."""
    rollout = batch.rollout
    x = torch.stack([rollout.latents[step][i] for i, step in enumerate(steps.tolist())]).float()
    return State(x, rollout.sigmas[steps].to(x.device))
