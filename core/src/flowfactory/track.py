"""Experiment trackers: accelerate's, and those plugins add through `flowfactory_tracker`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import attrs
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

if TYPE_CHECKING:
    from flowfactory.assembly import Run
    from flowfactory.registry import Registry


class Tracker(Protocol):
    """What `flowfactory_tracker` returns."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record the metrics of one epoch."""

    def finish(self) -> None:
        """The run is over."""


@contextmanager
def tracking(names: Sequence[str], project: str, run: Run, registry: Registry) -> Iterator[list[Tracker]]:
    """The trackers of a run, finished at the end whatever happens.

    Raises:
        ValueError: nobody knows a name, or its package is not installed.
    """
    with ExitStack() as stack:
        trackers = []
        for name in names:
            trackers.append(_open(name, project, run, registry))
            stack.callback(trackers[-1].finish)
        yield trackers


def _open(name: str, project: str, run: Run, registry: Registry) -> Tracker:
    if name not in LOGGER_TYPE_TO_CLASS:
        contributed: Tracker | None = registry.tracker(name, run)
        if contributed is None:
            raise ValueError(
                f"[track] to: unknown tracker {name!r}; known are {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}"
            )
        return contributed
    if name not in [str(available) for available in get_available_trackers()]:
        raise ValueError(f"[track] to: {name!r} is not installed; `pip install {name}`")
    kind = LOGGER_TYPE_TO_CLASS[name]
    folder: dict[str, Path] = {"logging_dir": run.folder} if kind.requires_logging_directory else {}
    tracker: Any = kind(project, **folder)
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
