"""What the clipped trainers share: PPO's objective, and the divergence from the reference."""

from __future__ import annotations

import torch
from flowfactory import Batch, Policy, Transition, per_sample_mean
from torch import Tensor

from flowfactory_plugin_grpo import ClippedSpec


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
def ratio_metrics(log_ratio: Tensor, spec: ClippedSpec) -> dict[str, Tensor]:
    """How far the policy has moved from the one that sampled."""
    ratio = log_ratio.exp()
    outside = (ratio > 1 + spec.clip_high) | (ratio < 1 - spec.clip_low)
    return {
        "ratio": ratio.mean(),
        "ratio_deviation": (ratio - 1).abs().max(),
        "clip_fraction": outside.float().mean(),
        "approx_kl": 0.5 * (log_ratio**2).mean(),
    }
