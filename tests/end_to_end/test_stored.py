"""Runs that learn from what the rows of the data show: nothing is sampled but for evaluations."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from end_to_end.conftest import REWARDS, metrics
from end_to_end.test_resume import assert_same
from flowfactory.cli.main import main
from flowfactory.training import encoding
from forks import flowfactory
from PIL import Image

SPEC = """
plugins = ["./rewards.py"]

[run]
name = "stored"
epochs = 2

[model]
name = "flux"
path = "{checkpoint}"
max_sequence_length = 16

[full]

[data]
prompts = "{trainer}.jsonl"
eval_prompts = "eval.txt"

[sampling]
size = 32
steps = 2
prompts = 4

[scheduler]
name = "ode"

[trainer]
name = "{trainer}"
times = {{ rule = "uniform", count = 2 }}

[[eval.reward]]
name = "redness"

[optimizer]
lr = 1e-3
updates = 2
micro_batch = 4

[eval]
every = 2

[checkpoint]
keep = 1

[memory]
cache = "{cache}"
"""

TRAINERS = ("sft", "diffusion-dpo")


@pytest.fixture(params=TRAINERS)
def stored(request: pytest.FixtureRequest, tmp_path: Path, checkpoint: Path) -> Path:
    """A spec, and six rows of media of several sizes."""
    rng = random.Random(0)
    names = [f"{number}.png" for number in range(12)]
    for name in names:
        size = rng.randrange(32, 64), rng.randrange(32, 64)
        Image.frombytes("RGB", size, rng.randbytes(3 * size[0] * size[1])).save(tmp_path / name)
    shown = {
        "sft": [{"media": name} for name in names[:6]],
        "diffusion-dpo": [{"chosen": a, "rejected": b} for a, b in zip(names[:6], names[6:], strict=True)],
    }
    lines = [json.dumps({"prompt": f"number {i}", **row}) + "\n" for i, row in enumerate(shown[request.param])]
    (tmp_path / f"{request.param}.jsonl").write_text("".join(lines))
    (tmp_path / "rewards.py").write_text(REWARDS)
    (tmp_path / "eval.txt").write_text("a tree\na house\n")
    text = SPEC.format(checkpoint=checkpoint, trainer=request.param, cache=tmp_path / "cache")
    (tmp_path / "spec.toml").write_text(text)
    return tmp_path / "spec.toml"


def whole(spec: Path, name: str, *sets: str) -> Path:
    folder = spec.parent / name
    assert main(["run", str(spec), "--folder", str(folder), *(f"--set={one}" for one in sets)]) == 0
    return folder


def test_a_run_learns_samples_nothing_and_finds_its_latents_again(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = whole(stored, "first")
    before, *epochs = lines = metrics(first)
    assert [("eval/redness/mean" in line) for line in lines] == [True, False, True]
    assert all(line["train/gradient_norm"] > 0 for line in epochs)
    reference = 0 if 'name = "sft"' in stored.read_text() else 16  # 4 pairs at 2 levels, for the reference
    assert epochs[0]["network/forward"] == reference
    assert before["eval/redness/mean"] != epochs[-1]["eval/redness/mean"]
    monkeypatch.setattr(encoding, "encode_target", lambda *_: pytest.fail("it is encoded again"))
    assert_same(first, whole(stored, "second"))


def test_pictures_inside_a_parquet_file_are_those_beside_one(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, (table,) = whole(stored, "first"), stored.parent.glob("*.jsonl")
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    for name in columns.keys() - {"prompt"}:
        columns[name] = [{"bytes": (stored.parent / file).read_bytes(), "path": file} for file in columns[name]]
    pq.write_table(pa.table(columns), stored.parent / "packed.parquet")
    monkeypatch.setattr(encoding, "encode_target", lambda *_: pytest.fail("it is encoded again"))
    second = whole(stored, "second", f"data.prompts={stored.parent / 'packed.parquet'}")
    assert metrics(first) == metrics(second)


def test_rows_of_two_sources_are_shared_as_prompts_are(stored: Path) -> None:
    (table,) = stored.parent.glob("*.jsonl")
    lines = table.read_text().splitlines(keepends=True)
    (stored.parent / "few.jsonl").write_text("".join(lines[:2]))
    two = f"""
[[data.source]]
name = "few"
prompts = "few.jsonl"

[[data.source]]
name = "all"
prompts = "{table.name}"
eval_prompts = "eval.txt"
share = 3
"""
    text = stored.read_text().replace(f'prompts = "{table.name}"\neval_prompts = "eval.txt"\n', two)
    stored.write_text(text)
    folder = whole(stored, "two")
    assert [(line["source/few/groups"], line["source/all/groups"]) for line in metrics(folder)[1:]] == [(1, 3)] * 2
    plan = json.loads((folder / "plan.json").read_text())
    numbers = {number["name"]: number["value"] for number in plan["numbers"]}
    assert numbers["media"] == (2 + 6) * numbers["samples"] // 4


def test_micro_batches_change_nothing_but_rounding(stored: Path) -> None:
    one, all_at_once = (
        metrics(whole(stored, f"m{n}", f"optimizer.micro_batch={n}", "eval.every=0", "run.epochs=1"))[1] for n in (1, 8)
    )
    assert one.keys() == all_at_once.keys()
    assert one == pytest.approx(all_at_once, rel=2e-4, abs=1e-6)


def test_a_run_that_is_stopped_goes_on_to_the_bit(stored: Path) -> None:
    folder = stored.parent / "stopped"
    code, said = flowfactory(stored.parent, "run", stored, "--folder", folder, stop=(signal.SIGTERM, "terms", 2))
    assert code == 75, said
    assert len(metrics(folder)) == 2  # before the first epoch, and after it
    code, said = flowfactory(stored.parent, "resume", folder)
    assert code == 0, said
    code, said = flowfactory(stored.parent, "run", stored, "--folder", stored.parent / "whole")
    assert code == 0, said
    assert_same(stored.parent / "whole", folder)


@pytest.mark.parametrize("stored", ["diffusion-dpo"], indirect=True)
def test_a_signal_while_media_are_encoded_keeps_those_that_are(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, seen = encoding.encode_target, []

    def stopping(*arguments: object) -> object:
        seen.append(arguments)
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return encode(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(encoding, "encode_target", stopping)
    folder = stored.parent / "stopped"
    assert main(["run", str(stored), "--folder", str(folder)]) == 75
    assert len(seen) == 2
    assert main(["resume", str(folder)]) == 0
    assert len(seen) == 6
    assert_same(whole(stored, "whole"), folder)


def test_a_file_that_is_no_picture_ends_the_run_in_words(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (stored.parent / "3.png").write_text("a cat")
    assert main(["run", str(stored), "--folder", str(stored.parent / "run")]) != 0
    assert "3.png cannot be used as media" in capsys.readouterr().err
