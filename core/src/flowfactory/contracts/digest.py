"""Numbers from what they are for: the hash behind every seed. Imports no torch, so specs can be planned with it."""

from __future__ import annotations

import hashlib
import json

Key = tuple[int | str, ...]
"""What a draw is for, e.g. `(seed, "noise", epoch, slot, replica)`."""


def hash_of(*key: int | str) -> int:
    """A 128-bit number that is a pure function of `key`."""
    return int.from_bytes(hashlib.blake2b(json.dumps(key).encode(), digest_size=16).digest(), "big")


def seed_of(*key: int | str) -> int:
    """A 63-bit number that is a pure function of `key`, to sort or to choose by."""
    digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
