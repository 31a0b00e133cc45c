"""Fixtures of the tests above the torch line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub import Hub, serving
from huggingface_hub import constants, hf_api
from specs import DISTRIBUTIONS, install, lay


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A valid spec in the current folder."""
    monkeypatch.chdir(tmp_path)
    return lay(tmp_path)


@pytest.fixture
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine, and an empty cache for what is fetched from it."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serving() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(hf_api.api, "endpoint", server.url)
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield server


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


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny FLUX.1."""
    import torch
    from flowfactory_plugin_flux.checkpoint import tiny_flux

    folder = tmp_path_factory.mktemp("flux")
    torch.manual_seed(0)
    tiny_flux().save_pretrained(folder)
    return folder


@pytest.fixture
def pipe(checkpoint: Path) -> Any:
    """Its pipeline."""
    from diffusers import FluxPipeline

    return FluxPipeline.from_pretrained(checkpoint)


@pytest.fixture
def other() -> Any:
    """A network of the same shape as its own, with other weights."""
    import torch
    from flowfactory_plugin_flux.checkpoint import tiny_flux

    torch.manual_seed(7)
    return tiny_flux().transformer
