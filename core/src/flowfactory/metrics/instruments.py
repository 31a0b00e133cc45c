"""What tells a person how a run goes, and what measures it."""

from __future__ import annotations

import attrs

from flowfactory.metrics.clock import Clock, Stopwatch
from flowfactory.metrics.display import Display


@attrs.frozen(eq=False)
class Instruments:
    """What shows and measures a run."""

    display: Display
    clock: Clock
    stopwatch: Stopwatch
