"""What a process shares, or one of its threads: how torch computes, the log, sockets, signals; and how it is put back.

Imports no torch: what is not loaded has no settings yet.
"""

from __future__ import annotations

import functools
import gc
import logging
import os
import signal
import socket
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock, current_thread, main_thread
from typing import Any

import attrs

log = logging.getLogger("flowfactory")

STATUS = Path("/proc/self/status")
"""Where Linux says what the umask is."""


@attrs.frozen
class Setting:
    """Something that is shared. computes: whether results depend on it."""

    read: Callable[[], Any]
    write: Callable[[Any], object]
    computes: bool = True


def _process_settings() -> Mapping[str, Setting]:
    """What the whole process shares, and no part of a run changes."""
    own = {
        "what logging leaves out": Setting(lambda: logging.root.manager.disable, logging.disable, computes=False),
        "the log of the run": Setting(_log, _restore_log, computes=False),
        "how deep calls may go": Setting(sys.getrecursionlimit, sys.setrecursionlimit, computes=False),
        "whether memory is collected": Setting(gc.isenabled, lambda on: (gc.enable if on else gc.disable)(), False),
        "how long sockets wait": Setting(socket.getdefaulttimeout, socket.setdefaulttimeout, computes=False),
        "the alarm": Setting(lambda: signal.getitimer(signal.ITIMER_REAL)[0] > 0, _restore_alarm, computes=False),
    }
    if STATUS.exists():
        own["the umask"] = Setting(_umask, os.umask, computes=False)
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return own
    flags = {"mkldnn": ("enabled",), "cudnn": ("enabled", "benchmark", "deterministic", "allow_tf32")}
    return own | {
        "torch's default dtype": Setting(torch.get_default_dtype, torch.set_default_dtype),
        "whether torch is deterministic": Setting(
            torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms
        ),
        "the precision of matrix products": Setting(
            torch.get_float32_matmul_precision, torch.set_float32_matmul_precision
        ),
        "whether torch looks for anomalies": Setting(
            torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly, computes=False
        ),
        **{
            f"torch.backends.{part}.{name}": _attribute(vars(torch.backends)[part], name)
            for part, names in flags.items()
            for name in names
        },
    }


def _log() -> tuple[bool, int]:
    return log.disabled, log.level


def _restore_log(before: tuple[bool, int]) -> None:
    log.disabled = before[0]
    log.setLevel(before[1])


def _restore_alarm(before: bool) -> None:
    if not before:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _umask() -> int:
    """What `os.umask` would tell, without changing it for a moment."""
    return int(STATUS.read_text().partition("Umask:")[2].split()[0], 8)


def thread_settings() -> Mapping[str, Setting]:
    """What belongs to the thread, which may be that of the run itself."""
    main = _main_settings() if current_thread() is main_thread() else {}
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return main
    return main | {
        "the number of torch's threads": Setting(torch.get_num_threads, torch.set_num_threads),
        "torch's default device": Setting(
            torch.get_default_device, lambda device: torch.set_default_device(None if device.type == "cpu" else device)
        ),
        "whether gradients are recorded": Setting(torch.is_grad_enabled, torch.set_grad_enabled),
    }


def _main_settings() -> dict[str, Setting]:
    """What the main thread changes itself at times, so that other threads cannot tell who did."""
    handled = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    return _attention() | {
        "sys.stdout": _attribute(sys, "stdout", computes=False),
        "sys.stderr": _attribute(sys, "stderr", computes=False),
        "which warnings are errors": Setting(_errors, _restore_errors, computes=False),
        **{
            f"who hears {number.name}": Setting(
                functools.partial(signal.getsignal, number), functools.partial(signal.signal, number), computes=False
            )
            for number, handler in handled.items()
            if handler is not None  # whoever set it was not Python
        },
    }


def _attention() -> dict[str, Setting]:
    """Which kernels may compute attention; a network that is to use one of torch's switches others off."""
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return {}
    cuda = vars(torch.backends.cuda)
    return {
        f"whether attention may be {name}": Setting(cuda[f"{name}_sdp_enabled"], cuda[f"enable_{name}_sdp"])
        for name in ("flash", "math", "mem_efficient", "cudnn")
    }


def _errors() -> list[Any]:
    return [rule for rule in warnings.filters if rule[0] == "error"]


def _restore_errors(before: list[Any]) -> None:
    kept = [rule for rule in warnings.filters if rule[0] != "error" or rule in before]
    warnings.resetwarnings()  # what was looked up so far is forgotten, too
    warnings.filters[:] = kept  # type: ignore[index]


def _attribute(owner: Any, name: str, computes: bool = True) -> Setting:
    return Setting(lambda: getattr(owner, name), lambda value: setattr(owner, name, value), computes)


def differences(settings: Mapping[str, Setting], before: Mapping[str, Any]) -> dict[str, bool]:
    """Which settings are other ones than before, and whether they `computes`; they are put back."""
    changed = [name for name in before if name in settings and settings[name].read() != before[name]]
    for name in changed:
        settings[name].write(before[name])
    return {name: settings[name].computes for name in changed}


class Shared:
    """The process's settings as they were before any foreign code began that is still under way."""

    def __init__(self) -> None:
        self._lock, self._calls, self._before = Lock(), 0, dict[str, Any]()

    def enter(self) -> None:
        """Foreign code begins."""
        with self._lock:
            if self._calls == 0:
                self._before = {name: setting.read() for name, setting in _process_settings().items()}
            self._calls += 1

    def leave(self) -> dict[str, bool]:
        """It has ended; see `differences` for what is returned."""
        with self._lock:
            self._calls -= 1
            return differences(_process_settings(), self._before)
