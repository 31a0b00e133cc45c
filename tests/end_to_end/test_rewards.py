"""Rewards in whole runs: failing, ending a run without losing it, and told apart from what was not trained on."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import forks
import pytest
from end_to_end.conftest import metrics
from flowfactory.cli.main import main
from flowfactory.discovery.registry import Registry
from flowfactory.policy.policy import ModelPolicy
from flowfactory.spec.structure import load_rewards
from torch import Tensor

Runner = Callable[..., Path]

FAILING = """
from pathlib import Path

def redness(samples):
    asleep = Path(__file__).with_name("asleep.txt")
    if asleep.exists() and asleep.read_text() in samples[0].row.prompt:
        raise OSError("the judge is asleep")
    return [float(s.media[0].mean() - s.media[1:].mean()) for s in samples]
"""


@pytest.fixture
def asleep(spec: Path) -> Path:
    """A file: the reward fails for prompts with its text in them, once it exists."""
    rewards = spec.parent / "rewards.py"
    head, _, rest = rewards.read_text().partition("def redness")
    rewards.write_text(head + FAILING + rest[rest.index("\n\n\n") :])
    return spec.parent / "asleep.txt"


def prompts(folder: Path, epoch: int) -> list[str]:
    table = folder / f"samples/epoch-{epoch:04d}/samples.jsonl"
    return [json.loads(line)["prompt"] for line in table.read_text().splitlines()]


def test_abort_leaves_a_checkpoint_to_go_on_from(
    spec: Path, run: Runner, asleep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ("reward.0.on_error=abort", "eval.every=0", "-data.eval_prompts")
    whole = run("whole", *changes)
    new = next(prompt for prompt in prompts(whole, 2) if prompt not in prompts(whole, 1))
    asleep.write_text(new)
    folder = spec.parent / "runs" / "aborted"
    options = [f"--unset={c[1:]}" if c.startswith("-") else f"--set={c}" for c in changes]
    capsys.readouterr()
    assert main(["run", str(spec), "--folder", str(folder), *options]) == 1
    assert capsys.readouterr().err.count("reward 'redness' failed: OSError: the judge is asleep") == 1
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["epoch-0001"]
    (line,) = (folder / "failures" / "failures.jsonl").read_text().splitlines()
    assert (json.loads(line)["prompt"], json.loads(line)["epoch"]) == (new, 2)
    asleep.unlink()
    assert main(["resume", str(folder)]) == 0
    assert metrics(folder) == metrics(whole)


def test_two_processes_drop_what_one_drops(spec: Path, run: Runner, asleep: Path) -> None:
    asleep.write_text("a cat")
    changes = ("reward.0.retries=1", "reward.0.retry_pause=0", "optimizer.eps=1e-4", "sampling.micro_batch=3")
    one, two = run("one", *changes), spec.parent / "runs" / "two"
    options = [f"--set={change}" for change in changes]
    code, said = forks.flowfactory(spec.parent, "run", spec, "--processes", "2", "--folder", two, *options)
    assert code == 0, said
    dropped = [line["reward/dropped_groups"] for line in metrics(one)[1:]]
    assert sum(dropped) >= 1
    assert [line["reward/dropped_groups"] for line in metrics(two)[1:]] == dropped
    for a, b in zip(metrics(one)[1:], metrics(two)[1:], strict=True):
        assert a["reward/redness/failed_calls"] == b["reward/redness/failed_calls"] == 2 * a["reward/dropped_groups"]
        assert a["reward/redness/mean"] == pytest.approx(b["reward/redness/mean"], abs=1e-5)
    assert "the judge is asleep" in (one / "log.txt").read_text()


def test_overlap_changes_nothing(run: Runner) -> None:
    assert metrics(run("a", "sampling.overlap=true")) == metrics(run("b", "sampling.overlap=false"))


def test_the_page_names_the_metrics_of_a_run_and_its_spec_is_sound(run: Runner, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "page.toml").write_text(snippet)
    assert [entry.weight for entry in load_rewards(tmp_path / "page.toml", Registry())] == [1.0, 0.0]
    lines = metrics(run("lora", "-full", "lora.rank=4", "sampling.refill=1"))
    rows = re.findall(r"^\| `((?:reward|refill|samples|eval)/[^`]+)`(?:, `/(\w+)`)?", page, re.MULTILINE)
    of_parts = [name for name, _ in rows if "<part>" in name]
    assert (len(rows), of_parts) == (12, ["reward/<label>/<part>/mean"])
    for name, further in rows:
        if name in of_parts:
            continue  # only rewards of several parts have it
        for wanted in (name, f"{name.rpartition('/')[0]}/{further}" if further else name):
            assert wanted.replace("<label>", "redness") in lines[-1], wanted


def test_drift_from_the_reference_starts_at_0_and_grows(run: Runner) -> None:
    before, *after = metrics(run("lora", "-full", "lora.rank=4"))
    assert before["eval/drift"] == 0.0
    assert all(line["eval/drift"] > 0 for line in after)
    assert all("samples/diversity" in line and line["samples/diversity"] > 0 for line in after)


def test_a_reward_of_one_function_takes_less_than_ten_lines(spec: Path, run: Runner) -> None:
    (spec.parent / "rewards.py").write_text(
        """import attrs
from flowfactory import Provides, hookimpl

def redness(samples):
    return [float(s.media[0].mean() - s.media[1:].mean()) for s in samples]

@hookimpl
def flowfactory_rewards():
    yield Provides("redness", attrs.make_class("Keys", []), redness, "How red an image is.")
"""
    )
    lines = [line for line in (spec.parent / "rewards.py").read_text().splitlines() if line]
    assert len(lines) < 10
    assert "reward/redness/mean" in metrics(run("short"))[1]


UNSEEN = """
from flowfactory import NoKeys, Provides, Reward, hookimpl


