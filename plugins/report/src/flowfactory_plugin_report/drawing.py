"""The library that draws in the page, plotly.js, packed: a third of its size, and unpacked by the browser."""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import importlib.resources


@functools.cache
def code() -> str:
    """The library as its Python package ships it."""
    return (importlib.resources.files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")


@functools.cache
def packed() -> str:
    """The same, gzip in base64; the same text for the same library."""
    return base64.b64encode(gzip.compress(code().encode(), mtime=0)).decode()


def digest(text: str) -> str:
    """How a page's policy names a script or a style that it admits."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
