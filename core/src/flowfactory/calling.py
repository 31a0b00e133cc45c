"""Calling other people's code: what it changes of what the whole process shares is put back. Imports no torch.

Rewards are asked in threads of their own while samples are made, and observers are told in between. Neither may decide
where a run writes, what its other parts read from the environment, how torch computes for them, or when it ends.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from threading import current_thread, local, main_thread
from typing import Any

from flowfactory import streams
from flowfactory.errors import Ended, Ending, harmless, said
from flowfactory.settings import Shared, differences, thread_settings

log = logging.getLogger("flowfactory")


class Meddled(Exception):
    """Foreign code changed how torch computes for everybody; it is as it was again."""


@contextmanager
def calling(who: str, environment: bool = True, alone: bool = False) -> Iterator[None]:
    """Run foreign code. What it changes that everybody shares is put back at the end, however it ends.

    It cannot end the process without a word: its `os._exit` is `sys.exit` there, and that is an error as any other. A
    process that it has forked ends with it, lest there be two that go on.

    Args:
        who: as messages name it.
        environment: whether variables are put back, too; what is imported may set those that it reads later.
        alone: whether nobody else computes meanwhile, so that how torch computes is put back as anything else.

    Raises:
        Ended: it raised what ends programs.
        Meddled: it changed how torch computes; what others computed meanwhile may be wrong.
    """
    outer, _thread.before, _thread.process = _before(), {}, os.getpid()
    own = {name: setting.read() for name, setting in thread_settings().items()}
    _shared.enter()
    try:
        with _one_goes_on():
            yield
    except (Exception, Ending):
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and _by_keyboard():
            raise
        raise Ended(said(error)) from error
    finally:
        noted, _thread.before = _thread.before, outer
        changed = {**_shared.leave(), **differences(thread_settings(), own)}
        noted = noted if environment else {name: value for name, value in noted.items() if name is None}
        harmful = [name for name, computes in changed.items() if computes and not alone]
        _tell(who, [*streams.restore(), *_put_back(noted), *(name for name in changed if name not in harmful)])
    if harmful:
        raise Meddled(f"{who} changed {' and '.join(harmful)}, by which everybody computes")


@contextmanager
def _one_goes_on() -> Iterator[None]:
    """Whatever is forked meanwhile ends at the end, as programs do."""
    process, code = os.getpid(), 1
    try:
        yield
        code = 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
        raise
    except BaseException:
        if os.getpid() != process:
            traceback.print_exc()
        raise
    finally:
        if os.getpid() != process:
            _end(code)


def _by_keyboard() -> bool:
    """Whether Python itself hears Ctrl-C in this thread; commands listen otherwise (see `processes.stop`)."""
    return current_thread() is main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _tell(who: str, changed: Iterable[str]) -> None:
    for name in changed:
        if (who, name) not in _told:
            log.warning("%s changed %s, which everybody shares; it is as it was again", who, name)
        _told.add((who, name))


# --- the current folder, the environment, the end of the process ------------------------------------------------------

_shared, _thread, _told, _staying = Shared(), local(), set[tuple[str, str]](), list[int]()
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
