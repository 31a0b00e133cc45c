"""Which steps of a trajectory are stochastic, as a pure function of the window, the seed and the epoch. No torch.

    all          every step but the last                                    Flow-GRPO, arXiv:2505.05470
    list         the steps given
    random       neighbouring steps, drawn anew each epoch                  Flow-GRPO-Fast
                 one, drawn for each prompt of an epoch                     Flash-GRPO, arXiv:2605.15980
    subset       any steps, drawn anew each epoch                           Flow-Factory
    progressive  neighbouring steps that move from noise to data            MixGRPO, arXiv:2507.21802

The last step is never stochastic: its noise would be left in the sample. Noise levels, decays and the learning rate are
looked at here too: all that a run does by the step follows from the spec, so nothing of it is stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import attrs

from flowfactory.contracts.digest import seed_of
from flowfactory.contracts.specs import Branches, Decay, SchedulerSpec, StochasticSpec, Times, Window
from flowfactory.spec.kinds import entries, sound
from flowfactory.spec.tables import Optimizer

MOST = 4096
"""Samples that one start may grow into."""
_PACES = {"constant": set[str](), "linear": {"least"}, "exponential": {"rate", "after"}}
_MOVES = {"every", "stride", "restart", "pace"}
_TAKES = {
    "all": {"range"},
    "list": {"steps"},
    "random": {"size", "range", "per"},
    "subset": {"size", "steps", "range", "per"},
    "progressive": {"size", "range", *_MOVES, *set[str]().union(*_PACES.values())},
}
_REQUIRES = {
    "all": set[str](),
    "list": {"steps"},
    "random": {"size"},
    "subset": {"size"},
    "progressive": {"size", "every"},
}
_KEYS = ("steps", "size", "range", "per", "every", "stride", "restart", "pace", "least", "rate", "after")


def stochastic_steps(window: Window, steps: int, seed: int, epoch: int, slot: int = 0) -> tuple[int, ...]:
    """The stochastic steps of an epoch (the first is 1), rising, out of `0 … steps-2`; the same on every process.

    Args:
        slot: which of the epoch's groups has them; all have the same unless the window is drawn for each prompt.
    """
    own = (slot,) if window.per == "prompt" else ()
    open_steps = candidates(window, steps)
    if window.rule in ("all", "list"):
        return open_steps
    assert window.size is not None
    if window.rule == "subset":
        shuffled = sorted(open_steps, key=lambda step: seed_of(seed, "window", epoch, *own, step))
        return tuple(sorted(shuffled[: window.size]))
    if window.rule == "random":
        start = seed_of(seed, "window", epoch, *own) % (len(open_steps) - window.size + 1)
    else:
        start = _progress(window, open_steps, epoch)
    return open_steps[start : start + window.size]


def looked_at(kind: str, steps: Sequence[int]) -> tuple[int, ...]:
    """The steps at whose beginning a trajectory with these stochastic steps is looked at; see `Needs.looks`."""
    if kind == "none" or not steps:
        return ()
    return tuple(steps) if kind == "completed" else (*steps, steps[-1] + 1)


def fixed(scheduler: SchedulerSpec, steps: int) -> bool:
    """Whether every epoch has the same stochastic steps."""
    if not isinstance(scheduler, StochasticSpec) or scheduler.window.rule in ("all", "list"):
        return True
    return scheduler.window.rule != "progressive" and scheduler.window.size == len(candidates(scheduler.window, steps))


def earliest(scheduler: SchedulerSpec, steps: int) -> tuple[int, ...]:
    """The stochastic steps of an epoch, or where they differ the first that there may be, after which most is left."""
    if not isinstance(scheduler, StochasticSpec):
        return ()
    return candidates(scheduler.window, steps)[: scheduler.window.size]


@attrs.frozen
class Growth:
    """What grows out of one start, in rows that pass the network side by side; the first row is the trunk.

    keep: at each step, which rows go on without noise, before those that grow. split: from which rows one grows, each.
    steps, parents: of each branch, in the order in which they grow: the step that it begins with and the branch that
        it goes on from; -1: the trunk.
    leaves: the branches that end in samples.
    """

    keep: tuple[tuple[int, ...], ...]
    split: tuple[tuple[int, ...], ...]
    steps: tuple[int, ...]
    parents: tuple[int, ...]
    leaves: tuple[int, ...]

    @property
    def rows(self) -> tuple[int, ...]:
        """How many rows pass the network at each step."""
        return (1, *(len(keep) + len(split) for keep, split in zip(self.keep[:-1], self.split[:-1], strict=True)))

    def together(self, most: int) -> int:
        """How many starts pass the network side by side, where `most` samples do: those that end in so many, or one."""
        return max(1, most // len(self.leaves))

    def calls(self, starts: int, most: int) -> int:
        """How often the network is called for some starts, with at most so many rows at a time."""
        whole, rest = divmod(starts, self.together(most))
        counts = {self.together(most): whole, rest: 1}
        return sum(count * -(-size * rows // most) for size, count in counts.items() for rows in self.rows)


def grown(branches: Branches, stochastic: Sequence[int], steps: int) -> Growth:
    """What grows over `steps` steps, of which some are stochastic."""
    rows, keeps, splits = [-1], list[tuple[int, ...]](), list[tuple[int, ...]]()
    begun, parents = list[int](), list[int]()
    at = [step for step in stochastic if branches.at is None or step in branches.at]
    for step in range(steps):
        keep = tuple(range(len(rows)))
        split: tuple[int, ...] = ()
        if branches.kind == "tree" and step in stochastic:
            each = branches.width if step in at else 1
            keep, split = (), tuple(row for row in range(len(rows)) for _ in range(each))
        elif branches.kind == "fan" and step in at:
            keep, split = keep[step == at[-1] :], (0,) * branches.width
        parents += [rows[row] for row in split]
        rows = [rows[row] for row in keep] + list(range(len(begun), len(parents)))
        begun += [step] * len(split)
        keeps.append(keep)
        splits.append(split)
    return Growth(tuple(keeps), tuple(splits), tuple(begun), tuple(parents), tuple(rows))


def ends(branches: Branches, stochastic: Sequence[int]) -> int:
    """How many samples that is, without growing them."""
    parts = sum(branches.at is None or step in branches.at for step in stochastic)
    return branches.width**parts if branches.kind == "tree" else branches.width * parts


def largest(branches: Branches | None, scheduler: SchedulerSpec, steps: int) -> Growth | None:
    """What grows in an epoch, or where epochs differ the most that may; `None` where nothing branches."""
    return None if branches is None else grown(branches, earliest(scheduler, steps), steps)


def drawn_for_prompts(scheduler: SchedulerSpec) -> bool:
    """Whether groups have stochastic steps of their own: only those share a micro-batch then that agree in them."""
    return isinstance(scheduler, StochasticSpec) and scheduler.window.per == "prompt"


def _progress(window: Window, open_steps: tuple[int, ...], epoch: int) -> int:
    """Where a progressive window begins: how many of `open_steps` lie before it."""
    starts = range(0, len(open_steps), window.stride or 1)
    stays = [_stay(window, open_steps[start], open_steps[-1] + 1) for start in starts]
    elapsed = (epoch - 1) % sum(stays) if window.restart else epoch - 1
    for start, stay in zip(starts, stays, strict=True):
        if elapsed < stay:
            return start
        elapsed -= stay
    return starts[-1]


def _stay(window: Window, step: int, end: int) -> int:
    """How many epochs a progressive window that begins at `step` stays there; its steps lie before `end`."""
    assert window.every is not None
    if window.pace == "linear":
        least, passed = window.least or 1, step / end
        return max(least, int(window.every * (1 - passed) + least * passed))
    if window.pace == "exponential":
        rate, after = window.rate or 0.1, 13 if window.after is None else window.after
        return math.ceil(window.every * math.exp(-rate * max(0, step - after)))
    return window.every


def candidates(window: Window, steps: int) -> tuple[int, ...]:
    """The steps a window may ever make stochastic, rising."""
    if window.steps is not None:
        return tuple(sorted(window.steps))
    first, last = window.range or (0, steps - 2)
    return tuple(range(first, last + 1))


Faults = Iterator[tuple[str, str]]
"""What is wrong with a table: `(key, message)` pairs, none if it is sound."""


def meaningless(window: Window) -> Faults:
    """What is wrong with a window however many steps there are."""
    own = {name: value for name, value in sound(window).items() if name in _KEYS}
    given = [name for name, value in own.items() if value is not None]
    yield from ((n, f"has no meaning for rule {window.rule!r}") for n in given if n not in _TAKES[window.rule])
    absent = [name for name in _KEYS if own.get(name, name) is None]
    yield from ((n, f"rule {window.rule!r} needs it") for n in absent if n in _REQUIRES[window.rule])
    if window.rule != "progressive":
        return
    if window.every is not None and window.least is not None and window.least > window.every:
        yield "least", f"expected at most `every`, {window.every}, which shrinks to it, not {window.least}"
    pace = window.pace or "constant"
    others = set[str]().union(*_PACES.values()) - _PACES[pace]
    yield from ((name, f"has no meaning for pace {pace!r}") for name in given if name in others)


def misfits(window: Window, steps: int) -> Faults:
    """What is wrong with a window for trajectories of `steps` steps."""
    if window.rule == "subset" and window.steps is not None and window.range is not None:
        yield "range", "give either the steps or their range"
        return
    if steps < 2:
        yield "rule", "one step leaves none to be stochastic: the last step never is"
        return
    own, last = sound(window), steps - 2
    if any(own.get(name) is not None for name in {"steps", "range", "size"} - _TAKES[window.rule]):
        return  # what has no meaning does not have to fit
    open_steps = candidates(window, steps) if window.steps is None else tuple(sorted(entries(window.steps)))
    most = len(open_steps if window.steps is None else window.steps)
    if not most:
        yield "range", f"expected [first, last] with first <= last, not {list(window.range or ())}"
        return
    if len(set(open_steps)) < len(open_steps):
        yield "steps", f"expected each step once, not {list(open_steps)}"
    if open_steps and open_steps[-1] > last:
        where = "steps" if window.steps is not None else "range"
        yield where, f"step {open_steps[-1]} cannot be stochastic: of {steps} steps, 0 to {last} can"
    if window.size is not None and window.size > most:
        yield "size", f"expected at most {most}, the number of steps it may choose from"


def _level_keys(times: Times) -> Faults:
    discrete, normal, mode = times.rule.startswith("discrete"), times.rule == "logit-normal", times.rule == "mode"
    cut = normal or times.rule == "uniform"
    applies = {"range": cut, "mean": normal, "std": normal, "peak": mode, "fraction": discrete}
    applies |= {"shift": cut or mode, "table": cut or mode}
    given = [name for name, value in sound(times).items() if value is not None and not applies.get(name, True)]
    yield from ((name, f"has no meaning for rule {times.rule!r}") for name in given)


def _level_range(times: Times) -> Faults:
    if times.range is not None and times.range[0] >= times.range[1]:
        yield "range", f"expected [lowest, highest], not {list(times.range)}"
    elif times.rule == "logit-normal" and not _mass(times) > 0:
        yield "std", "no noise level is ever drawn from the range, so far from the mean it lies"


def _level_count(times: Times, steps: int) -> Faults:
    if times.rule == "subset" and (times.count or 1) > steps:
        yield "count", f"expected at most {steps}, the steps of a schedule, not {times.count}"


def _level_fraction(times: Times, steps: int) -> Faults:
    least = {"discrete": 1, "discrete-with-first": 2, "discrete-without-first": 2}.get(times.rule, 0)
    if least and int(steps * (times.fraction or 1)) < least:
        yield "fraction", f"too few of {steps} steps are left to draw from"


LEVELS: tuple[Callable[[Times], Faults], ...] = (_level_keys, _level_range)
LEVELS_OF_STEPS: tuple[Callable[[Times, int], Faults], ...] = (_level_count, _level_fraction)
"""What can be wrong with noise levels; and what for schedules of so many steps."""


def _mass(times: Times) -> float:
    """The probability of the range under rule `logit-normal` as far as a float can tell."""
    shift, mean, std = times.shift or 1.0, times.mean or 0.0, times.std or 1.0
    ends = [s / (s + shift * (1 - s)) for s in times.range or (0.01, 1.0)]
    logits = [-math.inf if s <= 0 else math.inf if s >= 1 else math.log(s) - math.log1p(-s) for s in ends]
    low, high = ((logit - mean) / std / math.sqrt(2) for logit in logits)
    return (math.erfc(low) - math.erfc(high) if low > 0 else math.erfc(-high) - math.erfc(-low)) / 2


def decay_problems(decay: Decay) -> Faults:
    """What is wrong with a decay."""
    if decay.start > decay.limit:
        yield "start", f"expected at most `limit`, {decay.limit:g}, not {decay.start:g}"


def learning_rate(table: Optimizer, step: int, epochs: int) -> float:
    """The learning rate of optimizer step `step`, counted from 1, in a run of so many epochs."""
    if step <= table.warmup:
        return table.lr * step / table.warmup
    done = (step - 1 - table.warmup) / max(1, epochs * table.updates - table.warmup)
    shapes = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
    return table.lr * shapes[table.lr_schedule]
