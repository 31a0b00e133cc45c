"""What the scores and the samples of an epoch say of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


def score_metrics(prefix: str, scores: Mapping[str, Tensor]) -> dict[str, float]:
    """`<prefix>/<label>/mean` and `/std` of scores `(N,)`, leaving out NaN."""
    metrics = {}
    for label, values in scores.items():
        known = values[~values.isnan()]
        if len(known):
            metrics[f"{prefix}/{label}/mean"] = float(known.mean())
            metrics[f"{prefix}/{label}/std"] = float(known.std(correction=0))
    return metrics


def group_metrics(scores: Mapping[str, Tensor], groups: Tensor) -> dict[str, float]:
    """Signs that a reward has no more to teach: `reward/<label>/saturation` and `reward/<label>/zero_std_groups`.

    Saturation is the share of samples tied at the highest score of the epoch; a single best one is no tie.
    """
    metrics = {}
    for label, values in scores.items():
        known = values[~values.isnan()]
        if len(known):
            ties = int((known == known.max()).sum())
            metrics[f"reward/{label}/saturation"] = ties / len(known) if ties > 1 else 0.0
            metrics[f"reward/{label}/zero_std_groups"] = zero_std_groups(values, groups)
    return metrics


def source_metrics(scores: Mapping[str, Tensor], sources: Sequence[str], infix: str = "") -> dict[str, float]:
    """`source/<source>/<infix><label>/mean` of scores `(N,)`, leaving out NaN; nothing where sources have no names."""
    metrics = {}
    for source in sorted({*sources} - {""}):
        own = torch.tensor([one == source for one in sources])
        for label, values in scores.items():
            known = values[own & ~values.isnan()]
            if len(known):
                metrics[f"source/{source}/{infix}{label}/mean"] = float(known.mean())
    return metrics


def zero_std_groups(values: Tensor, groups: Tensor) -> float:
    """Share of the groups with a value in which no sample is better than another: nothing can be learned from them.

    Values are `(N,)`, or `(N, n)` where no step of a sample may be better than another's.
    """
    equal = []
    for group in sorted(set(groups.tolist())):
        own = values[groups == group]
        steps = [column[~column.isnan()] for column in own.reshape(len(own), -1).T]
        if any(map(len, steps)):
            equal.append(all(bool((known == known[:1]).all()) for known in steps))
    return sum(equal) / len(equal) if equal else 0.0


def diversity(media: Sequence[Tensor], side: int = 32) -> float:
    """How far the samples of a group lie apart: the root mean square difference of two of them, in [0, 1].

    Differences are of pixels, averaged down to `side` x `side` where there are more.
    """
    if len(media) < 2:
        return 0.0
    images = torch.stack(list(media)).flatten(0, -4)
    height, width = (min(side, length) for length in images.shape[-2:])
    small = nn.functional.adaptive_avg_pool2d(images, (height, width)).reshape(len(media), -1)
    return float((2 * small.var(0).mean()).sqrt())
