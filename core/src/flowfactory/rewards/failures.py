"""What remains of an epoch when rewards fail: their groups are left out, and a run that loses too many ends."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from flowfactory.errors import Ending, RunError, everywhere
from flowfactory.processes.distributed import PeerLost, Processes
from flowfactory.rewards.asking import RewardError
from flowfactory.rewards.session import Failure, Session, scored_by, too_many
from flowfactory.runs import files
from flowfactory.runs.files import writing
from flowfactory.runs.media import to_image
from flowfactory.spec.tables import RewardEntry

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
    processes: Processes,
    entries: Sequence[RewardEntry],
    failed: Mapping[str, Tensor],
    groups: Tensor,
    counts: Mapping[str, int],
) -> None:
    """Warn of the groups that lack a score, over all processes, or end the run where they are too many.

    Args:
        counts: how many groups there are, by their source.

    Raises:
        RewardError: on the main process; `ToldElsewhere` on the others.
    """
    for entry in entries:
        total, lost = scored_by(entry, counts), len(set(groups[failed[entry.label]].tolist()))
        if lost > entry.max_dropped * total:
            raise everywhere((RewardError if processes.main else ToldElsewhere)(too_many(entry, lost, total)))
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
        teller = next(team for team, reason in enumerate(reasons) if reason is not None)
        tells = processes.team.leads and processes.team.number == teller
        raise everywhere((RewardError if tells else ToldElsewhere)(reasons[teller]))


@contextmanager
def recording(processes: Processes, scoring: Session, folder: Path, epoch: int) -> Iterator[None]:
    """Record at the end what failed by then, however the round of scoring ends."""
    together = True
    try:
        yield
    except (RunError, Ending) as error:
        together = error.everywhere
        raise
    except BaseException:
        together = False
        raise
    finally:
        own = record_failures(folder, epoch, scoring.failures)
        everyone = processes.gather_objects(own) if together else own
        if everyone and (processes.main or not together):
            in_order = sorted(everyone, key=lambda line: (line["label"], line["slot"]))
            with writing(folder / FOLDER / TABLE), (folder / FOLDER / TABLE).open("a", encoding="utf-8") as table:
                table.write("".join(map(files.line, in_order)))


def record_failures(folder: Path, epoch: int, failures: Sequence[Failure]) -> list[dict[str, Any]]:
    """Log each failure of this process and save its sample as a picture; returns their lines in `failures.jsonl`.

    A sample that was not decoded has no picture.
    """
    lines, place = list[dict[str, Any]](), folder / FOLDER
    for failure in failures:
        sample = failure.sample
        picture = place / f"epoch-{epoch:04d}-slot-{sample.slot:04d}-{failure.label}.png"
        seen = sample.media.numel() > 0
        with writing(picture):
            place.mkdir(parents=True, exist_ok=True)
            if seen:
                to_image(sample.media).save(picture)
        prompt, why = sample.row.prompt, failure.why
        lines.append(
            {
                "epoch": epoch,
                "label": failure.label,
                "slot": sample.slot,
                "prompt": prompt,
                "why": why,
                "file": picture.name if seen else None,
            }
        )
        log.info("epoch %d, prompt %r: %s (see %s)", epoch, prompt, why, picture if seen else place / TABLE)
    return lines


def cut_back(folder: Path, epochs_done: int) -> None:
    """Forget what failed in epochs that are made again, so that a resumed run leaves the same files."""
    table = folder / FOLDER / TABLE
    if not table.is_file():
        return
    kept, gone = list[str](), list[Path]()
    for text in files.lines(table):
        epoch, file = _of(text)
        if epochs_done and epoch <= epochs_done:
            kept.append(text + "\n")
        elif file:
            gone.append(table.with_name(Path(file).name))
    with writing(table):
        files.write_whole(table, "".join(kept).encode())
        for picture in gone:
            picture.unlink(missing_ok=True)
        if not kept:
            table.unlink()


def _of(text: str) -> tuple[float, str]:
    """Epoch and picture of a line; one that a kill cut short is of no epoch."""
    try:
        line = json.loads(text)
        return float(line["epoch"]), str(line["file"] or "")
    except (ValueError, LookupError, TypeError):
        return math.inf, ""
