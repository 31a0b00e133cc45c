"""Foreign code cannot change what the whole process shares, nor end it."""

from __future__ import annotations

import gc
import logging
import logging.config
import os
import signal
import socket
import subprocess
import sys
import threading
import warnings
from asyncio import CancelledError
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flowfactory.calling import Meddled, calling, staying
from flowfactory.errors import Ended, cause, said
from flowfactory.processes.stop import AtOnce, Stopped, listening


def test_the_folder_and_the_environment_are_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("KEPT", "old")
    monkeypatch.setenv("REMOVED", "there")
    monkeypatch.delenv("ADDED", raising=False)
    here = os.getcwd()
    for _ in range(2):
        with caplog.at_level(logging.WARNING, "flowfactory"), calling("reward 'r'"):
            os.chdir(tmp_path)
            os.environ["KEPT"] = "new"
            os.environ["ADDED"] = "1"
            del os.environ["REMOVED"]
        assert os.getcwd() == here
        assert (os.environ["KEPT"], os.environ["REMOVED"], os.environ.get("ADDED")) == ("old", "there", None)
    told = [record.getMessage() for record in caplog.records]
    assert sorted(told) == [  # once, though it is done twice
        f"reward 'r' changed {what}, which everybody shares; it is as it was again"
        for what in (
            "the current folder",
            "the environment variable ADDED",
            "the environment variable KEPT",
            "the environment variable REMOVED",
        )
    ]


def test_a_folder_that_is_gone_is_left(tmp_path: Path) -> None:
    here, gone = os.getcwd(), tmp_path / "gone"
    gone.mkdir()
    with calling("gone"):
        os.chdir(gone)
        gone.rmdir()
    assert os.getcwd() == here


def test_what_others_change_meanwhile_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OURS", raising=False)
    with calling("a reward that is innocent"):
        thread = threading.Thread(target=lambda: os.environ.update(OURS="1"))
        thread.start()
        thread.join()
    assert os.environ["OURS"] == "1"


def no_flag(part: Any, name: str, value: Any) -> Callable[[], None]:
    return lambda: setattr(part, name, value)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda: torch.set_default_dtype(torch.float64), "torch's default dtype"),
        (lambda: torch.set_default_device("meta"), "torch's default device"),
        (lambda: torch.set_num_threads(torch.get_num_threads() + 1), "the number of torch's threads"),
        (lambda: torch.set_grad_enabled(False), "whether gradients are recorded"),
        (lambda: torch.use_deterministic_algorithms(True), "whether torch is deterministic"),
        (lambda: torch.set_float32_matmul_precision("medium"), "the precision of matrix products"),
        (no_flag(torch.backends.mkldnn, "enabled", False), "torch.backends.mkldnn.enabled"),
        (no_flag(torch.backends.cudnn, "enabled", False), "torch.backends.cudnn.enabled"),
        (no_flag(torch.backends.cudnn, "benchmark", True), "torch.backends.cudnn.benchmark"),
        (no_flag(torch.backends.cudnn, "deterministic", True), "torch.backends.cudnn.deterministic"),
        (no_flag(torch.backends.cudnn, "allow_tf32", False), "torch.backends.cudnn.allow_tf32"),
        (lambda: torch.backends.cuda.enable_math_sdp(False), "whether attention may be math"),
        (lambda: torch.backends.cuda.enable_flash_sdp(False), "whether attention may be flash"),
    ],
)
def test_how_torch_computes_is_put_back_and_told(change: Callable[[], None], name: str) -> None:
    for _ in range(2):  # the second time shows that the first was undone
        with (
            pytest.raises(Meddled, match=f"^reward 'r' changed {name}, by which everybody computes"),
            calling("reward 'r'"),
        ):
            change()
    with calling("reward 'r'"):
        pass


