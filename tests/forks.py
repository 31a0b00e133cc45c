"""Processes forked with everything imported, so that many runs can be started, and killed, in seconds."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import attrs

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "flowfactory.training.loop",
        "flowfactory_plugin_flux.flux",
        "flowfactory_plugin_grpo.grpo",
        "diffusers.pipelines.flux.pipeline_flux",
        "transformers.models.clip.modeling_clip",
        "transformers.models.t5.modeling_t5",
    ]
)


def start(work: Callable[..., None], *arguments: Any) -> tuple[Any, Connection]:
    """Call `work(*arguments, pipe)` in a process of its own; returns it, and the other end of the pipe."""
    ours, theirs = _context.Pipe(duplex=False)
    process = _context.Process(target=work, args=(*arguments, theirs))
    process.start()
    theirs.close()
    return process, ours


def received(pipe: Connection) -> Iterator[Any]:
    """What comes out of a pipe, until the other end is closed, be it by a kill."""
    try:
        while True:
            yield pipe.recv()
    except EOFError:
        return


def flowfactory(
    folder: Path, *arguments: object, stop: tuple[signal.Signals, str, int] | None = None, most: int | None = None
) -> tuple[int, str]:
    """The command with these arguments, in a process of its own; its exit code, and what it said to stderr.

    Args:
        folder: where what it said is kept meanwhile.
        stop: a signal that it gets as a phase begins for the n-th time.
        most: the largest file it may write, in bytes.
    """
    said = folder / "said.txt"
    process, phases = start(_run, list(map(str, arguments)), said, stop, most)
    for _ in received(phases):
        pass
    process.join()
    return process.exitcode, said.read_text()


def _run(
    arguments: Sequence[str],
    said: Path,
    stop: tuple[signal.Signals, str, int] | None,
    most: int | None,
    pipe: Connection,
) -> None:
    import torch
    from flowfactory.cli.main import main
    from flowfactory.training import loop

    torch.set_num_threads(1)
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    if most is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    seen: list[str] = []

    def tell(phase: str) -> None:
        seen.append(phase)
        if stop is not None and (phase, seen.count(phase)) == stop[1:]:
            os.kill(os.getpid(), stop[0])

    assemble = loop.assemble
    loop.assemble = lambda *arguments: told(assemble(*arguments), tell)  # type: ignore[assignment]
    sys.exit(main(arguments))


def changed(parts: Any, **fields: Any) -> Any:
    """The parts of a run with some of what they have in common changed, in each that has it."""

    def one(part: Any) -> Any:
        own = {field.name for field in attrs.fields(type(part))}
        return attrs.evolve(part, **{name: value for name, value in fields.items() if name in own})

    halves = {"source": one(parts.source), "learner": one(parts.learner)}
    return attrs.evolve(one(parts), **halves, evaluator=one(parts.evaluator) if parts.evaluator else None)


def told(parts: Any, tell: Callable[[str], object]) -> Any:
    """The parts of a run, with a clock that tells of the phases it measures."""
    instruments = attrs.evolve(parts.instruments, clock=Told(parts.instruments.clock, tell))
    return changed(parts, instruments=instruments)


class Told:
    """A clock that tells the names of phases as they begin, and "" as they end."""

    def __init__(self, clock: Any, tell: Callable[[str], object]) -> None:
        self._clock, self._tell = clock, tell

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        self._tell(phase)
        with self._clock(phase):
            yield
        self._tell("")

    def read(self) -> dict[str, float]:
        """As the clock's own."""
        return dict(self._clock.read())
