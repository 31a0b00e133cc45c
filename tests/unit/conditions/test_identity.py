"""What conditions are cached under: everything that could change them, and nothing that could not."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flowfactory.builtin import PipelineSpec
from flowfactory.conditions import identity
from flowfactory.conditions.identity import encoder_identity
from flowfactory.contracts.key import Location
from flowfactory.models.pipeline import PipelineAdapter
from flowfactory.runs import files
from hub import Hub, Trouble
from huggingface_hub import constants

FILES = {
    "model_index.json": "{}",
    "text_encoder/config.json": "{}",
    "text_encoder/model.safetensors": "weights",
    "tokenizer/vocab.json": "{}",
    "transformer/config.json": "{}",
    "transformer/diffusion_pytorch_model.safetensors": "weights",
    "vae/model.safetensors": "weights",
    "scheduler/scheduler_config.json": "{}",
    "README.md": "",
    ".git/HEAD": "",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLOWFACTORY_CACHE", str(tmp_path / "user"))
    for name, content in FILES.items():
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).write_text(content)
    return tmp_path / "model"


def of(path: Path | str, dtype: str = "bf16", version: str = "1.0", **keys: Any) -> dict[str, Any]:
    adapter = PipelineAdapter(PipelineSpec(path=Location(str(path)), **keys))
    return encoder_identity(adapter, dtype, {"plugin": version})


@pytest.mark.parametrize("name", [n for n in FILES if n.startswith(("model_index", "text", "token", "vae"))])
def test_a_changed_encoder_is_another(folder: Path, name: str) -> None:
    before = of(folder)
    (folder / name).write_text("changed")
    assert of(folder) != before


def test_the_networks_settings_count_and_their_weights_do_not(folder: Path) -> None:
    before = of(folder)
    (folder / "transformer/diffusion_pytorch_model.safetensors").write_text("trained")
    for name in ("scheduler/scheduler_config.json", "README.md", ".git/HEAD"):
        (folder / name).write_text("changed")
    assert of(folder) == before
    (folder / "transformer/config.json").write_text("changed")
    assert of(folder) != before


def test_a_change_within_a_file_of_the_same_size_is_seen(folder: Path) -> None:
    before = of(folder)
    (folder / "text_encoder/model.safetensors").write_text("weighty")
    assert of(folder) != before


@pytest.mark.parametrize(
    "change",
    [{"dtype": "fp32"}, {"version": "1.1"}, {"revision": "other"}, {"max_sequence_length": 8}],
    ids=lambda change: next(iter(change)),
)
def test_other_settings_are_another(folder: Path, change: dict[str, Any]) -> None:
    assert of(folder, **change) != of(folder)


def test_settings_that_encode_does_not_read_are_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert of(folder, true_cfg=3.0) != of(folder)
    monkeypatch.setattr(PipelineAdapter, "not_encoded", frozenset({"true_cfg"}))
    assert of(folder, true_cfg=3.0) == of(folder)


def test_a_moved_checkpoint_is_the_same(folder: Path, tmp_path: Path) -> None:
    before = of(folder)
    shutil.move(folder, tmp_path / "elsewhere")
    assert of(tmp_path / "elsewhere") == before


def test_another_adapter_is_another(folder: Path) -> None:
    class Other(PipelineAdapter[PipelineSpec]):
        pass

    assert encoder_identity(Other(PipelineSpec(path=Location(str(folder)))), "bf16", {"plugin": "1.0"}) != of(folder)


@pytest.mark.parametrize(("library", "version", "same"), [("diffusers", "0.99.0", False), ("transformers", None, True)])
def test_a_librarys_minor_version_counts_and_its_patches_do_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch, library: str, version: str | None, same: bool
) -> None:
    before, installed = of(folder), importlib.metadata.version
    patched = version or ".".join([*installed(library).split(".")[:2], "999"])
    monkeypatch.setattr(importlib.metadata, "version", lambda name: patched if name == library else installed(name))
    assert (of(folder) == before) is same


def test_a_file_is_read_once_until_it_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    sha256: Callable[[Path], str] = files.sha256
    monkeypatch.setattr(identity.files, "sha256", lambda path: read.append(path.name) or sha256(path))
    first = of(folder)
    assert len(read) == 6
    assert of(folder) == first
    assert len(read) == 6
    os.utime(folder / "vae/model.safetensors", (1, 1))
    assert of(folder) == first
    assert read[6:] == ["model.safetensors"]


def test_a_hub_checkpoint_is_known_by_its_commit(online: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    first, other = online.commit({"model_index.json": b"{}"}), online.commit({"model_index.json": b"{ }"}, "v2")
    assert of("owner/name")["checkpoint"] == f"commit {first}"
    assert of("owner/name", revision="v2")["checkpoint"] == f"commit {other}"
    moved = online.commit({"model_index.json": b"{  }"})
    assert of("owner/name")["checkpoint"] == f"commit {moved}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert of("owner/name")["checkpoint"] == f"commit {moved}"


@pytest.mark.parametrize(
    ("path", "trouble", "words"),
    [
        ("owner/name", Trouble(after=-1), "owner/name is not on this disk, and the connection to the hub at"),
        ("owner/name", Trouble(502), "owner/name is not on this disk, and the hub fails (502); try again"),
        ("owner/name", Trouble(), "owner/name has no revision 'x' at"),
        ("owner/closed", Trouble(), "owner/closed is gated; accept its terms at"),
        ("owner/absent", Trouble(), "owner/absent is not at"),
    ],
)
def test_where_there_is_no_checkpoint_the_reason_is_said(path: str, trouble: Trouble, words: str, online: Hub) -> None:
    online.commit({"model_index.json": b"{}"})
    online.troubles = {"owner": trouble}
    with pytest.raises(ValueError, match=re.escape(words)):
        of(path, revision="x")