def silent() -> None:
    sys.stderr = None


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda: os.umask(0o077), "the umask"),
        (lambda: logging.disable(logging.CRITICAL), "what logging leaves out"),
        (lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL), "who hears SIGTERM"),
        (lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN), "who hears SIGHUP"),
        (lambda: warnings.simplefilter("error"), "which warnings are errors"),
        (silent, "sys.stderr"),
        (lambda: sys.setrecursionlimit(sys.getrecursionlimit() + 7), "how deep calls may go"),
        (gc.disable, "whether memory is collected"),
        (lambda: socket.setdefaulttimeout(7), "how long sockets wait"),
        (lambda: signal.alarm(600), "the alarm"),
        (lambda: logging.config.dictConfig({"version": 1}), "the log of the run"),
        (lambda: logging.getLogger("flowfactory").setLevel(logging.CRITICAL), "the log of the run"),
        (lambda: torch.autograd.set_detect_anomaly(True), "whether torch looks for anomalies"),
    ],
)
def test_how_a_run_speaks_hears_and_writes_is_put_back(
    change: Callable[[], Any], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    mask, stderr = os.umask(0o022), sys.stderr
    errors = [rule for rule in warnings.filters if rule[0] == "error"]
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    own = signal.getsignal(signal.SIGTERM)
    try:
        with caplog.at_level(logging.WARNING, "flowfactory"), calling(who := f"one that changes {name} by {change}"):
            change()
        assert (os.umask(0o022), sys.stderr, signal.getsignal(signal.SIGTERM)) == (0o022, stderr, own)
        assert signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
        assert [rule for rule in warnings.filters if rule[0] == "error"] == errors
    finally:
        os.umask(mask)
        signal.signal(signal.SIGTERM, before)
    assert [record.getMessage() for record in caplog.records] == [
        f"{who} changed {name}, which everybody shares; it is as it was again"
    ]


def test_two_calls_at_once_are_held_to_what_was_before_both() -> None:
    changed, ended, found = threading.Event(), threading.Event(), list[str]()

    def second() -> None:
        try:
            with calling("second"):
                changed.wait(10)
        except Meddled as error:
            found.append(str(error))
        ended.set()

    thread = threading.Thread(target=second)
    with calling("first"):
        thread.start()
        torch.set_default_dtype(torch.float64)
        changed.set()
        ended.wait(10)
    assert found == ["second changed torch's default dtype, by which everybody computes"]
    assert torch.get_default_dtype() == torch.float32


class Own(BaseException):
    """A plugin's own, as asyncio has them."""


@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt(), GeneratorExit(), CancelledError(), Own("x")])
def test_what_ends_programs_is_an_error_as_any_other(error: BaseException) -> None:
    with listening(), pytest.raises(Ended) as caught, calling("r"):
        raise error
    assert caught.value.__cause__ is error
    assert said(caught.value) == said(error)
    assert cause(caught.value).startswith(f"{said(error)} (")


@pytest.mark.parametrize("error", [Stopped(signal.SIGTERM), AtOnce()])
def test_a_person_who_ends_it_is_heard(error: BaseException) -> None:
    with pytest.raises(type(error)), calling("r"):
        raise error


def test_so_is_a_keyboard_that_python_listens_to() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), calling("r"):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_foreign_code_cannot_end_the_process_but_its_forks_may_end() -> None:
    with pytest.raises(Ended, match=r"SystemExit: os._exit\(0\)"), calling("r"):
        os._exit(0)
    with calling("r"):
        child = os.fork()
        if child == 0:
            os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_nobody_closes_all_descriptors() -> None:
    with pytest.raises(OSError, match="would close what others have open"), calling("r"):
        os.closerange(3, 256)
    with calling("r"):
        child = os.fork()
        if child == 0:
            os.closerange(3, 256)
            os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_while_somebody_stays_nobody_ends_the_process_in_any_thread(caplog: pytest.LogCaptureFixture) -> None:
    with staying(), pytest.raises(SystemExit, match=r"os._exit\(0\)"):
        os._exit(0)
    with staying():
        thread = threading.Thread(target=os._exit, args=(0,), name="theirs")
        thread.start()
        thread.join()
        child = os.fork()
        if child == 0:
            os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert "os._exit(0) was called in thread 'theirs'; only that thread ends" in caplog.text


def test_who_computes_alone_may_change_how_and_it_is_put_back(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "flowfactory"), calling("one who is alone", alone=True):
        torch.set_default_dtype(torch.float64)
    assert torch.get_default_dtype() == torch.float32
    assert "one who is alone changed torch's default dtype, which everybody shares" in caplog.text


def test_elsewhere_the_process_ends_as_ever() -> None:
    code = "import os, flowfactory.calling; os._exit(3)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 3


def test_an_exception_is_said_whatever_it_holds() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert said(Mute()) == "Mute: (its message cannot be had)"
    assert said(ValueError()) == "ValueError"
    assert said(ValueError("a\x1b[2Jb\udc80ü\nc")) == "ValueError: a\\x1b[2Jb\\udc80ü\nc"
    assert len(said(ValueError("x" * 10**6))) < 1100


def test_a_network_that_chooses_its_attention_meanwhile_is_nobody_elses_doing() -> None:
    """As `[memory] attention = "_native_math"` does in each call, while rewards are asked in another thread."""
    begun, switched, found = threading.Event(), threading.Event(), list[BaseException]()

    def asked() -> None:
        try:
            with calling("reward 'r'"):
                begun.set()
                assert switched.wait(10)
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=asked)
    thread.start()
    assert begun.wait(10)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        switched.set()
        thread.join()
        assert not torch.backends.cuda.flash_sdp_enabled(), "the network's own choice is not put back"
    assert not found


@pytest.mark.parametrize(
    ("leaves", "code"),
    [("pass", 0), ("sys.exit()", 0), ("sys.exit(7)", 7), ("sys.exit('why')", 1), ("raise ValueError('mine')", 1)],
)
def test_what_foreign_code_forks_ends_with_it(leaves: str, code: int, capfd: pytest.CaptureFixture[str]) -> None:
    """However it leaves: else two processes went on, and wrote to one run's folder."""
    children = []
    with calling("who"):
        children.append(os.fork())
        if not children[0]:
            exec(leaves)
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == code
    assert ("ValueError: mine" in capfd.readouterr().err) == ("mine" in leaves)
