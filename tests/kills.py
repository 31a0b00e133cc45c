"""Kills a run at chosen moments, in forks of a process that has loaded everything: thirty real ones in seconds."""

from __future__ import annotations

import gc
import os
import random
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import attrs
from forks import changed, received, told

PHASES = ("sample", "score", "update", "evaluate", "checkpoint")
"""Of each, at least one kill must have hit."""


@attrs.frozen
class Kill:
    """When a run was killed: in which phase ("" between two), and what lay in its folder then."""

    folder: str
    phase: str
    checkpoints: Sequence[str]
    damage: Sequence[str]
    lines: int
    cut: bool


@attrs.frozen
class Moment:
    """After so many phases have begun or ended, and so many seconds more."""

    event: int
    pause: float


def experiment(spec: Path, runs: Path, count: int, results: Connection) -> None:
    """Make the run `whole`, and `kill-00` … that are killed and go on to their end; send every `Kill`."""
    start = loaded(spec, runs)
    timed = time_line(start(runs / "whole", False, told))
    for number, moment in enumerate(moments(timed, count)):
        folder = runs / f"kill-{number:02d}"
        results.send(kill(start(folder, False, told), moment, folder))
        if number % 5 == 4:  # and again, soon after it has gone on
            results.send(kill(start(folder, True, told), attrs.evolve(moment, event=3 + number // 2), folder))
        time_line(start(folder, True, told))


Start = Callable[[Path, bool, Callable[[Any, Callable[[Any], object]], Any]], tuple[int, Connection]]
"""Begins a run in a folder, or goes on with it, in a fork: what it does with the parts may send to the other end."""


def loaded(spec: Path, runs: Path, sets: Sequence[str] = (), unsets: Sequence[str] = ()) -> Start:
    """Everything that a run needs, loaded once."""
    import torch
    from flowfactory.cli.ui import Ui
    from flowfactory.cli.verbs.running import resolved
    from flowfactory.contracts.hooks import Run
    from flowfactory.discovery.registry import Registry
    from flowfactory.plan.plan import make_plan
    from flowfactory.processes.distributed import Processes
    from flowfactory.spec.structure import load_spec
    from flowfactory.training import loop
    from flowfactory.training.assembly import assemble

    torch.set_num_threads(1)
    registry = Registry()
    plan = make_plan(load_spec(spec, registry, sets, unsets), registry.versions())
    ui = Ui(stderr=(runs / "said.txt").open("a"))
    components = resolved(plan.spec, registry)
    parts = assemble(plan, components, runs, ui, Processes("fp32"))
    gc.freeze()

    def start(folder: Path, resume: bool, of: Callable[[Any, Callable[[Any], object]], Any]) -> tuple[int, Connection]:
        ours, theirs = os.pipe()
        child = os.fork()
        if child:
            os.close(theirs)
            return child, Connection(ours, writable=False)
        code = 1
        try:
            pipe = Connection(theirs, readable=False)
            loop.assemble = lambda *_: of(changed(parts, run=Run(folder, plan)), pipe.send)  # type: ignore[assignment]
            plan.write(folder)
            loop.run(plan, components, folder, ui, resume)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    return start


def time_line(started: tuple[int, Connection]) -> list[tuple[str, float]]:
    """What an undisturbed run tells, each with the seconds until the next."""
    child, pipe = started
    events, times = [], []
    for event in received(pipe):
        events.append(event)
        times.append(time.perf_counter())
    assert os.waitpid(child, 0)[1] == 0
    times.append(time.perf_counter())
    return [(event, after - before) for event, before, after in zip(events, times, times[1:], strict=False)]


def moments(timed: Sequence[tuple[str, float]], count: int) -> list[Moment]:
    """Random ones: as many in each of `PHASES`, and as many anywhere."""
    draw, found = random.Random(0), []
    for number in range(count):
        wanted = (*PHASES, None)[number % (len(PHASES) + 1)]
        at = draw.choice([i for i, (event, _) in enumerate(timed) if wanted in (None, event)])
        found.append(Moment(at + 1, draw.random() * timed[at][1]))
    return found


def kill(started: tuple[int, Connection], moment: Moment, folder: Path) -> Kill:
    """Let a run go on to a moment, and end it as `kill -9` does."""
    from flowfactory.runs import archive

    child, pipe = started
    events = received(pipe)
    phase = [event for _, event in zip(range(moment.event), events, strict=False)][-1]
    time.sleep(moment.pause)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    phase = [phase, *events][-1]  # what it told between the decision and the kill
    saved = archive.checkpoints(folder / archive.CHECKPOINTS)
    file = folder / "metrics.jsonl"
    text = file.read_text() if file.exists() else ""
    damage = [words for path in saved if (words := archive.damage(path))]
    return Kill(folder.name, phase, [c.name for c in saved], damage, text.count("\n"), not text.endswith("\n"))


# --- in the middle of something --------------------------------------------------------------------------------------


def amid(
    spec: Path, runs: Path, sets: Sequence[str], unsets: Sequence[str], wanted: Sequence[str], results: Connection
) -> None:
    """Make the run `whole`; and for each of what is wanted one that is killed amid those of its second epoch.

    It goes on to its end. Sends how often that epoch does what; see `noted`.
    """
    start = loaded(spec, runs, sets, unsets)
    child, pipe = start(runs / "whole", False, lambda parts, send: noted(parts, send, ""))
    (counts,) = received(pipe)
    assert os.waitpid(child, 0)[1] == 0
    results.send(counts)
    for name in wanted:
        folder, number = runs / name, counts[name] // 2 + 1
        child, _ = start(folder, False, lambda parts, send, at=(name, number): noted(parts, send, *at))  # type: ignore[misc]
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        child, _ = start(folder, True, lambda parts, send: parts)
        assert os.waitpid(child, 0)[1] == 0


def noted(parts: Any, send: Callable[[Any], object], name: str, number: int = 0) -> Any:
    """The parts of a run whose second epoch counts what it does; that of a name and number is its end.

    look: the state of a step is completed or estimated. grow: branches are asked about. score: samples are.
    sampled: a velocity without a gradient. trained, trained-fake: one with it, in the turn of the weights or a role.
    terms: of a micro-batch. reward: asked with a gradient. backward: it has come to what was decoded.
    step, step-fake: of an optimizer.
    """
    import torch
    from flowfactory.policy.policy import ModelPolicy
    from flowfactory.rewards.session import Session
    from flowfactory.sampling import branched
    from flowfactory.sampling.chains import Looks
    from flowfactory.sampling.rollouts import Rollouts
    from flowfactory.training import loop, optimise

    counts, going = Counter[str](), [False]

    def note(what: str) -> None:
        counts[what] += going[0]
        if (what, counts[what]) == (name, number):
            os.kill(os.getpid(), signal.SIGKILL)

    def before(owner: Any, attribute: str, what: Callable[..., str]) -> None:
        own = getattr(owner, attribute)

        def call(*given: Any, **named: Any) -> Any:
            note(what(*given))
            return own(*given, **named)

        setattr(owner, attribute, call)

    def turn(role: str) -> str:
        return "" if role == "current" else f"-{role}"

    def passes(policy: Any, *_: Any) -> str:
        return f"trained{turn(policy._weights.active)}" if torch.is_grad_enabled() else "sampled"

    collect, decode, update = Rollouts.collect, ModelPolicy.decode, loop.optimise

    def collecting(self: Any, epoch: int, stop: Any) -> Any:
        going[0] = epoch == 2
        return collect(self, epoch, stop)

    def decoding(self: Any, x: Any, stay: bool = False) -> Any:
        media = decode(self, x, stay)
        if media.requires_grad:
            media.register_hook(lambda gradient: note("backward"))
        return media

    def updating(learner: Any, progress: Any, epoch: int, *rest: Any) -> Any:
        done = update(learner, progress, epoch, *rest)
        if epoch == 2:
            send(dict(counts))
        return done

    Rollouts.collect, ModelPolicy.decode, loop.optimise = collecting, decoding, updating  # type: ignore[method-assign]
    before(ModelPolicy, "velocity", passes)
    before(Looks, "end", lambda *_: "look")
    before(branched, "velocities", lambda *_: "grow")
    before(Session, "submit", lambda *_: "score")
    before(ModelPolicy, "reward", lambda *_: "reward")
    before(type(parts.learner.trainer), "terms", lambda *_: "terms")
    before(optimise, "take_step", lambda learner, role, *_: f"step{turn(role)}")
    return parts
