"""Processes forked with everything imported, so that many runs can be started, and killed, in seconds.

Those that `--processes` asks for, too: they are started as ever, but what is taken for a new interpreter is a fork.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import multiprocessing
import os
import resource
import runpy
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
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
    folder: Path,
    *arguments: object,
    stop: tuple[signal.Signals, str, int] | None = None,
    most: int | None = None,
    meanwhile: Callable[[int], object] = lambda pid: None,
) -> tuple[int, str]:
    """The command with these arguments, in a process of its own; its exit code, and what it said to stderr.

    Args:
        folder: where what it said is kept meanwhile.
        stop: a signal that it gets as a phase begins for the n-th time.
        most: the largest file it may write, in bytes.
        meanwhile: what is done while it runs, given its id; with several processes it leads a group, as in a terminal.
    """
    said = folder / "said.txt"
    return ended(said, _run, list(map(str, arguments)), said, stop, most, meanwhile=meanwhile)


def pair(folder: Path, *arguments: object) -> tuple[int, str]:
    """Two processes that torchrun has started of a script with arguments; their exit code, and what they said."""
    said = folder / "said.txt"
    return ended(said, _torchrun, list(map(str, arguments)), said)


def launched(folder: Path, *arguments: object) -> tuple[int, str]:
    """What `accelerate launch` starts by torchrun; its exit code, and what they said."""
    said = folder / "said.txt"
    return ended(said, _accelerate, list(map(str, arguments)), said)


def ended(
    said: Path, work: Callable[..., None], *arguments: Any, meanwhile: Callable[[int], object] = lambda pid: None
) -> tuple[int, str]:
    """The exit code of some work, and what it said."""
    said.write_text("")
    process, pipe = start(work, *arguments)
    meanwhile(process.pid)
    for _ in received(pipe):
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
    from flowfactory.cli import launcher
    from flowfactory.cli.main import main
    from flowfactory.training import loop

    _begin(said)
    if any(argument.startswith("--processes") for argument in arguments):
        os.setsid()
        spare = [Spare(), Spare()]
        launcher.subprocess = SimpleNamespace(Popen=lambda *a, **named: spare.pop().become(*a, **named))  # type: ignore[attr-defined]
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


def _torchrun(arguments: Sequence[str], said: Path, pipe: Connection) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    _begin(said)
    _let_torchrun_fork(said)
    try:
        main(["--standalone", "--nproc-per-node", "2", *arguments])
    except ChildFailedError as error:  # only what they said tells why
        sys.exit(" and ".join(f"process {rank} with {failure.exitcode}" for rank, failure in error.failures.items()))


def _accelerate(arguments: Sequence[str], said: Path, pipe: Connection) -> None:
    from accelerate.commands import launch

    _begin(said)
    _let_torchrun_fork(said)
    launch.launch_command(launch.launch_command_parser().parse_args(arguments))


def _begin(said: Path) -> None:
    """One thread, stderr in a file, which others may write to as well, and libraries that no collection looks at."""
    import torch

    gc.freeze()
    torch.set_num_threads(1)
    os.dup2(os.open(said, os.O_WRONLY | os.O_APPEND), 2)


def _let_torchrun_fork(said: Path) -> None:
    from torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler import SubprocessHandler

    SubprocessHandler._popen = lambda self, args, env: Forked(args, env, said)  # type: ignore[assignment, return-value]


class Forked:
    """What `subprocess.Popen` is to torchrun, but a fork with everything imported: `python -u …` in its own session.

    What it says to stderr is added to the file `said`.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], said: Path) -> None:
        self._process = _context.Process(target=_become, args=(arguments[2:], dict(environment), said))
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """The exit code, or `None` while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once it has ended."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("a fork", timeout or 0)
        return self._process.exitcode


def _become(arguments: Sequence[str], environment: Mapping[str, str], said: Path) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    _begin(said)
    faulthandler.enable()
    if arguments[0] == "-m":
        sys.argv = list(arguments[1:])
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(arguments)
        runpy.run_path(arguments[0], run_name="__main__")


class Spare:
    """What `subprocess.Popen` is to the launcher: a fork from before it began, which waits to become a command."""

    def __init__(self) -> None:
        ours, self._orders = os.pipe()
        self._code: int | None = None
        self.pid = os.fork()
        if not self.pid:
            os.close(self._orders)
            _obey(ours)
        os.close(ours)

    def become(self, arguments: Sequence[str], env: Mapping[str, str], start_new_session: bool) -> Spare:
        """`python -P -m …`, in this environment, in a session of its own."""
        assert (arguments[1:3], start_new_session) == (["-P", "-m"], True)
        os.write(self._orders, f"{json.dumps([arguments[3:], dict(env)])}\n".encode())
        os.close(self._orders)
        return self

    def poll(self) -> int | None:
        """The exit code, or `None` while it runs."""
        if self._code is None and os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._code

    def send_signal(self, number: int) -> None:
        """Unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


def _obey(orders: int) -> None:
    """Become what a line of a pipe says; never returns."""
    code: object = 1
    gc.freeze()
    try:
        os.setsid()
        with open(orders) as file:
            line = file.readline()
        if not line:  # the launcher has ended without a need for it
            os._exit(0)
        sys.argv, environment = json.loads(line)
        os.environ.clear()
        os.environ.update(environment)
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as ending:
        code = ending.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def changed(parts: Any, **fields: Any) -> Any:
    """The parts of a run with some of what they have in common changed, in each that has it."""

    def one(part: Any) -> Any:
        own = {field.name for field in attrs.fields(type(part))}
        studio = {"studio": one(part.studio)} if "studio" in own else {}
        return attrs.evolve(part, **studio, **{name: value for name, value in fields.items() if name in own})

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
