"""Foreign code cannot change what the whole process shares, nor end it."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flowfactory.calling import Meddled, calling, said


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
        with caplog.at_level(logging.WARNING, "flowfactory"), calling(f"one that changes {name}"):
            change()
        assert (os.umask(0o022), sys.stderr, signal.getsignal(signal.SIGTERM)) == (0o022, stderr, own)
        assert signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
        assert [rule for rule in warnings.filters if rule[0] == "error"] == errors
    finally:
        os.umask(mask)
        signal.signal(signal.SIGTERM, before)
    assert [record.getMessage() for record in caplog.records] == [
        f"one that changes {name} changed {name}, which everybody shares; it is as it was again"
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


def test_foreign_code_cannot_end_the_process_but_its_forks_may_end() -> None:
    with pytest.raises(SystemExit, match=r"os._exit\(0\)"), calling("r"):
        os._exit(0)
    with calling("r"):
        child = os.fork()
        if child == 0:
            os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


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
