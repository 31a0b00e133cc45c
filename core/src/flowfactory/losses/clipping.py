"""PPO's objective on stochastic steps, and the divergence from the reference: what clipped policy gradients share.

    rho = p_theta(x' | x) / p_old(x' | x)
    L   = w max(-A rho, -A clip(rho, 1 - low, 1 + high)) + beta KL(p_theta || p_ref)

per stored step; `p(x' | x)` is the scheduler's Gaussian, its log-density averaged over elements.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from flowfactory.contracts.scheduler import per_sample_mean
from flowfactory.contracts.trainer import Policy
from flowfactory.contracts.types import Batch, Loss
from flowfactory.losses.specs import ClippedSpec, RatioSpec
from flowfactory.losses.transition import Transition


@attrs.frozen(eq=False)
class Old:
    """A stochastic step under the weights that sampled it: log-probability `(B,)`, and mean `(B, …)`."""

    logprob: Tensor
    mean: Tensor


def replayed(policy: Policy, batch: Batch, at: Transition, spec: RatioSpec) -> Old | None:
    """A step computed again, in the batch shape in which it is trained.

    `None` where this is not needed: the numbers of sampling are used, or the first update is next, which computes the
    same ones.
    """
    if spec.old == "sampled" or batch.on_policy:
        return None
    v = at.velocity(policy, batch)
    return Old(at.score(v), at.moments(v).mean)


def old_logprob(at: Transition, logprob: Tensor, old: Old | None, spec: RatioSpec) -> Tensor:
    """The log-probability `(B,)` that the new one is compared with."""
    if old is not None:
        return old.logprob
    return at.logprob if spec.old == "sampled" else logprob.detach()


def old_mean(batch: Batch, at: Transition, mean: Tensor, old: Old | None) -> Tensor:
    """The mean `(B, …)` that the new one is compared with; in the first update it is the new one, detached.

    Raises:
        ValueError: none was kept: the trainer has to set `Needs.old`.
    """
    if old is not None:
        return old.mean
    if batch.on_policy:
        return mean.detach()
    if at.mean is None:
        raise ValueError("no means were kept from sampling: the trainer's Needs have to say old='means'")
    return at.mean


@attrs.frozen(eq=False)
class ClippedTerm:
    """One stochastic step, the reference's velocity `(B, …)` on it if the divergence has a weight, and its replayed
    numbers, if it was replayed."""

    step: int
    reference: Tensor | None
    old: Old | None = None


def clipped_terms(policy: Policy, batch: Batch, spec: ClippedSpec) -> Sequence[ClippedTerm]:
    """A term for each stochastic step."""
    at = {step: Transition.of(batch, step) for step in batch.rollout.steps}
    return [
        ClippedTerm(step, reference_velocity(policy, batch, own, spec.kl_beta), replayed(policy, batch, own, spec))
        for step, own in at.items()
    ]


def clipped_loss(policy: Policy, batch: Batch, term: ClippedTerm, spec: ClippedSpec, *weights: Tensor | float) -> Loss:
    """The loss of a step, its policy part times the `weights`, of which each is a number or `(B,)`."""
    at = Transition.of(batch, term.step)
    v = at.velocity(policy, batch)
    logprob = at.score(v)
    log_ratio = logprob - old_logprob(at, logprob, term.old, spec)
    surrogate = clipped(log_ratio.exp(), batch.at(term.step), spec)
    for weight in weights:
        surrogate = weight * surrogate
    parts, metrics = {"policy": surrogate.mean()}, ratio_metrics(log_ratio.detach(), spec, batch.on_policy)
    if term.reference is not None:
        kl = divergence(at, spec.kl, v, term.reference)
        parts["kl"], metrics["kl"] = spec.kl_beta * kl, kl.detach()
    return Loss(parts, metrics)


def divergence(at: Transition, kind: str, v: Tensor, v_ref: Tensor) -> Tensor:
    """How far `v` is from `v_ref` on a step, averaged over elements and batch; see `ClippedSpec.kl`."""
    if kind == "v":
        return per_sample_mean((v.float() - v_ref.float()) ** 2).mean()
    moments, reference = at.moments(v), at.moments(v_ref)
    squared = (moments.mean - reference.mean) ** 2
    return per_sample_mean(squared / (2 * moments.std**2) if kind == "exact" else squared).mean()


def reference_velocity(policy: Policy, batch: Batch, at: Transition, kl_beta: float) -> Tensor | None:
    """The reference weights' velocity, or `None` when the divergence has no weight."""
    if not kl_beta:
        return None
    with policy.using("reference"):
        return at.velocity(policy, batch)


def clipped(ratio: Tensor, advantages: Tensor, spec: ClippedSpec) -> Tensor:
    """PPO's pessimistic loss `(B,)`: `max(-A ratio, -A clip(ratio))`, with `A` clipped too."""
    A = advantages.to(ratio).clamp(-spec.adv_clip, spec.adv_clip)
    return torch.maximum(-A * ratio, -A * ratio.clamp(1 - spec.clip_low, 1 + spec.clip_high))


@torch.no_grad()
def ratio_metrics(log_ratio: Tensor, spec: ClippedSpec, first: bool = False) -> dict[str, Tensor]:
    """How far the policy has moved from the one that sampled.

    Args:
        first: no update has been made yet, so any difference is rounding; a separate metric has it, as a share of
            the narrower clip width.
    """
    ratio = log_ratio.exp()
    outside = (ratio > 1 + spec.clip_high) | (ratio < 1 - spec.clip_low)
    deviation = (ratio - 1).abs().max()
    apart = {"first_deviation": deviation / min(spec.clip_low, spec.clip_high)} if first else {}
    return {
        **apart,
        "ratio": ratio.mean(),
        "ratio_deviation": deviation,
        "clip_fraction": outside.float().mean(),
        "approx_kl": 0.5 * (log_ratio**2).mean(),
    }
