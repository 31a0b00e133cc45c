"""Training by single steps: what it depends on, and what it does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from end_to_end.conftest import metrics
from flowfactory.cli.main import main

SHORT = ("eval.every=0", "run.save_samples=0")
STEPS = ("trainer={name='stepgrpo', clip_low=1e-3, clip_high=1e-3}",)
ESTIMATES = ("trainer={name='stepgrpo', looks='estimated', clip_low=1e-3, clip_high=1e-3}",)
FAN = ("trainer={name='tempflow', width=3, clip_low=1e-3, clip_high=1e-3}", "sampling.group=2")
TREE = (
    "trainer={name='branchgrpo', splits=[0, 2]}",
    "scheduler.window={rule='all'}",
    "sampling.group=1",
)
PRUNED = ("trainer={name='branchgrpo', splits=[0], width=4, pruning={steps=[2], every=1, share=0.5}}", *TREE[1:])
"""In the second epoch another step is left out than in the first."""
TRAINERS = pytest.mark.parametrize(
    "trainer", [STEPS, ESTIMATES, FAN, TREE, PRUNED], ids=["completed", "estimated", "fan", "tree", "pruned"]
)

Run = Callable[..., Path]


SMALL = ("sampling.micro_batch=2", "optimizer.micro_batch=1", "memory.offload=['vae', 'trajectories']")


@TRAINERS
def test_how_it_is_computed_does_not_matter(run: Run, trainer: tuple[str, ...]) -> None:
    one, other = (
        metrics(run(name, *trainer, *SHORT, "run.epochs=1", *more))[-1] for name, more in (("a", ()), ("b", SMALL))
    )
    for name in ("reward/redness/mean", "reward/redness/std", "loss/policy", "train/gradient_norm"):
        assert other[name] == pytest.approx(one[name], rel=1e-3, abs=1e-6)
    for name in ("network/forward", "network/trained"):
        assert other[name] == one[name]


def test_one_spread_for_prompts_with_other_steps_is_refused(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = ("trainer.name=stepgrpo", "trainer.std=global", "scheduler.window={rule='random', size=1, per='prompt'}")
    assert main(["check", str(spec), *(f"--set={change}" for change in changes)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "each prompt has its own, so one std for all has no meaning" in said


def refused(spec: Path, capsys: pytest.CaptureFixture[str], *changes: str) -> str:
    """What `check` says of a spec with these changes."""
    assert main(["check", str(spec), *(f"--set={change}" for change in changes)]) == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ((*FAN, "scheduler={name='ode'}"), "scheduler `ode` is deterministic"),
        ((*FAN, "sampling.shared_noise=true"), "the branches of trainer `tempflow` share their start"),
        ((*FAN, "memory.shard=true"), "but the branches of trainer `tempflow` do not"),
        (
            (*TREE, "trainer.splits=[0, 3]"),
            "divide at the steps [0, 3], but those of [scheduler] window are [0, 1, 2]",
        ),
        (
            (*TREE, "scheduler.window={rule='random', size=2}"),
            "those of [scheduler] window are drawn, or move with the epochs",
        ),
        ((*TREE, "trainer.splits=[0, 2, 0]"), "divide at the steps [0, 2, 0], one of them twice"),
        ((*TREE, "trainer.width=99"), "would end in 9801 samples of each start; branch into fewer: at most 4096"),
        ((*FAN, "trainer.width=9999"), "would end in 19998 samples of each start"),
        (
            (*TREE, "sampling.steps=999", "trainer.width=99", f"trainer.splits={[*range(900)]}"),
            "samples of each start",
        ),
    ],
    ids=["deterministic", "shared", "divided", "outside", "drawn", "twice", "wide", "wide-fan", "endless"],
)
def test_what_does_not_go_with_branches_is_refused(
    spec: Path, capsys: pytest.CaptureFixture[str], changes: tuple[str, ...], words: str
) -> None:
    assert words in refused(spec, capsys, *changes)


def test_a_prompt_may_have_one_start(spec: Path) -> None:
    assert main(["check", str(spec), *(f"--set={change}" for change in (*FAN, "sampling.group=1"))]) == 0


def test_a_deterministic_scheduler_is_refused(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(spec), "--set=trainer.name=stepgrpo", "--set=scheduler={name='ode'}"]) == 2
    assert "scheduler `ode` is deterministic" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("trainer", "name"),
    [(STEPS, "look_passes"), (FAN, "branch_passes"), (TREE, "branch_passes")],
    ids=["steps", "fan", "tree"],
)
def test_the_plan_says_first_what_it_takes(
    spec: Path, capsys: pytest.CaptureFixture[str], trainer: tuple[str, ...], name: str
) -> None:
    assert main(["plan", str(spec), *(f"--set={change}" for change in trainer)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert name in " ".join(lines[:5])
