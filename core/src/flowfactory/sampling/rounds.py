"""A round of samples: made, decoded, and scored while others are made."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

import attrs
import torch
from torch import Tensor

from flowfactory.contracts.types import Rollout, Sample
from flowfactory.metrics.scores import diversity
from flowfactory.policy.finite import check_samples
from flowfactory.processes.stop import StopRequest
from flowfactory.rewards.failures import check_rewards, recording
from flowfactory.rewards.session import Scored, of_team
from flowfactory.sampling.epochs import Group
from flowfactory.sampling.source import Member, members_of
from flowfactory.sampling.studio import Made, Studio, Way
from flowfactory.sampling.trajectories import Trajectories


@attrs.frozen(eq=False)
class Round:
    """Some groups of this process, sampled and scored; `N` members, those of a group side by side. There may be none.

    parts: the trajectories, in the order of the members. scored: `(N, columns, leaves)`, see `Way`.
    gallery: the first samples of the process, to be saved; what they scored, by name, and what was said of each.
    spreads: how diverse what is scored together is; none where no reward looks at media.
    """

    members: Sequence[Member]
    parts: Sequence[Rollout]
    scored: Scored
    gallery: Sequence[Sample]
    listed: Mapping[str, Sequence[float]]
    spreads: Sequence[float]
    words: Sequence[Mapping[str, str]] = ()

    def replaced(self, fresh: Round, rows: int) -> Round:
        """The same groups, those of `fresh` in the place of the ones with their slots.

        Args:
            rows: how many trajectories a member has.
        """
        new = {(m.group.slot, m.replica): len(self.members) + i for i, m in enumerate(fresh.members)}
        both = [*self.members, *fresh.members]
        index = [new.get((m.group.slot, m.replica), i) for i, m in enumerate(self.members)]
        values, failed, own = self.scored.values, self.scored.failed, fresh.scored
        scored = attrs.evolve(
            self.scored,
            values={label: torch.cat([column, own.values[label]])[index] for label, column in values.items()},
            failed={label: torch.cat([column, own.failed[label]])[index] for label, column in failed.items()},
            calls={label: count + own.calls[label] for label, count in self.scored.calls.items()},
            parts={
                name: torch.cat([self.scored.part(name), own.part(name)])[index]
                for name in {**self.scored.parts, **own.parts}
            },
        )
        every = Trajectories.joined([*self.parts, *fresh.parts])
        wanted = [i * rows + row for i in index for row in range(rows)]
        parts = [every[list(same)] for _, same in groupby(wanted, every.steps)]
        return attrs.evolve(self, members=[both[i] for i in index], parts=parts, scored=scored)


def sample_round(
    studio: Studio,
    way: Way,
    epoch: int,
    stop: StopRequest,
    groups: Sequence[Group],
    counts: Mapping[str, int],
    spare: Member,
    number: int = 0,
) -> Round:
    """Sample and score some groups. In further rounds (`number` > 0) processes may have different numbers of them.

    Args:
        counts: how many groups the epoch has, over all processes, by their source.
        spare: made, and thrown away, where weights are divided and another process has more to make.
    """
    spec, processes = studio.spec, studio.processes
    display, clock = studio.instruments.display, studio.instruments.clock
    size, kept = spec.sampling.group, spec.run.save_samples if processes.main and not number else 0
    members, judged, unit = members_of(groups, size), studio.judge.reads("media"), way.together * way.leaves
    pieces = way.pieces(epoch, members)
    surplus = int(processes.gather(torch.tensor([len(pieces)])).max()) - len(pieces)
    parts: list[Rollout] = []
    fresh: list[list[Sample]] = [[] for _ in range(way.columns)]  # of what is not complete yet
    gallery: list[tuple[int, Sample]] = []  # each with its number among all that was submitted
    spreads: list[float] = []
    submitted = 0
    name = f"epoch {epoch}/{spec.run.epochs}: sampling" + (f" again ({number})" if number else "")
    with (
        studio.judge.session(
            counts, spec.sampling.overlap, lambda: stop.asked(processes), asks=processes.team.leads
        ) as scoring,
        recording(processes, scoring, studio.run.folder, epoch),
    ):
        with display.phase(name, len(members), "samples") as bar:
            for chunk in [*pieces, *[[]] * surplus]:
                stop.check(processes)
                check_rewards(processes, scoring)
                made = None
                with stop.abandoning(processes):
                    # Where weights are divided, all processes sample together; what is too much is thrown away.
                    if chunk or processes.sharded:
                        made = way.sample(epoch, chunk or [spare], judged or len(gallery) < kept)
                check_samples(processes, name, *(sound(made) if made else (True, True)), trained=epoch > 1)
                if not chunk or not made:
                    continue
                parts += made.parts
                for column, samples in zip(fresh, made.columns, strict=True):
                    column += samples
                for end, own in whole(fresh, unit, way.ends):
                    gallery += enumerate(own[: max(0, kept - len(gallery)) if end else 0], submitted)
                    if judged and end:
                        spreads.append(diversity([s.media for s in own]))
                    with clock("score"):
                        scoring.submit(own)
                    submitted += unit
                bar.advance(len(chunk))
                bar.note(**scoring.means)
        with display.phase(f"epoch {epoch}/{spec.run.epochs}: scoring"), clock("score"):
            scored = of_team(processes, scoring.finish())
        stop.check(processes)
        check_rewards(processes, scoring)
    columns = {**scored.values, **scored.parts}
    listed = {name: [float(column[at]) for at, _ in gallery] for name, column in columns.items()}
    words = [scored.words[at] for at, _ in gallery] if scored.words else ()
    return Round(members, parts, shaped(scored, way), [one for _, one in gallery], listed, spreads, words)


def whole(fresh: Sequence[list[Sample]], unit: int, ends: int) -> Iterator[tuple[bool, list[Sample]]]:
    """Take out of each column what is complete, `unit` samples, and whether it is one of the first, the `ends`."""
    while len(fresh[0]) >= unit:
        for number, column in enumerate(fresh):
            own, column[:] = column[:unit], column[unit:]
            yield number < ends, own


def sound(made: Made) -> tuple[bool, bool]:
    """Whether all latents are finite, and all media."""
    media = (one.media for column in made.columns for one in column)
    return all(bool(x.isfinite().all()) for x in made.finals), all(bool(one.isfinite().all()) for one in media)


def shaped(scored: Scored, way: Way) -> Scored:
    """Scores in the order in which they were asked for, `(N * columns * leaves,)`, as `(N, columns, leaves)`."""

    def by_member(column: Tensor) -> Tensor:
        unit = way.columns, way.together, way.leaves
        return column.reshape(len(column) // math.prod(unit), *unit).transpose(1, 2).flatten(0, 1)

    return attrs.evolve(
        scored,
        values={label: by_member(column) for label, column in scored.values.items()},
        failed={label: by_member(column) for label, column in scored.failed.items()},
        parts={name: by_member(column) for name, column in scored.parts.items()},
        words=(),
    )
