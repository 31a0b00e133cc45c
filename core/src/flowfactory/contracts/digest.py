"""Numbers from what they are for: the hash behind every seed. Imports no torch, so specs can be planned with it."""

from __future__ import annotations

import hashlib
import json

Key = tuple[int | str, ...]
"""What a draw is for, e.g. `(seed, "noise", epoch, slot, replica)`."""


def seed_of(*key: int | str) -> int:
    """A 63-bit seed that is a pure function of `key`."""
    digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
