"""Fixtures of the tests above the torch line."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hub import Hub, Trouble, serving
from huggingface_hub import constants, hf_api
from huggingface_hub.utils import _http
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
        _ask_at(server.url, monkeypatch)
        yield server


@pytest.fixture(params=["a page", "nothing"])
def mute(request: pytest.FixtureRequest, online: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Let a page of somebody else answer instead of the hub, or nobody; fast, that is."""

    def begin() -> None:
        monkeypatch.setattr(_http, "time", SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None}))
        online.troubles = {"": Trouble(page=b"<html>Who are you?</html>")}
        if request.param == "nothing":
            _ask_at(f"http://127.0.0.1:{nobody.getsockname()[1]}", monkeypatch)
            for limit in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
                monkeypatch.setattr(constants, limit, 0.2)

    with socket.create_server(("127.0.0.1", 0)) as nobody:  # takes connections, and reads nothing of them
        yield begin


def _ask_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(hf_api.api, "endpoint", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


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
