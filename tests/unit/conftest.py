"""Fixtures of the tests above the torch line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from specs import DISTRIBUTIONS, install, lay


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A valid spec in the current folder."""
    monkeypatch.chdir(tmp_path)
    return lay(tmp_path)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed sound and unsound plugins."""
    return install(tmp_path_factory.mktemp("installed"))


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, importable during one test."""
    monkeypatch.syspath_prepend(str(site))
    for distribution in DISTRIBUTIONS:
        monkeypatch.delitem(sys.modules, distribution.module, raising=False)
    return site
