"""`flowfactory bench`: where the time goes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState
from flowfactory.cli.main import main
from flowfactory.contracts.types import Row
from flowfactory.models.pipeline import PipelineAdapter
from forks import received, start


def bench(spec: Path, pipe: Connection) -> None:
    """What the command prints of a spec, through a pipe; and an end with its exit code."""
    os.chdir(spec.parent)
    with redirect_stdout(StringIO()) as said:
        code = main(["bench", str(spec), "--epochs", "2", "--json"])
    pipe.send(said.getvalue())
    sys.exit(code)


def test_bench_measures_and_leaves_nothing_behind(spec: Path) -> None:
    """In a process of its own: how much its memory grows depends on what it had before."""
    before = sorted(spec.parent.rglob("*"))
    process, pipe = start(bench, spec)
    (said,) = received(pipe)
    process.join()
    assert process.exitcode == 0
    measured = json.loads(said)
    assert sorted(spec.parent.rglob("*")) == before
    assert {"sample", "decode", "terms", "update"} <= measured["phases"].keys()
    assert measured["seconds"] == pytest.approx(sum(measured["phases"].values()))
    assert 0.2 < measured["network_share"] <= 1
    assert measured["network_share"] == pytest.approx(sum(measured["network"].values()) / measured["seconds"])
    assert measured["network"].keys() == {"sample", "update"}
    assert all(0 < seconds < measured["phases"][phase] for phase, seconds in measured["network"].items())
    assert (measured["forward"], measured["trained"]) == (12 * 4, 12 * 2)
    assert measured["peak_rss"] > 2**27
    assert {"load", "sample", "decode", "update"} <= measured["memory"].keys()
    assert measured["peak_rss"] > max(measured["memory"].values()) > measured["estimated"]["update"] > 0
    assert 0 < measured["utilisation"] < 2


def test_bench_says_in_words_what_is_wrong_with_the_data(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (spec.parent / "train.txt").write_text("")
    assert main(["bench", str(spec)]) == 2
    assert "train.txt: no prompts in it" in capsys.readouterr().err


def test_bench_prints_a_table(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(spec), "--epochs", "1", "--warmup", "0"]) == 0
    said = capsys.readouterr().out
    assert "of it in the network" in said
    assert "4 forward passes and 2 with a backward pass per sample" in said
    assert "% of the" in said


def flops(spec: Path, capsys: pytest.CaptureFixture[str], *sets: str, baseline: bool = False) -> Mapping[str, Any]:
    options = [f"--set={text}" for text in sets] + (["--baseline"] if baseline else [])
    assert main(["bench", str(spec), "--epochs", "1", "--warmup", "0", "--json", *options]) == 0
    AcceleratorState._reset_state(True)
    measured: Mapping[str, Any] = json.loads(capsys.readouterr().out)
    return measured


def test_operations_are_those_of_the_model(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two for each weight and token, and as many again for the gradient of the input and of the weight."""
    plain = flops(spec, capsys)["flops"]
    assert 2.9 < plain["trained"] / plain["forward"] < 3.1
    assert flops(spec, capsys, baseline=True)["flops"]["forward"] == plain["forward"], "encoding is not the model's"
    again = flops(spec, capsys, "memory.gradient_checkpointing=true", "sampling.micro_batch=3")["flops"]
    assert (again["forward"], again["trained"]) == (plain["forward"], pytest.approx(plain["trained"], rel=0.05))


def test_what_cannot_be_counted_is_left_out(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec.write_text(spec.read_text().replace("[full]", "[lora]"))
    measured = flops(spec, capsys, "model.quantize=nf4")
    assert measured["flops"] is measured["utilisation"] is None


@pytest.mark.parametrize("baseline", [False, True])
def test_the_baseline_encodes_in_every_epoch_and_keeps_the_encoders(
    spec: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], baseline: bool, tmp_path: Path
) -> None:
    encoded: list[str] = []
    dropped: list[bool] = []
    encode, drop = PipelineAdapter.encode, PipelineAdapter.drop_encoders

    def counting(self: Any, rows: Sequence[Row]) -> Any:
        encoded.extend(row.prompt for row in rows)
        return encode(self, rows)

    def dropping(self: Any) -> None:
        dropped.append(True)
        drop(self)

    monkeypatch.setattr(PipelineAdapter, "encode", counting)
    monkeypatch.setattr(PipelineAdapter, "drop_encoders", dropping)
    options = ["--epochs", "2", "--warmup", "1", f"--set=memory.cache={tmp_path / 'cache'}"]
    assert main(["bench", str(spec), *options, *(["--baseline"] if baseline else [])]) == 0
    assert "samples/s" in capsys.readouterr().out
    rows, prompts, epochs = 6, 4, 3
    assert len(encoded) == (prompts * epochs if baseline else rows)
    assert dropped == ([] if baseline else [True])
