"""Wan 2.2 with one expert trained: every trainer learns at that expert's noise levels, or a person is told why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from end_to_end.conftest import metrics
from flowfactory_plugin_wan.wan import Wan

TRAINERS = ("grpo", "grpo-guard", "nft", "awm")
SMALL = (
    "sampling.size=[32, 32, 5]",
    "sampling.prompts=2",
    "sampling.steps=6",
    "optimizer.updates=1",
    "run.epochs=1",
    "-full",
    "lora.rank=2",
    "-eval",
    "-data.eval_prompts",
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two experts. Of its six noise levels the expert for high noise answers at the first three."""
    return Wan.tiny(tmp_path_factory.mktemp("wan") / "checkpoint", experts=2)


def model(checkpoint: Path, experts: str) -> str:
    return f'model={{name="wan", path="{checkpoint}", experts="{experts}", max_sequence_length=32}}'


@pytest.mark.parametrize("experts", ["high", "low", "both"])
@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_trainer_trains_it(run: Callable[..., Path], checkpoint: Path, trainer: str, experts: str) -> None:
    scheduler = "ode" if trainer in ("nft", "awm") else "flow-sde"
    line = metrics(
        run(
            "a",
            model(checkpoint, experts),
            f'trainer={{name="{trainer}"}}',
            f'scheduler={{name="{scheduler}"}}',
            *SMALL,
        )
    )[-1]
    assert 0 < line["train/gradient_norm"] < float("inf")


@pytest.mark.parametrize(
    ("experts", "trainer", "scheduler", "key"),
    [
        ("high", "grpo", '{name="flow-sde", window={rule="list", steps=[4]}}', "[scheduler] window"),
        ("low", "grpo", '{name="flow-sde", window={rule="list", steps=[0]}}', "[scheduler] window"),
        ("low", "nft", '{name="ode"}', "[trainer] times"),
    ],
)
def test_where_no_level_of_it_is_left_it_is_refused(
    run: Callable[..., Path],
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    experts: str,
    trainer: str,
    scheduler: str,
    key: str,
) -> None:
    times = ', times={rule="uniform", range=[0.95, 1.0]}' if trainer == "nft" else ""
    with pytest.raises(AssertionError, match="assert 1 == 0"):
        run("a", model(checkpoint, experts), f'trainer={{name="{trainer}"{times}}}', f"scheduler={scheduler}", *SMALL)
    said = " ".join(capsys.readouterr().err.split())
    assert "answers at none of the noise levels" in said
    assert key in said
