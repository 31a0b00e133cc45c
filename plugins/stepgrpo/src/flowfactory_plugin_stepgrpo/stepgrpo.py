"""Credit by step: DenseGRPO (arXiv:2601.20218), Stepwise-Flow-GRPO (arXiv:2603.28718), TP-GRPO (arXiv:2602.06422).

With `r_0` what the start scores and `r_k` what the state after `k` of the n stochastic steps does,

    d_k = r_k - r_(k-1)                          a step's gain; of a sample they add up to r_n - r_0
    A_k = (d_k - mean) / (std + 1e-4)            over the group, each step by itself
    L   = max(-A_k rho_k, -A_k clip(rho_k))      Flow-GRPO's, at step k

A state scores by the sample that it becomes without further noise (DenseGRPO, TP-GRPO) or by its estimate of the data
(Stepwise-Flow-GRPO). TP-GRPO: with `D = r_n - r_0`, a step that leads where `D` does after one that did not is a turn,
and is worth `d_k + scale D`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from flowfactory import Batch, ClippedTerm, Draws, Loss, Policy, Scores, Trainer, clipped_loss, clipped_terms
from torch import Tensor

from flowfactory_plugin_stepgrpo import StepGRPOSpec, Turning


class StepGRPO(Trainer[StepGRPOSpec]):
    """Flow-GRPO with an advantage for each step, one term per stochastic step."""

    def advantages(self, scores: Scores, groups: Tensor) -> Tensor:
        worth = {label: worth_of(looks, self.spec.turning) for label, looks in scores.looks.items()}
        return scores.advantages(groups, self.spec.aggregate, self.spec.std, worth)

    def terms(self, policy: Policy, batch: Batch, draws: Draws) -> Sequence[ClippedTerm]:
        return clipped_terms(policy, batch, self.spec)

    def loss(self, policy: Policy, batch: Batch, term: ClippedTerm) -> Loss:
        return clipped_loss(policy, batch, term, self.spec)


def worth_of(looks: Tensor, turning: Turning) -> Tensor:
    """What each step is worth `(N, n)`, of what its trajectory's states score `(N, n+1)`."""
    gains = looks.diff(dim=1)
    if turning.points == "none":
        return gains
    whole = (looks[:, -1:] - looks[:, :1]).expand_as(gains)
    main, added = gains, whole if turning.bonus == "whole" else looks[:, -1:] - looks[:, :-1]
    if turning.main == "whole":
        main, added = added, main
    turns, added = turns_of(looks, gains, whole, turning), turning.scale * added
    worth = torch.where(turns & turning.replace, added, main + turns * added)
    before = torch.cat([gains[:, :1], gains[:, :-1]], dim=1)
    return worth + 0 * (whole + before)  # not a number where what decides on a turn is none


def turns_of(looks: Tensor, gains: Tensor, whole: Tensor, turning: Turning) -> Tensor:
    """Which steps are turns `(N, n)`."""
    signs, ahead = gains.sign(), looks[:, -1:] - looks[:, 1:]
    if turning.points == "every":
        later = signs[:, 1:] * signs[:, :-1] < 0
    else:
        towards = signs * whole.sign()
        later = (towards[:, 1:] > 0) & (towards[:, :-1] < 0)
    first = (signs * whole.sign() > 0)[:, :1] & turning.first
    turns = torch.cat([first, later], dim=1)
    return turns & (signs == ahead.sign()) if turning.points == "consistent" else turns
