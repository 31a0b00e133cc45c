"""Rewards to advantages: how much better a sample is than the others of its group.

With `r_k` the rewards, `m_k` their group means, `w_k` their weights and `std` taken per group or over the whole epoch:

    sum:   A = sum_k w_k (r_k - m_k) / (std(sum_k w_k r_k) + 1e-4)                     Flow-GRPO, arXiv:2505.05470
    gdpo:  P = sum_k w_k (r_k - m_k) / (std(r_k) + 1e-4),   A = P / std(P) over all    GDPO, arXiv:2601.05242

All statistics are two-pass, in float64, of the population (ddof 0). A group of equal rewards gets exactly 0.
A missing score (NaN) counts as its group's mean, so it neither helps nor hurts; a sample none of whose rewards apply
gets NaN. Rewards of weight 0 are only watched. GDPO's `P` has mean 0 already, so only its spread is divided out.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import torch
from torch import Tensor

from flowfactory.contracts.types import Lineage


@attrs.frozen
class Scale:
    """How a spread becomes a divisor: `max(std, floor) + eps`, the standard deviation with `ddof` lost degrees."""

    eps: float = 0.0
    floor: float = 0.0
    ddof: int = 0

    def of(self, x: Tensor) -> Tensor:
        """The divisor `()` for values `(n,)`, of which NaN takes no part."""
        present = x[~x.isnan()]
        variance = (present - present.mean()).square().sum() / (len(present) - self.ddof)
        return variance.sqrt().clamp(min=self.floor) + self.eps


WITHIN = Scale(eps=1e-4)
ACROSS = Scale(floor=1e-6)


@attrs.frozen(eq=False)
class Scores:
    """Rewards of one epoch, over all processes; see the contract of this name."""

    values: Mapping[str, Tensor]
    weights: Mapping[str, float]
    looks: Mapping[str, Tensor] = attrs.field(factory=dict)
    lineage: Lineage | None = None

    def advantages(
        self, groups: Tensor, aggregate: str, std: str, values: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Advantages `(N,)` float64, or `(N, n)`; `groups` `(N,)` says which samples compare."""
        values = self.values if values is None else values
        if all(column.dim() == 1 for column in values.values()):
            return advantages(values, self.weights, groups, aggregate, std)
        steps = zip(*(column.unbind(1) for column in values.values()), strict=True)
        each = [dict(zip(values, columns, strict=True)) for columns in steps]
        return torch.stack([advantages(one, self.weights, groups, aggregate, std) for one in each], dim=1)


def advantages(
    values: Mapping[str, Tensor], weights: Mapping[str, float], groups: Tensor, aggregate: str, std: str
) -> Tensor:
    """Advantages `(N,)` float64 of rewards `(N,)` by label; `groups` `(N,)` says which samples compare.

    Args:
        aggregate: "sum" or "gdpo". std: "group" or "global".
    """
    return scaled(values, weights, groups, aggregate, std, WITHIN, ACROSS)


def scaled(
    values: Mapping[str, Tensor],
    weights: Mapping[str, float],
    groups: Tensor,
    aggregate: str,
    std: str,
    within: Scale,
    across: Scale,
) -> Tensor:
    """`advantages` with other divisors: `within` a group (or the epoch), `across` GDPO's whole batch."""
    counted = [label for label in values if weights[label] != 0]
    parts = {label: _centred(values[label].double(), groups) for label in counted}
    if not parts:
        return torch.full(groups.shape, torch.nan, dtype=torch.float64)
    if aggregate == "sum":
        centred = _total([weights[label] * parts[label][0] for label in counted])
        levels = _total([weights[label] * parts[label][1] for label in counted])
        return centred / _divisor(centred, levels, groups, std, within)
    each = [weights[label] * c / _divisor(c, m, groups, std, within) for label, (c, m) in parts.items()]
    total = _total(each)
    return total / across.of(total)


def _centred(x: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Deviations from the group's mean, and that mean, both `(N,)`; the epoch's mean where a group has no value."""
    centred = torch.full_like(x, torch.nan)
    means = torch.full_like(x, _mean(x))
    for group in set(groups.tolist()):
        rows = groups == group
        if not x[rows].isnan().all():
            first = x[rows][~x[rows].isnan()][0]
            shifted = x[rows] - first  # so that equal values leave no rounding residue
            offset = _mean(shifted)
            centred[rows], means[rows] = shifted - offset, first + offset
    return centred, means


def _mean(x: Tensor) -> float:
    return float(x.nanmean())


def _total(parts: list[Tensor]) -> Tensor:
    """The sum `(N,)` over rewards, NaN counting 0; NaN where all are NaN."""
    stacked = torch.stack(parts)
    return stacked.nansum(0).masked_fill(stacked.isnan().all(0), torch.nan)


def _divisor(centred: Tensor, means: Tensor, groups: Tensor, std: str, scale: Scale) -> Tensor:
    """The divisor of each sample `(N,)`."""
    if std == "global":
        return scale.of(centred + means).expand(len(groups))
    divisor = torch.full_like(centred, torch.nan)
    for group in set(groups.tolist()):
        rows = groups == group
        divisor[rows] = scale.of(centred[rows])
    return divisor
