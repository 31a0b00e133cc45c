"""Diffusion-DPO (Wallace et al. 2023, arXiv:2311.12908), for velocities: the chosen sample `w` over the rejected `l`.

With `x = (1 - sigma) x0 + sigma e`, one level `sigma` and one noise `e` for both of a pair:

    err(x0) = mean |v(x) - (e - x0)|²
    r(x0)   = -beta / 2 (err - err_ref)         how much likelier than for the reference: the implicit reward
    L       = mean over groups of -log sigmoid(r(w) - r(l))

The paper's errors are sums and carry `beta T omega`; those of all public code, and ours, are means over the `n`
elements of a latent, so `beta T omega = beta / (2 n)` of ours. A group whose samples are all as good has no pair. It
stays in the mean, with nothing to learn.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from flowfactory import Batch, Draws, Loss, Policy, Trainer, levels_and_noise, noised, per_sample_mean
from torch import Tensor
from torch.nn.functional import logsigmoid

from flowfactory_plugin_dpo import DPOSpec

SAME = 1e-6
"""Advantages of a group that lie no further apart are equal: sums of equal numbers round."""


@attrs.frozen(eq=False)
class Pairs:
    """The places in a batch of each group's chosen and rejected sample, `(G,)` each; `differ` `(G,)` if one is better.

    Groups come as they first appear. Of several best ones the first is chosen, of several worst the last is rejected.
    """

    chosen: Tensor
    rejected: Tensor
    differ: Tensor

    @classmethod
    def of(cls, groups: Tensor, advantages: Tensor) -> Pairs:
        """The pairs of samples with these groups and advantages, `(B,)` each."""
        slots, A = groups.tolist(), advantages.cpu()
        ends = []
        for slot in dict.fromkeys(slots):
            own = torch.tensor([i for i, other in enumerate(slots) if other == slot])
            ranked = own[A[own].argsort(descending=True, stable=True)]
            ends.append((int(ranked[0]), int(ranked[-1])))
        chosen, rejected = torch.tensor(ends).T
        differ = A[chosen] - A[rejected] > SAME
        return cls(*(tensor.to(advantages.device) for tensor in (chosen, rejected, differ)))


@attrs.frozen(eq=False)
class Term:
    """Pairs, the noise level `(G,)` and the noise `(G, …)` of both, and the reference's errors `(2, G)` there."""

    pairs: Pairs
    sigma: Tensor
    noise: Tensor
    reference: Tensor


class DPO(Trainer[DPOSpec]):
    """Diffusion-DPO, one term per noise level; from samples of its own or from stored pairs, as its spec says."""

    def terms(self, policy: Policy, batch: Batch, draws: Draws) -> Sequence[Term]:
        pairs = Pairs.of(batch.groups, batch.advantages)
        drawn = levels_and_noise(self.spec.times, batch.rollout, draws)
        chosen = [(sigma[pairs.chosen], noise[pairs.chosen]) for sigma, noise in drawn]
        with policy.using("reference"):
            return [Term(pairs, *at, errors(policy, batch, pairs, *at, self.spec.guidance)) for at in chosen]

    def loss(self, policy: Policy, batch: Batch, term: Term) -> Loss:
        found = errors(policy, batch, term.pairs, term.sigma, term.noise, self.spec.guidance)
        chosen, rejected = -self.spec.beta / 2 * (found - term.reference)
        loss = torch.where(term.pairs.differ, -logsigmoid(chosen - rejected), 0.0).mean()
        return Loss({"policy": loss}, preferences(chosen.detach(), rejected.detach(), term.pairs.differ))


def errors(policy: Policy, batch: Batch, pairs: Pairs, sigma: Tensor, noise: Tensor, guidance: float) -> Tensor:
    """The mean squared errors `(2, G)`, float64, of the velocities of chosen and rejected samples.

    Elements are float32. Means are float64, for the loss is made of differences of differences of them.
    """
    both = torch.cat([pairs.chosen, pairs.rejected])
    x0, sigma, noise = batch.rollout.final.float()[both], torch.cat([sigma, sigma]), torch.cat([noise, noise])
    conditions = {name: tensor[both] for name, tensor in batch.conditions.items()}
    v = policy.velocity(noised(x0, noise, sigma), sigma, conditions, guidance)
    return per_sample_mean(((v.float() - (noise - x0)) ** 2).double()).reshape(2, -1)


def preferences(chosen: Tensor, rejected: Tensor, differ: Tensor) -> dict[str, Tensor]:
    """The share of groups that have a pair; of their implicit rewards `(G,)` the means, and how many are in order."""
    metrics = {"pairs": differ.double().mean()}
    if differ.any():
        chosen, rejected = chosen[differ], rejected[differ]
        metrics["implicit_accuracy"] = (chosen > rejected).double().mean()
        metrics |= {"reward_chosen": chosen.mean(), "reward_rejected": rejected.mean()}
        metrics["reward_margin"] = (chosen - rejected).mean()
    return metrics
