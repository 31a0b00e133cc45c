"""Where things are kept changes nothing of what a run does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from end_to_end.conftest import metrics
from flowfactory.pipeline import PipelineAdapter

Runner = Callable[..., Path]


def test_offloading_changes_nothing(run: Runner) -> None:
    assert metrics(run("a")) == metrics(run("b", 'memory.offload=["vae", "rewards"]'))


def test_a_second_run_neither_encodes_nor_reads_encoders_and_is_the_same(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = f"memory.cache={tmp_path / 'cache'}"
    first = metrics(run("a", cache))
    assert list((tmp_path / "cache").glob("*/*.safetensors"))
    encoders: list[object] = []
    load = PipelineAdapter.load

    def watching(self: PipelineAdapter, *arguments: object) -> None:  # type: ignore[type-arg]
        load(self, *arguments)  # type: ignore[arg-type]
        encoders.extend([self.pipe.text_encoder, self.pipe.text_encoder_2])

    monkeypatch.setattr(PipelineAdapter, "load", watching)
    monkeypatch.delattr(PipelineAdapter, "encode")
    monkeypatch.setattr(PipelineAdapter, "__abstractmethods__", frozenset())
    assert metrics(run("b", cache)) == first
    assert encoders == [None, None]


def test_a_cache_folder_must_be_absolute(run: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AssertionError):
        run("a", "memory.cache=here")
    assert "cache" in capsys.readouterr().err
