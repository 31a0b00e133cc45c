"""A function that scores images or videos, served over HTTP from an environment of its own.

Nothing here needs flowfactory or torch, so that nothing can clash with what the function needs.
"""

from __future__ import annotations

import os

PROTOCOL = 1
"""The version of what is sent and answered; see the page Protocol of the documentation."""
DEVICE = "FLOWFACTORY_DEVICE"
"""Environment variable that says where the function computes."""
TOKEN = "FLOWFACTORY_TOKEN"
"""Environment variable with what clients must send as a bearer token."""


def device() -> str:
    """Where the function is to compute: `cpu`, `cuda:1`."""
    return os.environ.get(DEVICE) or "cpu"
