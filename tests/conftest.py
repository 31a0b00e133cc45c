"""Fixtures that several folders of tests share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from outside import build_wheel, packages


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The wheel of every first-party distribution, by its folder's name; core's is `core`."""
    folder = tmp_path_factory.mktemp("wheels")
    return {package.name: build_wheel(package, folder) for package in packages()}
