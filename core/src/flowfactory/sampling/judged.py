"""What the rewards said of an epoch, on all processes: put together, and which groups of it teach nothing."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from flowfactory.processes.distributed import Processes
from flowfactory.rewards.session import Scored, all_parts
from flowfactory.sampling.source import Member, places
from flowfactory.spec.tables import RewardEntry

log = logging.getLogger("flowfactory")

SPREAD = 1e-6
"""Scores of a group that lie no further apart are equal: means of equal numbers round."""


def gathered(processes: Processes, members: Sequence[Member], scored: Scored, size: int) -> tuple[Scored, Tensor]:
    """What the rewards said on all processes, and the slot of each sample, sorted by slot and replica for any world."""
    order = processes.gather(places(members, size)).argsort()
    values = {label: processes.gather(column)[order] for label, column in scored.values.items()}
    failed = {label: processes.gather(column)[order] for label, column in scored.failed.items()}
    calls = {label: int(processes.gather(torch.tensor([count])).sum()) for label, count in scored.calls.items()}
    parts = {name: processes.gather(scored.part(name))[order] for name in all_parts(processes, scored)}
    return Scored(values, failed, calls, scored.failures, parts), torch.arange(len(order)) // size


def teach_nothing(entries: Sequence[RewardEntry], scored: Scored, slots: Tensor) -> set[int]:
    """The groups that lack a score of a reward that counts, or in which no such reward tells two samples apart."""
    counts = [entry.label for entry in entries if entry.weight != 0]
    found = set()
    for slot in sorted(set(slots.tolist())):
        own = slots == slot
        failed = any(bool(scored.failed[label][own].any()) for label in counts)
        columns = [scored.values[label][own] for label in counts]
        known = [column[~column.isnan()] for column in columns if not bool(column.isnan().all())]
        equal = int(own.sum()) > 1 and all(float(column.max() - column.min()) <= SPREAD for column in known)
        if failed or not known or equal:
            found.add(slot)
    return found


def warn_constant(processes: Processes, epoch: int, values: Mapping[str, Tensor]) -> None:
    """Say when a reward tells no two samples of an epoch apart; its advantages are zero then."""
    for label, column in values.items():
        known = column[~column.isnan()]
        if processes.main and len(known) > 1 and bool((known == known[0]).all()):
            log.warning("epoch %d: reward %r gave every sample %g; nothing is learned from it", epoch, label, known[0])
