"""`flowfactory evaluate`: any rewards on any prompts, of a run or an export and of its base, from the same noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flowfactory.cli.main import main
from trained import FULL, LORA, Trained, train

PLUGIN = """
from flowfactory import Composite, GroupReward, NoKeys, Provides, hookimpl

def parted(samples):
    return [Composite(float(s.media.mean()), {"red": float(s.media[0].mean())}, {"red": "so red"}) for s in samples]

def never(samples):
    raise RuntimeError("it is out of order")

def for_dogs(samples):
    return [1.0 if "dog" in s.row.prompt else None for s in samples]

class Place(GroupReward):
    alone = False

    def score(self, samples):
        order = sorted(float(s.media.mean()) for s in samples)
        return [order.index(float(s.media.mean())) / (len(order) - 1) for s in samples]

@hookimpl
def flowfactory_rewards():
    for name, target in (("parted", parted), ("never", never), ("for-dogs", for_dogs), ("place", Place)):
        yield Provides(name, NoKeys, target, "For tests.")
"""
PROMPTS = "a dog\ntwo cats\na dog and a cat\n"


def rewards(folder: Path, *names: str) -> str:
    (folder / "more.py").write_text(PLUGIN)
    tables = "".join(f'[[reward]]\nname = "{name}"\non_error = "drop-group"\n' for name in names)
    (folder / "rewards.toml").write_text('plugins = ["./more.py"]\n' + tables)
    (folder / "prompts.txt").write_text(PROMPTS)
    return str(folder / "rewards.toml")


@pytest.fixture(scope="module", params=[LORA, FULL], ids=["lora", "full"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(tmp_path_factory.mktemp("run"), "sd3", request.param)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(tmp_path_factory.mktemp("run"), "sd3", LORA)


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main(["evaluate", *map(str, arguments), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_scores_are_those_of_the_samples_that_sample_makes(
    run: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And so does an export of the same weights, whether it lies in the run or elsewhere."""
    file = rewards(tmp_path, "parted")
    common = ("--prompts", tmp_path / "prompts.txt", "--rewards", file, "--count", 2, "--seed", 3)
    done = told(capsys, run.folder, *common, "--rewards", "jpeg-compressibility", "--to", tmp_path / "out")
    same = ["--prompts", tmp_path / "prompts.txt", "--count", 2, "--seed", 3, "--to", tmp_path / "sampled"]
    assert main(["sample", str(run.folder), *map(str, same)]) == 0
    capsys.readouterr()
    for side in ("base", "trained"):
        pairs = [
            (tmp_path / folder / side / f"{i:04d}.png").read_bytes() for i in range(6) for folder in ("out", "sampled")
        ]
        assert pairs[::2] == pairs[1::2]
    assert set(done["rewards"]) == {"parted", "parted/red", "jpeg-compressibility"}
    jpeg = done["rewards"]["jpeg-compressibility"]
    assert (jpeg["prompts"], jpeg["failed"], jpeg["better"] + jpeg["worse"] <= 3) == (3, 0, True)
    lines = [json.loads(line) for line in (tmp_path / "out/scores.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == PROMPTS.splitlines()
    means = {side: np.mean([line[side]["jpeg-compressibility"] for line in lines]) for side in ("base", "trained")}
    assert jpeg["difference"]["value"] == pytest.approx(means["trained"] - means["base"])
    assert jpeg["difference"]["low"] <= jpeg["difference"]["value"] <= jpeg["difference"]["high"]
    assert means["trained"] != means["base"]
    table = (tmp_path / "out/table.md").read_text()
    assert table.startswith("| reward | prompts | base | trained |")
    assert "3 prompts, 2 samples of each, 4 steps, noise of seed 3, the same for both" in table
    samples = json.loads((tmp_path / "out/trained/samples.jsonl").read_text().splitlines()[0])
    assert samples["words"] == {"parted/red": "so red"}
    exported = run.export().folder
    elsewhere = exported.rename(tmp_path / "weights")
    again = told(capsys, elsewhere, *common, "--base", run.folder / "model", "--to", tmp_path / "again")
    assert again["weights"] == "The export `weights`"
    for side in ("base", "trained"):
        ours, theirs = done["rewards"]["parted"][side]["value"], again["rewards"]["parted"][side]["value"]
        assert ours == pytest.approx(theirs, abs=1e-5)


def test_what_is_left_out_is_what_the_run_does(small: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    inside = small.export().folder
    (small.folder / "held-out.txt").write_text("a dog\n")
    spec = small.folder / "spec.toml"
    before = spec.read_text()
    spec.write_text(before.replace("[data]\n", f'[data]\neval_prompts = "{small.folder / "held-out.txt"}"\n'))
    try:
        assert main(["evaluate", str(inside)]) == 0
    finally:
        spec.write_text(before)
    said = capsys.readouterr()
    assert "| `jpeg-compressibility` | 1 |" in said.out
    assert "The export `lora`: 1 prompt, 1 sample of each, 4 steps" in said.out
    assert (small.folder / "evaluated/sheet.png").is_file()


def test_a_reward_of_groups_compares_base_and_trained(
    small: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = rewards(tmp_path, "place", "parted")
    done = told(capsys, small.folder, "--prompts", tmp_path / "prompts.txt", "--rewards", file)["rewards"]
    assert done["place"]["base"]["value"] + done["place"]["trained"]["value"] == pytest.approx(1)
    assert (done["place"]["better"], done["place"]["worse"]) == (done["parted"]["better"], done["parted"]["worse"])


def test_a_reward_that_applies_to_some_is_compared_on_those(
    small: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = rewards(tmp_path, "for-dogs")
    done = told(capsys, small.folder, "--prompts", tmp_path / "prompts.txt", "--rewards", file)["rewards"]
    assert (done["for-dogs"]["prompts"], done["for-dogs"]["difference"]["value"]) == (2, 0.0)
    (tmp_path / "prompts.txt").write_text("a cat\n")
    assert main(["evaluate", str(small.folder), "--prompts", str(tmp_path / "prompts.txt"), "--rewards", file]) == 1
    assert "none of the rewards applies to any of these prompts" in capsys.readouterr().err


def test_what_cannot_be_evaluated_is_said_and_leaves_nothing(
    small: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, file = small.folder, rewards(tmp_path, "never")
    before = sorted(path.name for path in folder.iterdir())
    prompts = ("--prompts", str(tmp_path / "prompts.txt"))
    (tmp_path / "empty.txt").write_text("")
    for options, code, said in (
        ([], 2, "the run holds no prompts out: name a file of them with --prompts"),
        ([*prompts, "--rewards", "nothing"], 3, "nothing"),
        ([*prompts, "--rewards", "ocr", "--rewards", "ocr"], 2, "several rewards are labelled `ocr`"),
        ([*prompts, "--rewards", str(tmp_path / "none.toml")], 2, "none.toml"),
        ([*prompts, "--epoch", "9"], 1, "has no checkpoint epoch-0009"),
        ([*prompts, "--base", str(tmp_path)], 1, "cannot be sampled from"),
        ([*prompts, "--rewards", file], 1, "reward 'never' has no scores for"),
    ):
        assert main(["evaluate", str(folder), *options]) == code, options
        assert said in " ".join(capsys.readouterr().err.split())
    assert sorted(path.name for path in folder.iterdir()) == before
    assert main(["evaluate", str(tmp_path), *prompts]) == 2
    assert "is not the folder of a run" in capsys.readouterr().err
