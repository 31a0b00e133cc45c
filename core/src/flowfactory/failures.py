"""What remains of an epoch when rewards fail: their groups are left out, and a run that loses too many ends."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
import torch
from torch import Tensor

from flowfactory.asking import RewardError
from flowfactory.media import to_image
from flowfactory.scoring import Failure, too_many
from flowfactory.spec import RewardEntry

log = logging.getLogger("flowfactory")

FOLDER = "failures"
TABLE = "failures.jsonl"


@attrs.frozen(eq=False)
class Remainder:
    """Scores without the groups that were dropped.

    values: by label `(N,)` float64; NaN where a reward does not apply, and for every sample of a dropped group.
    dropped: `(N,)` bool. metrics: how many groups were dropped, and for which reward.
    """

    values: Mapping[str, Tensor]
    dropped: Tensor
    metrics: Mapping[str, float]


def without_failures(
    entries: Sequence[RewardEntry], values: Mapping[str, Tensor], failed: Mapping[str, Tensor], groups: Tensor
) -> Remainder:
    """Drop the groups that lack a score; a reward of weight 0 is only watched and drops none.

    Args:
        values, failed: by label `(N,)`, of all processes. groups: `(N,)` which samples compare.

    Raises:
        RewardError: a reward failed for more groups than its `max_dropped` allows.
    """
    total, lost = len(set(groups.tolist())), dict[str, set[int]]()
    for entry in entries:
        lost[entry.label] = set(groups[failed[entry.label]].tolist())
        if len(lost[entry.label]) > entry.max_dropped * total:
            raise RewardError(too_many(entry, len(lost[entry.label]), total))
    gone = set[int]().union(*(lost[entry.label] for entry in entries if entry.weight != 0))
    dropped = torch.tensor([group in gone for group in groups.tolist()], dtype=torch.bool)
    return Remainder(
        {label: column.masked_fill(dropped | failed[label], torch.nan) for label, column in values.items()},
        dropped,
        {
            "reward/dropped_groups": float(len(gone)),
            **{f"reward/{label}/failed_groups": float(len(those)) for label, those in lost.items()},
        },
    )


def record_failures(folder: Path, epoch: int, failures: Sequence[Failure]) -> None:
    """Log each failure of this process, with its sample as a picture and a line in `failures/failures.jsonl`."""
    for failure in failures:
        sample, place = failure.sample, folder / FOLDER
        place.mkdir(parents=True, exist_ok=True)
        picture = place / f"epoch-{epoch:04d}-slot-{sample.slot:04d}-{failure.label}.png"
        to_image(sample.media).save(picture)
        line = {
            "epoch": epoch,
            "label": failure.label,
            "slot": sample.slot,
            "prompt": sample.row.prompt,
            "why": failure.why,
            "file": picture.name,
        }
        with (place / TABLE).open("a", encoding="utf-8") as table:
            table.write(json.dumps(line, ensure_ascii=False) + "\n")
        log.warning("epoch %d, prompt %r: %s (see %s)", epoch, sample.row.prompt, failure.why, picture)
