"""Calling other people's code: what it changes of what the whole process shares is put back. Imports no torch.

Rewards are asked in threads of their own while samples are made, and observers are told in between. Neither may decide
where a run writes, what its other parts read from the environment, how torch computes for them, or when it ends.
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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock, current_thread, local, main_thread
from typing import Any

import attrs

from flowfactory import streams
from flowfactory.errors import Ended, Ending, harmless, said

log = logging.getLogger("flowfactory")

STATUS = Path("/proc/self/status")
"""Where Linux says what the umask is."""


class Meddled(Exception):
    """Foreign code changed how torch computes for everybody; it is as it was again."""


@contextmanager
def calling(who: str, environment: bool = True, alone: bool = False) -> Iterator[None]:
    """Run foreign code. What it changes that everybody shares is put back at the end, however it ends.

    It cannot end the process without a word: its `os._exit` is `sys.exit` there, and that is an error as any other.

    Args:
        who: as messages name it.
        environment: whether variables are put back, too; what is imported may set those that it reads later.
        alone: whether nobody else computes meanwhile, so that how torch computes is put back as anything else.

    Raises:
        Ended: it raised what ends programs.
        Meddled: it changed how torch computes; what others computed meanwhile may be wrong.
    """
    outer, _thread.before, _thread.process = _before(), {}, os.getpid()
    own = {name: setting.read() for name, setting in _thread_settings().items()}
    _shared.enter()
    try:
        yield
    except (Exception, Ending):
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and _by_keyboard():
            raise
        raise Ended(said(error)) from error
    finally:
        noted, _thread.before = _thread.before, outer
        changed = {**_shared.leave(), **_differences(_thread_settings(), own)}
        noted = noted if environment else {name: value for name, value in noted.items() if name is None}
        harmful = [name for name, computes in changed.items() if computes and not alone]
        _tell(who, [*streams.restore(), *_put_back(noted), *(name for name in changed if name not in harmful)])
    if harmful:
        raise Meddled(f"{who} changed {' and '.join(harmful)}, by which everybody computes")


def _by_keyboard() -> bool:
    """Whether Python itself hears Ctrl-C in this thread; commands listen otherwise (see `processes.stop`)."""
    return current_thread() is main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _tell(who: str, changed: Iterable[str]) -> None:
    for name in changed:
        if (who, name) not in _told:
            log.warning("%s changed %s, which everybody shares; it is as it was again", who, name)
        _told.add((who, name))


# --- how torch computes, and what else has one value for the whole process -------------------------------------------


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


def _thread_settings() -> Mapping[str, Setting]:
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


def _differences(settings: Mapping[str, Setting], before: Mapping[str, Any]) -> dict[str, bool]:
    """Which settings are other ones than before, and whether they `computes`; they are put back."""
    changed = [name for name in before if name in settings and settings[name].read() != before[name]]
    for name in changed:
        settings[name].write(before[name])
    return {name: settings[name].computes for name in changed}


class _Shared:
    """The process's settings as they were before any foreign code began that is still under way."""

    def __init__(self) -> None:
        self._lock, self._calls, self._before = Lock(), 0, dict[str, Any]()

    def enter(self) -> None:
        with self._lock:
            if self._calls == 0:
                self._before = {name: setting.read() for name, setting in _process_settings().items()}
            self._calls += 1

    def leave(self) -> dict[str, bool]:
        with self._lock:
            self._calls -= 1
            return _differences(_process_settings(), self._before)


_shared = _Shared()

# --- the current folder, the environment, the end of the process ------------------------------------------------------

_thread, _told, _staying = local(), set[tuple[str, str]](), list[int]()
_end, _close = os._exit, os.closerange


def _before() -> dict[bytes | None, Any] | None:
    """What foreign code in this thread has changed so far: variables and, by `None`, the folder; `None` elsewhere."""
    found: dict[bytes | None, Any] | None = vars(_thread).get("before")
    return found


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    """Python tells of each change before it is made, in the thread that makes it."""
    if event not in ("os.chdir", "os.putenv", "os.unsetenv"):
        return
    before = _before()
    if before is not None and event == "os.chdir":
        before.setdefault(None, os.getcwd())
    elif before is not None:
        before.setdefault(arguments[0], os.environb.get(arguments[0]))


def _put_back(noted: Mapping[bytes | None, Any]) -> list[str]:
    """Undo what was noted, and say what it was."""
    changed = []
    for name, value in noted.items():
        if name is None:
            os.chdir(value)
            changed.append("the current folder")
        elif os.environb.get(name) != value:
            changed.append(f"the environment variable {harmless(os.fsdecode(name))}")
            if value is None:
                del os.environb[name]
            else:
                os.environb[name] = value
    return changed


@contextmanager
def staying() -> Iterator[None]:
    """While active, nobody at all ends this process by `os._exit`, in whatever thread."""
    _staying.append(os.getpid())
    try:
        yield
    finally:
        _staying.pop()


def _exit(status: int) -> None:
    """`os._exit`, but in foreign code `sys.exit`; what it has forked may end as it likes."""
    foreign = _before() is not None and os.getpid() == _thread.process
    if foreign or os.getpid() in _staying:
        if not foreign and current_thread() is not main_thread():
            log.warning("os._exit(%s) was called in thread %r; only that thread ends", status, current_thread().name)
        raise SystemExit(f"os._exit({status})")
    _end(status)


def _close_some(low: int, high: int, /) -> None:
    """`os.closerange`, but not in foreign code: nobody knows whose the descriptors are; what it has forked may."""
    if _before() is not None and os.getpid() == _thread.process:
        raise OSError(f"os.closerange({low}, {high}) would close what others have open")
    _close(low, high)


os._exit = _exit  # type: ignore[assignment]
os.closerange = _close_some
sys.addaudithook(_note)
