"""Which steps of a trajectory are stochastic, as a pure function of the window, the seed and the epoch. No torch.

Rules: `all`; a given `list`; `random`, neighbouring steps drawn anew each epoch (Flow-GRPO-Fast).
The last step is never stochastic: its noise would be left in the sample.
"""

from __future__ import annotations

from flowfactory.digest import seed_of
from flowfactory.spec import Window

_TAKES = {"all": {"range"}, "list": {"steps"}, "random": {"size", "range"}}
_REQUIRES = {"all": set[str](), "list": {"steps"}, "random": {"size"}}


def stochastic_steps(window: Window, steps: int, seed: int, epoch: int) -> tuple[int, ...]:
    """The stochastic steps of one epoch, rising, out of `0 … steps-2`; the same on every process."""
    open_steps = candidates(window, steps)
    if window.rule == "random":
        assert window.size is not None
        start = seed_of(seed, "window", epoch) % (len(open_steps) - window.size + 1)
        return open_steps[start : start + window.size]
    return open_steps


def candidates(window: Window, steps: int) -> tuple[int, ...]:
    """The steps a window may ever make stochastic, rising."""
    if window.steps is not None:
        return tuple(sorted(window.steps))
    first, last = window.range or (0, steps - 2)
    return tuple(range(first, last + 1))


def problems(window: Window, steps: int) -> list[tuple[str, str]]:
    """What is wrong with a window for trajectories of `steps` steps: `(key, message)` pairs, none if it is sound."""
    found = [
        (name, f"has no meaning for rule {window.rule!r}")
        for name in ("steps", "size", "range")
        if getattr(window, name) is not None and name not in _TAKES[window.rule]
    ]
    found += [
        (name, f"rule {window.rule!r} needs it") for name in _REQUIRES[window.rule] if getattr(window, name) is None
    ]
    return found or _misfits(window, steps)


def _misfits(window: Window, steps: int) -> list[tuple[str, str]]:
    if steps < 2:
        return [("rule", "one step leaves none to be stochastic: the last step never is")]
    open_steps, last = candidates(window, steps), steps - 2
    if window.range is not None and not open_steps:
        return [("range", f"expected [first, last] with first <= last, not {list(window.range)}")]
    if len(set(open_steps)) < len(open_steps):
        return [("steps", f"expected each step once, not {list(open_steps)}")]
    if open_steps[-1] > last:
        where = "steps" if window.steps is not None else "range"
        return [(where, f"step {open_steps[-1]} cannot be stochastic: of {steps} steps, 0 to {last} can")]
    if window.size is not None and window.size > len(open_steps):
        return [("size", f"expected at most {len(open_steps)}, the number of steps it may choose from")]
    return []
