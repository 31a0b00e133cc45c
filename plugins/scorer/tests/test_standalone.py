"""A server without flowfactory, asked by flowfactory's reward `remote`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest
import torch
from flowfactory import ServerError
from flowfactory.contracts.types import Row, Sample
from flowfactory_plugin_remote import RemoteSpec
from flowfactory_plugin_remote.client import Remote

SCORER = """
from flowfactory_scorer import device
from PIL import ImageStat


def score(images, prompts, rows):
    if prompts[0] == "device":
        return [float(device().partition(":")[2])]
    if prompts[0] == "raise":
        raise KeyError("no model")
    return [ImageStat.Stat(image).mean[0] / 255 for image in images]
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    file = tmp_path_factory.mktemp("standalone") / "bright.py"
    file.write_text(SCORER)
    options = [f"{file}:score", "--label", "bright", "--port", "0", "--device", "cuda:3"]
    command = [sys.executable, "-m", "flowfactory_scorer", *options]
    environment = {**os.environ, "FLOWFACTORY_TOKEN": "s3cret"}
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment) as one:
        assert one.stderr is not None
        yield next(line for line in one.stderr if line.startswith("serving bright")).split()[-1]
        one.send_signal(signal.SIGTERM)
        assert one.wait(20) == 0


@pytest.fixture
def remote(url: str, monkeypatch: pytest.MonkeyPatch) -> Remote:
    monkeypatch.setenv("FLOWFACTORY_TOKEN", "s3cret")
    made = Remote(RemoteSpec(url=url, reward="bright", attempts=1))
    made.load(torch.device("cpu"), torch.float32, lambda key, factory: factory())
    return made


def sample(prompt: str, level: float = 0.0) -> Sample:
    return Sample(Row(prompt), torch.full((3, 4, 4), level), 0, 0)


def test_it_scores(remote: Remote) -> None:
    assert remote.score([sample("x", 0.0), sample("x", 1.0)]) == [0.0, 1.0]
    assert remote.score([sample("device")]) == [3.0]


def test_what_it_raises_is_told(remote: Remote) -> None:
    with pytest.raises(ServerError, match="answered 500: KeyError: 'no model'"):
        remote.score([sample("raise")])
    assert remote.score([sample("x", 1.0)]) == [1.0]


def test_it_says_its_protocol_to_who_has_the_token(url: str) -> None:
    assert httpx.get(f"{url}/health").status_code == 401
    answer = httpx.get(f"{url}/health", headers={"Authorization": "Bearer s3cret"})
    assert answer.json() == {"protocol": 1, "rewards": {"bright": {"group": False}}}
    assert httpx.get(f"{url}/", headers={"Authorization": "Bearer s3cret"}).status_code == 404
