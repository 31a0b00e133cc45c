"""Scoring samples: every reward of a run, its backbones loaded once, asked while further samples are made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flowfactory.calling import calling
from flowfactory.components.resolved import Target
from flowfactory.contracts.reward import DifferentiableReward, Reward, Score, Shared
from flowfactory.contracts.types import Conditions, Row, Sample
from flowfactory.data.refusals import fetched, refusal
from flowfactory.errors import listed, said
from flowfactory.processes.distributed import DTYPES, numbered
from flowfactory.rewards.asking import Asked, RewardError
from flowfactory.rewards.places import never
from flowfactory.rewards.session import Session
from flowfactory.spec.tables import RewardEntry

CPU = torch.device("cpu")
SOMETHING = "what it loads"
"""From the hub, of a name that is not known here."""


class Judge:
    """The rewards of a run.

    Args:
        entries: the reward tables. targets: what their names stand for.
        backbones: where backbones are kept by key, device and dtype; judges that share it share them.
    """

    def __init__(
        self, entries: Sequence[RewardEntry], targets: Mapping[str, Target], backbones: dict[Any, Any]
    ) -> None:
        self.rewards = [Asked(entry, _made(entry, targets[entry.name])) for entry in entries]
        self._backbones = backbones

    @property
    def weights(self) -> Mapping[str, float]:
        """Weight of each reward, by label."""
        return {r.entry.label: r.entry.weight for r in self.rewards}

    def reads(self, what: str) -> bool:
        """Whether any of the rewards reads a part of samples, e.g. "media"."""
        return any(what in asked.reward.reads for asked in self.rewards)

    def scores_on(self, device: torch.device) -> bool:
        """Whether media can stay on a device: rewards read them, all who do score by value, and there they stay."""
        readers = [one for one in self.rewards if "media" in one.reward.reads]
        there = [one.scores_by_value and one.device == device and not one.entry.offload for one in readers]
        return bool(there) and all(there)

    def samples(
        self,
        rows: Sequence[Row],
        places: Sequence[tuple[int, int]],
        media: Tensor,
        latents: Tensor,
        conditions: Conditions,
    ) -> list[Sample]:
        """What the rewards are shown; latents and conditions only where one of them reads them.

        Args:
            places: of each sample, its slot and its replica. media: `(B, …)`, `(B, 0)` where they were not decoded.
        """
        inner, outer = self.reads("latents"), self.reads("conditions")
        return [
            Sample(
                rows[i],
                media[i],
                *places[i],
                latents[i] if inner else None,
                {name: tensor[i : i + 1] for name, tensor in conditions.items()} if outer else None,
            )
            for i in range(len(rows))
        ]

    @property
    def left_out(self) -> Sequence[str]:
        """Labels of the rewards that only a whole group can be scored by."""
        return [r.entry.label for r in self.rewards if not r.alone]

    def reach(self) -> None:
        """See that every reward can be loaded: its device is here, and what it needs from elsewhere.

        Raises:
            RewardError: it is not.
        """
        for asked in self.rewards:
            _see_device(asked.entry)
            with _told(asked.entry, "reached"):
                asked.reward.reach()

    def load(self, device: torch.device, dtype: torch.dtype) -> None:
        """Load every reward where its table says, or else onto `device` in `dtype`; equal backbones are made once.

        Raises:
            RewardError: one cannot be loaded.
        """
        for asked in self.rewards:
            entry = asked.entry
            asked.device = numbered(entry.device or device)
            own = DTYPES[entry.dtype] if entry.dtype else dtype
            with _told(entry, "loaded"):
                load = partial(asked.reward.load, asked.device, own, self._shared(asked.device, own))
                fetched(load, SOMETHING, alone=False)
        self._rest()

    @contextmanager
    def session(
        self,
        groups: Mapping[str, int],
        overlap: bool = True,
        stopped: Callable[[], bool] = never,
        single: bool = False,
        asks: bool = True,
    ) -> Iterator[Session]:
        """A round of scoring. While it lasts, every reward is on its device.

        Args:
            groups: how many will be scored, over all processes, by their source.
            overlap: score in other threads, while this one goes on.
            stopped: whether the run was asked to stop; then nothing is waited for any more.
            single: samples come one of a prompt, so that rewards which compare those of a group are left out.
            asks: whether anything is asked here; another process of the team asks for all of it otherwise.

        Raises:
            RewardError: a reward cannot be placed.
        """
        if not asks:
            yield Session((), groups, overlap=False)
            return
        for asked in self.rewards:
            # All: an idle entry may have moved the backbone it shares with others.
            with _told(asked.entry, f"placed on {asked.device}"):
                asked.reward.place(asked.device)
        session = Session([a for a in self.rewards if a.alone or not single], groups, overlap, stopped)
        try:
            yield session
        finally:
            session.close()
            self._rest()

    def score(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Scores `(N,)` float64 by label, in the order of `samples`; NaN where a reward does not apply.

        Samples of one group must be neighbours.

        Raises:
            RewardError: a reward failed.
        """
        sources = {sample.slot: sample.row.source for sample in samples}
        with self.session(Counter(sources.values()), overlap=False) as session:
            session.submit(samples)
            scored = session.finish()
        for failure in scored.failures:
            raise RewardError(failure.why)
        return dict(scored.values)

    def value(self, media: Tensor, rows: Sequence[Row], scaled: bool = False) -> Tensor:
        """The weighted sum `(B,)` float32 of the rewards that count, differentiable in `media`, on their device.

        Args:
            scaled: whether gradients are too large for their type on purpose, so that one may not be finite.

        Raises:
            RewardError: a reward failed, or what it says is not finite or has no gradient. Where its gradient is not
                finite, the backward pass does.
        """
        total = torch.zeros(len(rows), device=media.device)
        for asked in self.rewards:
            if asked.entry.weight != 0:
                total = total + asked.entry.weight * _value(asked, media, rows, scaled).to(total)
        return total

    def _rest(self) -> None:
        """Move the backbones of idle rewards to main memory."""
        for asked in self.rewards:
            if asked.entry.offload:
                with _told(asked.entry, "moved to main memory"):
                    asked.reward.place(CPU)

    def _shared(self, device: torch.device, dtype: torch.dtype) -> Shared:
        def shared(key: str, factory: Callable[[], Any]) -> Any:
            whole = (key, str(device), dtype)
            if whole not in self._backbones:
                self._backbones[whole] = factory()
            return self._backbones[whole]

        return shared


