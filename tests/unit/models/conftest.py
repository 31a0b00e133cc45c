"""Fixtures of the tests that drive whole pipelines."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from more_families import small_sizes


@pytest.fixture(scope="module")
def small_condition_images() -> Iterator[None]:
    """Sizes to which pipelines scale images, small enough for a processor."""
    with pytest.MonkeyPatch.context() as patch:
        small_sizes(patch)
        yield
