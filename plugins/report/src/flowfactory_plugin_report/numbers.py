"""Numbers as a page shows them."""

from __future__ import annotations

import math


def number(value: float) -> str:
    """A few digits: 0.512, 12, 3.1e-5."""
    if not 1e-3 <= abs(value) < 1e6 and value != 0 and math.isfinite(value):
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    if abs(value) >= 100:
        return f"{value:.0f}"
    if value.is_integer():
        return f"{value:.0f}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def duration(seconds: float) -> str:
    """12.3 s, 4.5 min, 2.1 h."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def short(value: float) -> float | None:
    """Six digits of a number, which a picture cannot show more of; None for one that is not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
