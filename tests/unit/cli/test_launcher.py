"""Several processes of this machine: how they are started, what is passed on to them, and how all of them end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from flowfactory.cli import launcher
from flowfactory.cli.launcher import code_of, environment, reserved, tell_lost

Workers = list[subprocess.Popen[bytes]]


def started(*programs: str) -> Workers:
    return [subprocess.Popen([sys.executable, "-S", "-c", program]) for program in programs]


SLEEPS = "import time; time.sleep(60)"
KILLED = "import os, time; time.sleep(0.5); os.kill(os.getpid(), 9)"
STOPS = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit({})); time.sleep(60)"


@pytest.mark.parametrize(
    ("programs", "code"),
    [
        (("", ""), 0),
        (("import sys; sys.exit(2)", SLEEPS), 2),
        ((SLEEPS, "import sys; sys.exit(75)"), 75),
        (("import os; os.kill(os.getpid(), 9)", SLEEPS), 1),
        ((KILLED, STOPS.format(143)), 1),
        ((STOPS.format(75), KILLED), 1),
        ((KILLED, STOPS.format(3)), 3),
        (("", "import sys; sys.exit(3)"), 3),
    ],
)
def test_the_first_that_fails_decides_and_the_others_are_ended(programs: Sequence[str], code: int) -> None:
    workers = started(*programs)
    assert code_of(workers, []) == code
    assert all(worker.poll() is not None for worker in workers)


def test_who_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "GRACE", 0.3)
    stubborn = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPS}"
    workers = started("import sys, time; time.sleep(0.3); sys.exit(1)", stubborn)
    assert code_of(workers, []) == 1
    assert workers[1].returncode in (-9, -15)


def test_ended_before_they_could_listen_promises_no_checkpoint() -> None:
    workers = started(SLEEPS)
    workers[0].terminate()
    assert code_of(workers, [signal.SIGTERM]) == 143


def test_only_processes_that_could_not_say_why_they_ended_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    tell_lost({0: 1, 1: -9, 2: -15}, [signal.SIGTERM])
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == ["1"]


def test_a_reserved_port_is_for_who_reuses_addresses() -> None:
    with reserved() as port, socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", port))
        server.listen()


def test_each_process_knows_its_place() -> None:
    made = environment(1, 2, 1234, {"WORLD_SIZE": "1", "TORCHELASTIC_USE_AGENT_STORE": "True", "HOME": "/me"})
    assert (made["WORLD_SIZE"], made["RANK"], made["LOCAL_RANK"], made["MASTER_PORT"]) == ("2", "1", "1", "1234")
    assert "TORCHELASTIC_USE_AGENT_STORE" not in made
    assert made["HOME"] == "/me"


PARENT = """
import subprocess, sys, os
child = subprocess.Popen([sys.executable, "-c", "import os; from flowfactory.processes.parent import watch; "
    f"watch({os.getpid()}); print(os.getpid(), flush=True); import time; time.sleep(60)"])
child.wait()
"""


def test_a_process_does_not_outlive_who_started_it() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody waits for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_nothing_is_imported_from_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "rich").mkdir()
    (tmp_path / "rich" / "__init__.py").write_text("raise SystemExit('imported from here')")
    command = [*launcher.command([]), "--version"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env={**os.environ})
    assert (done.returncode, done.stderr) == (0, "")
