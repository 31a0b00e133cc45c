"""TempFlow-GRPO (He et al. 2025, arXiv:2508.04324): branches that differ in the noise of one step, and in nothing else.

From a trajectory without noise, `width` branches leave at each stochastic step k, `x' = mean_k + S_k z`, and end
without further noise. Those of step k, of all starts of a prompt, are compared:

    A = (r - mean) / (std + 1e-4)
    L = 2.25 S_k max(-A rho, -A clip(rho, 1 - low, 1 + high)) + beta KL(p_theta || p_ref)

with `rho = p_theta(x' | x_k) / p_old(x' | x_k)`. What a branch scores is the doing of its one step, and where there is
more noise, there is more to be decided.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from flowfactory import (
    Batch,
    ClippedTerm,
    Draws,
    Loss,
    Policy,
    Scores,
    Trainer,
    Transition,
    clipped_loss,
    clipped_terms,
)
from torch import Tensor

from flowfactory_plugin_tempflow import TempFlowSpec


class TempFlow(Trainer[TempFlowSpec]):
    """TempFlow-GRPO, one term per branch: its step."""

    def advantages(self, scores: Scores, groups: Tensor) -> Tensor:
        """Those of each step by themselves, whose spread is then its own."""
        assert scores.lineage is not None
        found = torch.full(groups.shape, torch.nan, dtype=torch.float64)
        for step in scores.lineage.steps.unique():
            own = scores.lineage.steps == step
            values = {label: column[own] for label, column in scores.values.items()}
            found[own] = scores.advantages(groups[own], self.spec.aggregate, self.spec.std, values)
        return found

    def terms(self, policy: Policy, batch: Batch, draws: Draws) -> Sequence[ClippedTerm]:
        return clipped_terms(policy, batch, self.spec)

    def loss(self, policy: Policy, batch: Batch, term: ClippedTerm) -> Loss:
        weight = self.spec.noise_weight
        weights = [] if weight is None else [weight * Transition.of(batch, term.step).std()]
        return clipped_loss(policy, batch, term, self.spec, *weights)
