"""Kills a run at chosen moments, in forks of a process that has loaded everything: thirty real ones in seconds."""

from __future__ import annotations

import os
import random
import signal
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

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
    plan = make_plan(load_spec(spec, registry), registry.versions())
    ui = Ui(stderr=(runs / "said.txt").open("a"))
    components = resolved(plan.spec, registry)
    loaded = assemble(plan, components, runs, ui, Processes("fp32"))

    def start(folder: Path, resume: bool) -> tuple[int, Connection]:
        """The run, in a fork of this process."""
        ours, theirs = os.pipe()
        child = os.fork()
        if child:
            os.close(theirs)
            return child, Connection(ours, writable=False)
        code = 1
        try:
            pipe = Connection(theirs, readable=False)
            loop.assemble = lambda *_: told(changed(loaded, run=Run(folder, plan)), pipe.send)  # type: ignore[assignment]
            plan.write(folder)
            loop.run(plan, components, folder, ui, resume)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    timed = time_line(start(runs / "whole", False))
    for number, moment in enumerate(moments(timed, count)):
        folder = runs / f"kill-{number:02d}"
        results.send(kill(start(folder, False), moment, folder))
        if number % 5 == 4:  # and again, soon after it has gone on
            results.send(kill(start(folder, True), attrs.evolve(moment, event=3 + number // 2), folder))
        time_line(start(folder, True))


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
