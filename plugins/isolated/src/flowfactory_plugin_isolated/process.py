"""The process of a scorer: started with a run, ended with it, started again when it has ended in between."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import subprocess
import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock, Thread
from typing import IO

from flowfactory import Sample, Score, Unavailable
from flowfactory_plugin_remote import RemoteSpec
from flowfactory_plugin_remote.client import RewardClient
from flowfactory_scorer import TOKEN

from flowfactory_plugin_isolated.environments import own_variables, tail

log = logging.getLogger("flowfactory")

LABEL = "score"
HOST = "import sys; sys.path.append({!r}); from flowfactory_scorer.__main__ import main; sys.exit(main())"
"""The host comes last on the path, so that an environment that has it uses its own."""
UNBOUNDED = ("--workers", "256", "--max-megabytes", "1000000", "--max-megapixels", "1000000")
"""The run's own table bounds how many calls there are at once, and how large they are."""
END = 2.0
"""Seconds in which a process that has lost its connections ends."""
LAST, WORDS = 20, 600
"""Lines of a scorer's output, and characters of these from the end, that messages repeat."""
WIDTH = 300
"""Most characters of such a line."""
LINES = 10_000
"""Lines of a process's output that are written into the log."""


class ScorerError(RuntimeError):
    """A scorer cannot be started, has ended, or does not answer."""


class Running:
    """A scorer's process.

    Args:
        command: what starts it, after which options are added. name: as messages and the log call it.
    """

    def __init__(self, command: Sequence[str], name: str, start_timeout: float, request_timeout: float) -> None:
        self._name, token = name, secrets.token_urlsafe(32)
        with socket.create_server(("127.0.0.1", 0), backlog=128) as listening:
            # It inherits the socket, so that nobody else can take the port, and who connects early waits.
            url, number = f"http://127.0.0.1:{listening.getsockname()[1]}", listening.fileno()
            self._process = subprocess.Popen(
                [*command, "--fd", str(number)],
                env={**own_variables(), TOKEN: token},
                stdin=subprocess.PIPE,  # it ends when this does, however this process ends
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[number],
                start_new_session=True,
            )
        self.end = weakref.finalize(self, _end, self._process)
        self._said: deque[str] = deque(maxlen=LAST)
        assert self._process.stdout is not None
        self._pump = Thread(target=_pump, args=(self._process.stdout, name, self._said), daemon=True)
        self._pump.start()

        def server(seconds: float) -> RewardClient:
            return RewardClient(RemoteSpec(url=url, reward=LABEL, attempts=1, request_timeout=seconds), token)

        try:
            server(start_timeout).check(group=False)
        except Unavailable as error:
            raise self._lost(f"was not ready within {start_timeout:g} s") from error
        except BaseException:
            self.end()
            raise
        self._server, self._seconds = server(request_timeout), request_timeout

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """Its scores.

        Raises:
            ScorerError: it has ended, or was ended, since it did not answer. ServerError: it raised, or said nonsense.
        """
        try:
            return self._server.score(samples)
        except Unavailable as error:
            raise self._lost(f"did not answer within {self._seconds:g} s") from error

    def _lost(self, otherwise: str) -> ScorerError:
        """Why nothing can be had from it any more; it has ended then."""
        try:
            code = self._process.wait(END)
            what = f"ended with {_signal(-code) if code < 0 else f'exit code {code}'}"
        except subprocess.TimeoutExpired:
            what = f"{otherwise}, and was ended"
        self.end()
        self._pump.join(END)
        said = tail("\n".join(self._said), WORDS)
        return ScorerError(f"{self._name} {what}" + (f"; its last words were:\n{said}" if said else ", without a word"))


class Keeper:
    """Keeps a scorer running; safe to use from several threads.

    Args:
        restarts: how often in a row it may be started again without having answered.
    """

    def __init__(
        self,
        python: Path,
        wheel: Path,
        function: str,
        device: str,
        start_timeout: float,
        request_timeout: float,
        restarts: int,
    ) -> None:
        options = [function, "--label", LABEL, "--device", device, *UNBOUNDED]
        self._command = [str(python), "-I", "-u", "-c", HOST.format(str(wheel)), *options]
        self._name, self._times, self._restarts = f"the scorer {function}", (start_timeout, request_timeout), restarts
        self._lock, self._lost = Lock(), 0
        self._running: Running | None = Running(self._command, self._name, *self._times)

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """Scores of the running scorer; of a new one where it has ended.

        Raises:
            ScorerError: it ends or hangs, or has too often. ServerError: it raised, or said nonsense.
        """
        running = self._kept()
        try:
            scores = running.score(samples)
        except ScorerError:
            with self._lock:
                if self._running is running:
                    self._running, self._lost = None, self._lost + 1
            raise
        self._lost = 0
        return scores

    def _kept(self) -> Running:
        with self._lock:
            if self._running is None:
                if self._lost > self._restarts:
                    what = f"{self._name} has ended {self._lost} times without a score in between"
                    raise ScorerError(f"{what}; it is not started again")
                log.warning("%s has ended; it is started again", self._name)
                try:
                    self._running = Running(self._command, self._name, *self._times)
                except Exception:
                    self._lost += 1
                    raise
            return self._running


def _signal(number: int) -> str:
    return signal.Signals(number).name


def _pump(output: IO[bytes], name: str, said: deque[str]) -> None:
    """What a scorer prints, into the log: of a line that is written over itself, what is left of it."""
    with output:
        for count, raw in enumerate(output):
            text = raw.decode("utf-8", "replace").rstrip("\r\n").rpartition("\r")[2]
            line = "".join(c if c.isprintable() or c == "\t" else ascii(c)[1:-1] for c in text[:WIDTH])
            said.append(line)
            if count < LINES:
                log.info("%s: %s", name, line)
            elif count == LINES:
                log.warning("%s has printed %d lines; no more are written into the log", name, LINES)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process with all that it has started."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.stdin is not None
    with suppress(OSError):
        process.stdin.close()
