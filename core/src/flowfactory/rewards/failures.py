"""What remains of an epoch when rewards fail: their groups are left out, and a run that loses too many ends."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import attrs
import torch
from torch import Tensor

from flowfactory.contracts.specs import RewardEntry
from flowfactory.processes.distributed import PeerLost, Processes
from flowfactory.rewards.asking import RewardError
from flowfactory.rewards.scoring import Failure, Session, too_many
from flowfactory.runs.media import to_image

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
    """
    lost = {entry.label: set(groups[failed[entry.label]].tolist()) for entry in entries}
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


def check_losses(
    processes: Processes, entries: Sequence[RewardEntry], failed: Mapping[str, Tensor], groups: Tensor
) -> None:
    """Warn of the groups that lack a score, over all processes, or end the run where they are too many.

    Raises:
        RewardError: on the main process; `ToldElsewhere` on the others.
    """
    total = len(set(groups.tolist()))
    for entry in entries:
        lost = len(set(groups[failed[entry.label]].tolist()))
        if lost > entry.max_dropped * total:
            raise (RewardError if processes.main else ToldElsewhere)(too_many(entry, lost, total))
        if lost and processes.main:
            share = f"{lost} of {total} groups"
            log.warning("reward %r has no scores for %s; the folder `%s` says why", entry.label, share, FOLDER)


class ToldElsewhere(RewardError, PeerLost):
    """A reward failed on another process, which says so."""


def check_rewards(processes: Processes, scoring: Session) -> None:
    """End the run on every process if a reward has failed past what its table allows on any.

    Raises:
        RewardError: saying which and why, on the first process where it did; `ToldElsewhere` on the others.
    """
    if processes.any(scoring.aborting is not None):
        reasons = processes.gather_objects([scoring.aborting])
        teller = next(rank for rank, reason in enumerate(reasons) if reason is not None)
        raise (RewardError if processes.rank == teller else ToldElsewhere)(reasons[teller])


@contextmanager
def recording(scoring: Session, folder: Path, epoch: int) -> Iterator[None]:
    """Record at the end what failed by then, however the round of scoring ends."""
    try:
        yield
    finally:
        record_failures(folder, epoch, scoring.failures)


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
        log.info("epoch %d, prompt %r: %s (see %s)", epoch, sample.row.prompt, failure.why, picture)
