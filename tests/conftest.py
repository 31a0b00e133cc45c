"""Fixtures that several folders of tests share."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from outside import build_wheel, packages


def begin_again() -> None:
    """Let what is drawn without a seed of its own be the same, whatever was drawn before."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Before fixtures that several tests share."""
    begin_again()


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """After them: processes run tests in an order of their own."""
    begin_again()


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The wheel of every first-party distribution, by its folder's name; core's is `core`."""
    folder = tmp_path_factory.mktemp("wheels")
    return {package.name: build_wheel(package, folder) for package in packages()}
