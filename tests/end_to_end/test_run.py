"""What a run does, and that the same run does the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from end_to_end.conftest import metrics
from flowfactory.cli.main import main
from PIL import Image
from safetensors.torch import load_file

Runner = Callable[..., Path]
BATCH = ("sampling.micro_batch=32", "optimizer.micro_batch=32")
FULL, LORA = ("full={}",), ("-full", "lora.rank=4")


def test_a_run_leaves_everything_it_should(run: Runner) -> None:
    folder = run("a", "run.save_samples=5")
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert {"spec.toml", "plan.json", "env.json", "log.txt", "metrics.jsonl", "before-after.png"} <= files
    assert {f"samples/epoch-0002/{n:04d}.png" for n in range(5)} <= files
    assert "samples/epoch-0002/0005.png" not in files
    assert {f"samples/eval-{e:04d}/0002.png" for e in (0, 1, 2)} <= files
    assert {"checkpoints/epoch-0002/current.safetensors", "checkpoints/epoch-0002/ema.safetensors"} <= files
    assert Image.open(folder / "samples/epoch-0001/0000.png").size == (32, 32)
    table = [json.loads(line) for line in (folder / "samples/epoch-0001/samples.jsonl").read_text().splitlines()]
    assert [row["replica"] for row in table] == [0, 1, 2, 0, 1]
    assert all(set(row["scores"]) == {"redness"} for row in table)


def test_metrics_have_one_line_per_epoch_with_the_names_promised(run: Runner) -> None:
    before, *epochs = metrics(run("a"), times=True)
    assert before["epoch"] == 0
    assert {"eval/redness/mean", "eval/redness/std", "time/load", "time/encode", "time/evaluate"} <= before.keys()
    for number, line in enumerate(epochs, 1):
        assert line["epoch"] == number
        assert {
            "reward/redness/mean", "reward/redness/std", "reward/zero_std_groups", "eval/redness/mean", "loss/policy",
            "lr", "time/sample", "time/decode", "time/score", "time/terms", "time/update",
        } <= line.keys()  # fmt: skip


@pytest.mark.parametrize("tuning", [FULL, LORA])
def test_one_seed_gives_one_result_to_the_bit(run: Runner, tuning: tuple[str, ...]) -> None:
    folders = [run(name, *tuning) for name in "ab"]
    assert metrics(folders[0]) == metrics(folders[1])
    a, b = (load_file(folder / "checkpoints/epoch-0002/current.safetensors") for folder in folders)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_another_seed_gives_another_result(run: Runner) -> None:
    assert metrics(run("a"))[1] != metrics(run("b", "run.seed=1"))[1]


def test_micro_batches_change_neither_prompts_nor_noise(run: Runner) -> None:
    small, large = (
        run(f"m{n}", f"sampling.micro_batch={n}", f"optimizer.micro_batch={n}", "run.save_samples=12") for n in (1, 12)
    )
    for epoch in (1, 2):
        tables = [
            [
                json.loads(line)
                for line in (folder / f"samples/epoch-{epoch:04d}/samples.jsonl").read_text().splitlines()
            ]
            for folder in (small, large)
        ]
        for one, other in zip(*tables, strict=True):
            assert [one[k] for k in ("prompt", "slot", "replica")] == [other[k] for k in ("prompt", "slot", "replica")]
            assert one["scores"]["redness"] == pytest.approx(other["scores"]["redness"], abs=2e-3)
    for a, b in zip(metrics(small), metrics(large), strict=True):
        assert a["eval/redness/mean"] == pytest.approx(b["eval/redness/mean"], abs=2e-3)


@pytest.mark.parametrize("storage", ["fp32", "bf16", "fp16"])
def test_an_unchanged_policy_has_a_ratio_of_exactly_one(run: Runner, storage: str) -> None:
    _, *epochs = metrics(run("a", f"sampling.storage={storage}", "optimizer.updates=1", "optimizer.micro_batch=6"))
    for line in epochs:
        assert line["train/ratio_deviation"] == 0
        assert line["train/gradient_norm"] > 0


def test_the_second_update_of_an_epoch_is_off_policy(run: Runner) -> None:
    assert metrics(run("a"))[1]["train/ratio_deviation"] > 0


def test_bfloat16_trains_float32_weights(run: Runner) -> None:
    folder = run("a", "run.precision=bf16", "run.epochs=1")
    saved = load_file(folder / "checkpoints/epoch-0001/current.safetensors")
    assert {t.dtype for t in saved.values()} == {torch.float32}
    assert metrics(folder)[1]["train/gradient_norm"] > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="float16 is refused only where it cannot be computed")
def test_float16_without_cuda_is_refused_in_words(
    spec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(spec), "--folder", str(tmp_path / "r"), "--set=run.precision=fp16"]) == 1
    said = capsys.readouterr().err
    assert '[run] precision = "fp16" needs a CUDA device' in said
    assert "Traceback" not in said


def test_the_reward_rises(run: Runner) -> None:
    folder = run("a", "run.epochs=40", "eval.every=40", "sampling.group=8", "optimizer.lr=3e-3", *BATCH)
    first, last = metrics(folder)[0], metrics(folder)[-1]
    assert last["eval/redness/mean"] > first["eval/redness/mean"] + 0.03


def test_a_second_run_of_one_name_gets_its_own_folder(spec: Path, tmp_path: Path) -> None:
    for expected in ("tiny", "tiny-2"):
        assert main(["run", str(spec), "--runs", str(tmp_path / "runs"), "--set", "run.epochs=0"]) == 0
        assert (tmp_path / "runs" / expected / "metrics.jsonl").exists()


def test_samples_pass_the_network_no_oftener_than_the_algorithm_asks(run: Runner) -> None:
    """Flow-GRPO: every step forward once, every stochastic step trained once; 4 x 3 samples, 4 steps, 2 stochastic."""
    for line in metrics(run("a"))[1:]:
        assert (line["network/forward"], line["network/trained"]) == (12 * 4, 12 * 2)
    for line in metrics(run("b", "trainer.kl_beta=0.1"))[1:]:
        assert (line["network/forward"], line["network/trained"]) == (12 * 4 + 12 * 2, 12 * 2), "and once for KL"


def test_a_group_that_starts_from_one_noise_shares_the_steps_before_its_window(run: Runner) -> None:
    """Flow-GRPO-Fast: steps 0 and 1 once for each of 4 groups, steps 2 and 3 for each of 12 samples."""
    changes = (
        "sampling.shared_noise=true",
        'scheduler.window={rule="list", steps=[2]}',
        "run.epochs=1",
        "optimizer.updates=1",
    )
    shared, split = run("shared", *changes), run("split", *changes, "sampling.micro_batch=1")
    (_, line), (_, whole) = metrics(shared), metrics(split)
    assert line["network/forward"] == 4 * 2 + 12 * 2
    assert whole["network/forward"] == 12 * 4
    assert line["reward/redness/mean"] == pytest.approx(whole["reward/redness/mean"], abs=1e-6)
    assert line["reward/redness/std"] == pytest.approx(whole["reward/redness/std"], abs=1e-6)
    assert line["train/ratio_deviation"] == pytest.approx(0, abs=1e-5)
