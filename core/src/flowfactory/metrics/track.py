"""Experiment trackers: accelerate's, and those plugins add through `flowfactory_tracker`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import attrs
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from flowfactory.calling import calling
from flowfactory.components.resolved import Events
from flowfactory.contracts.hooks import Run, Tracker
from flowfactory.errors import RunError, did_you_mean, listed, said

log = logging.getLogger("flowfactory")


@contextmanager
def tracking(names: Sequence[str], project: str, run: Run, events: Events) -> Iterator[list[Tracker]]:
    """The trackers of a run, finished at the end whatever happens. What one raises later on is logged, and the run
    goes on without it.

    Raises:
        RunError: nobody knows a name, its package is not installed, or it does not start.
    """
    with ExitStack() as stack:
        trackers: list[Tracker] = []
        for name in names:
            trackers.append(_Guarded(name, _open(name, project, run, events)))
            stack.callback(trackers[-1].finish)
        yield trackers


class _Guarded:
    """A tracker that never stops the run."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name, self._tracker = name, tracker

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._attempt(lambda: self._tracker.log(dict(metrics), step), f"epoch {step}")

    def finish(self) -> None:
        self._attempt(self._tracker.finish, "the end of the run")

    def _attempt(self, act: Callable[[], None], what: str) -> None:
        try:
            with calling(f"tracker {self._name}", environment=False, alone=True):
                act()
        except Exception:
            log.exception("tracker %s failed at %s; the run goes on", self._name, what)


def _open(name: str, project: str, run: Run, events: Events) -> Tracker:
    if name not in LOGGER_TYPE_TO_CLASS:
        with _told(name):
            contributed = events.tracker(name, run)
        if contributed is None:
            known = sorted(map(str, LOGGER_TYPE_TO_CLASS))
            hint = did_you_mean(name, known) or "is the plugin that brings it listed in `plugins`?"
            raise RunError(f"[track] to: there is no tracker `{name}` (there is: {listed(known)}); {hint}")
        return contributed
    if name not in [str(available) for available in get_available_trackers()]:
        raise RunError(f"[track] to: the package of tracker `{name}` is not installed; try: pip install {name}")
    with _told(name):
        return _start(name, project, run)


@contextmanager
def _told(name: str) -> Iterator[None]:
    try:
        with calling(f"tracker {name}", environment=False, alone=True):
            yield
    except Exception as error:
        raise RunError(f"[track] to: tracker `{name}` does not start: {said(error)}") from error


def _start(name: str, project: str, run: Run) -> Tracker:
    kind = LOGGER_TYPE_TO_CLASS[name]
    options: dict[str, Any] = {"logging_dir": run.folder} if kind.requires_logging_directory else {}
    if name == "wandb":
        options |= {"name": run.folder.name, "dir": str(run.folder)}
    tracker: Any = kind(project, **options)
    tracker.start()
    tracker.store_init_configuration(_flat(run.plan.spec))
    return tracker  # type: ignore[no-any-return]


def _flat(spec: Any, prefix: str = "") -> dict[str, int | float | str | bool]:
    """The spec's keys as `table.key`, with the plain values every tracker takes."""
    flat: dict[str, int | float | str | bool] = {}
    for attribute in attrs.fields(type(spec)):
        value = getattr(spec, attribute.name)
        if attrs.has(type(value)):
            flat |= _flat(value, f"{prefix}{attribute.name}.")
        else:
            flat[prefix + attribute.name] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return flat
