"""What DMD2 and TDM share: a step of the student's own trajectory, and what others say of where it leads."""

from __future__ import annotations

import attrs
import torch
from flowfactory import Batch, Draws, Policy, like_latents
from torch import Tensor

from flowfactory_plugin_dmd import FAKE


@attrs.frozen(eq=False)
class Start:
    """A step of each sample: from `x` `(B, …)` float32 at `sigma` `(B,)` to `sigma_next` `(B,)`."""

    x: Tensor
    sigma: Tensor
    sigma_next: Tensor

    @classmethod
    def drawn(cls, batch: Batch, draws: Draws) -> Start:
        """Any step of each sample's trajectory."""
        rollout, count = batch.rollout, len(batch.rollout.sigmas) - 1
        steps = (draws.uniform() * count).long()
        x = torch.stack([rollout.latents[step][i] for i, step in enumerate(steps.tolist())]).float()
        return cls(x, rollout.sigmas[steps].to(x.device), rollout.sigmas[steps + 1].to(x.device))

    def made(self, policy: Policy, batch: Batch) -> tuple[Tensor, Tensor]:
        """The student's data and noise there, `X0` and `X1`, each `(B, …)` float32."""
        v, level = policy.velocity(self.x, self.sigma, batch.conditions).float(), like_latents(self.sigma, self.x)
        return self.x - level * v, self.x + (1 - level) * v


def judged(policy: Policy, batch: Batch, x: Tensor, sigma: Tensor, guidance: float) -> tuple[Tensor, Tensor]:
    """The velocities `(B, …)` float32 of the teacher and of the fake network, without gradients."""
    with torch.no_grad():
        with policy.using("reference"):
            teacher = policy.velocity(x, sigma, batch.conditions, guidance).float()
        with policy.using(FAKE):
            fake = policy.velocity(x, sigma, batch.conditions).float()
    return teacher, fake


def pulled(x: Tensor, gradient: Tensor, value: Tensor) -> Tensor:
    """A number that is `value`, and whose gradient with respect to `x` is `gradient`."""
    return ((x - x.detach()) * gradient).sum() + value