def _value(asked: Asked, media: Tensor, rows: Sequence[Row], scaled: bool) -> Tensor:
    """What one reward says, `(B,)`, of at most `micro_batch` samples at a time."""
    reward, size, found = asked.reward, asked.entry.micro_batch, list[Tensor]()
    if not isinstance(reward, DifferentiableReward):
        raise RewardError(f"{asked.title} has no gradient: it is no `DifferentiableReward`")
    with _told(asked.entry, "asked for its gradient"):
        reward.place(asked.device)
        for start in range(0, len(rows), size):
            part, seen = rows[start : start + size], media[start : start + size]
            if seen.requires_grad and not scaled:
                seen.register_hook(partial(_see_finite, asked, "a gradient", part))  # type: ignore[no-untyped-call]
            said = reward.value(seen, part)
            if said.shape != (len(part),):
                raise RewardError(f"{asked.title} has values {tuple(said.shape)} of {len(part)} samples")
            if media.requires_grad and not said.requires_grad:
                raise RewardError(f"{asked.title} has values without a gradient; what it computes ends it")
            _see_finite(asked, "a value", part, said)
            found.append(said)
    return torch.cat(found)


def _see_finite(asked: Asked, what: str, rows: Sequence[Row], numbers: Tensor) -> None:
    """Raises:
    RewardError: numbers `(B, …)` of a reward are not finite; the message names the first prompt they are of.
    """
    finite = numbers.detach().isfinite().reshape(len(rows), -1).all(1)
    if not bool(finite.all()):
        prompt = rows[int((~finite).nonzero()[0])].prompt
        advice = "mend what it computes there, as a root or a quotient of 0, or leave that prompt out"
        raise RewardError(f"{asked.title} has {what} that is not finite for prompt {prompt!r}; {advice}")


class FunctionReward(Reward):
    """A bare function `samples -> scores` as a reward."""

    def __init__(self, function: Callable[[Sequence[Sample]], Sequence[Score]]) -> None:
        super().__init__(None)
        self.function = function

    def score(self, samples: Sequence[Sample]) -> Sequence[Score]:
        return self.function(samples)


def build(target: Any, spec: Any) -> Reward:
    """A reward from its class, or from a bare function."""
    if isinstance(target, type) and issubclass(target, Reward):
        return target(spec)
    return FunctionReward(target)


def _made(entry: RewardEntry, target: Target) -> Reward:
    with _told(entry, "made"):
        return build(target, entry.spec)


def _see_device(entry: RewardEntry) -> None:
    """Raises:
    RewardError: the table's device is not one of this machine's.
    """
    wanted, own = torch.device(entry.device or CPU), torch.accelerator.current_accelerator()
    count = torch.accelerator.device_count() if own else 0
    here = wanted == CPU or (own is not None and wanted.type == own.type and (wanted.index or 0) < count)
    if not here:
        there = listed(["cpu", *(f"{own}:{i}" for i in range(count))])
        what = f"reward {entry.label!r} is to compute on `{wanted}`, which is not here (there is: {there})"
        raise RewardError(f"{what}; set [[reward]] device to one of them, or leave it out")


@contextmanager
def _told(entry: RewardEntry, what: str) -> Iterator[None]:
    """What a reward does wrong in this thread, outside of `score`, ends the run in words.

    Raises:
        RewardError: naming the reward.
    """
    title = f"reward {entry.label!r}"
    try:
        with calling(title, alone=True):
            yield
    except RewardError:
        raise
    except Exception as error:
        refused = refusal(error, SOMETHING, alone=False)
        raise RewardError(f"{title} cannot be {what}: {refused or said(error)}") from error
