"""How many numbers are read from elsewhere: the LoRA to begin with, and sets that never move. Imports no torch."""

from __future__ import annotations

from flowfactory.spec import holdings
from flowfactory.spec.tables import Full, Spec

UNKNOWN = "is not on this disk, and would say"


def begun_with(location: str) -> tuple[int | None, str]:
    """How many parameters the LoRA at a location has, and in words; `None` where nobody can know yet."""
    found = holdings.find(location)
    if found is None:
        return None, f"{location} {UNKNOWN}"
    return found.parameters, f"LoRA of rank {' and '.join(map(str, sorted(found.ranks)))}, as in `from`"


def loaded(spec: Spec, network: int) -> tuple[int | None, str]:
    """How many parameters the trainer's loaded sets have together, and which they are; `None` as above.

    Beside full fine-tuning LoRA is added to a copy of the networks, which such sets share.

    Args:
        network: parameters of the trained networks.
    """
    sets, full = spec.trainer.spec.needs.loaded, isinstance(spec.tuning, Full)
    found = {location: holdings.find(location) for location in sets.values()}
    total = 0
    for location, held in found.items():
        if held is None:
            return None, f"{location} {UNKNOWN}"
        total += held.parameters if held.kind == "lora" else network
    copied = full and any(held is not None and held.kind == "lora" for held in found.values())
    return total + (network if copied else 0), ", ".join(sets)