class Nearness(Reward):
    reads = frozenset({"latents", "conditions"})

    def score(self, samples):
        for sample in samples:
            assert sample.media.numel() == 0
            assert all(len(tensor) == 1 for tensor in sample.conditions.values())
        return [float(s.conditions["encode_prompt.0.1"].mean() - s.latents.square().mean()) for s in samples]


@hookimpl
def flowfactory_rewards():
    yield Provides("redness", NoKeys, Nearness, "How small the latents are.")
"""


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many samples each call of the decoder was for."""
    asked: list[int] = []
    decode = ModelPolicy.decode

    def counted(policy: ModelPolicy, x: Tensor, stay: bool = False) -> Tensor:
        asked.append(len(x))
        return decode(policy, x, stay)

    monkeypatch.setattr(ModelPolicy, "decode", counted)
    return asked


def test_a_reward_of_latents_needs_no_media(spec: Path, run: Runner, decoded: list[int]) -> None:
    """Nothing is decoded but what is saved, in training and for held-out prompts alike."""
    (spec.parent / "rewards.py").write_text(UNSEEN)
    before, after = metrics(run("unseen", "run.epochs=1", "run.save_samples=0"))
    assert decoded == []
    assert after["reward/redness/std"] > 0
    assert before["eval/redness/mean"] != after["eval/redness/mean"]
    assert "samples/diversity" not in after
    (spec.parent / "rewards.py").write_text(UNSEEN.replace("assert sample.media.numel() == 0", "pass"))
    saved = run("saved", "run.epochs=1", "run.save_samples=3", "eval.micro_batch=3")
    assert metrics(saved) == [pytest.approx(before), pytest.approx(after)]
    assert decoded == [3, 6, 3]
    assert [len(list(folder.glob("*.png"))) for folder in (saved / "samples").iterdir()] == [3, 3, 3]


@pytest.mark.parametrize(("reward", "stay"), [("blueness", True), ("redness", False)])
def test_media_stay_for_rewards_that_score_by_value(
    reward: str, stay: bool, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In training and for held-out prompts alike."""
    asked, decode = list[bool](), ModelPolicy.decode
    monkeypatch.setattr(ModelPolicy, "decode", lambda *given: asked.append(given[2]) or decode(*given))
    run("run", f"reward=[{{name='{reward}'}}]", "run.epochs=1")
    assert len(asked) > 2
    assert set(asked) == {stay}


def test_what_was_not_decoded_fails_without_a_picture(spec: Path, run: Runner) -> None:
    fails = "for sample in samples:\n            assert sample.row.prompt != 'a cat', 'no cats'"
    (spec.parent / "rewards.py").write_text(UNSEEN.replace("for sample in samples:", fails))
    folder = run("blind", "eval.every=0", "-data.eval_prompts", "run.save_samples=0", "reward.0.max_dropped=1.0")
    lines = [json.loads(line) for line in (folder / "failures" / "failures.jsonl").read_text().splitlines()]
    assert lines
    for line in lines:
        assert (line["prompt"], line["file"]) == ("a cat", None)
        assert "no cats" in line["why"]
    assert [path.name for path in (folder / "failures").iterdir()] == ["failures.jsonl"]


MEDDLING = """
import os, sys, threading, time
from flowfactory import NoKeys, Provides, hookimpl


def meddles(samples):
    for s in samples:
        s.media.zero_()
    os.chdir("/")
    os.environ["HOME"] = "/elsewhere"
    print("a print")
    os.system("echo an echo")
    threading.Thread(target=time.sleep, args=(600,), name="left behind", daemon=False).start()
    return [None for s in samples]


@hookimpl
def flowfactory_rewards():
    yield Provides("meddles", NoKeys, meddles, "Does what a reward must not do, and has no score.")


@hookimpl
def flowfactory_samples_scored(run, epoch, samples, scores):
    scores.clear()
    for s in samples:
        s.media.zero_()
    os.chdir("/")


@hookimpl
def flowfactory_epoch_finished(run, epoch, metrics):
    metrics.clear()
    sys.exit(0)
"""


def test_a_reward_decides_nothing_but_its_scores(spec: Path, run: Runner) -> None:
    """Not what others see, where the run writes, what stdout says, or whether the process ends."""
    alone = run("alone", "eval.every=0", "-data.eval_prompts", "run.epochs=1")
    (spec.parent / "meddling.py").write_text(MEDDLING)
    text = spec.read_text().replace('"./rewards.py"', '"./rewards.py", "./meddling.py"')
    spec.write_text(text.replace("[optimizer]", '[[reward]]\nname = "meddles"\n\n[optimizer]'))
    options = ["--set=eval.every=0", "--unset=data.eval_prompts", "--set=run.epochs=1"]
    command = [sys.executable, "-m", "flowfactory", "run", spec.name, "--folder", "beside", *options]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300, cwd=spec.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    for said in (
        "a print",
        "an echo",
        "reward 'meddles' changed the current folder",
        "reward 'meddles' changed the environment variable HOME",
        "reward 'meddles' has no score for any sample",
        "done; the run is in beside",
        "threads that a plugin has left behind still run ('left behind'",
    ):
        assert said in done.stderr
    beside = spec.parent / "beside"
    ours, theirs = metrics(alone)[-1], metrics(beside)[-1]
    assert "reward/score" not in theirs  # the sum with a reward that has no score
    del ours["reward/score"]
    assert {name: theirs[name] for name in ours} == ours
    for file in ("checkpoints/epoch-0001/current.safetensors", "samples/epoch-0001/0000.png"):
        assert (beside / file).read_bytes() == (alone / file).read_bytes()
