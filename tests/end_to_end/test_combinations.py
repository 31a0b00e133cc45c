"""Every trainer with every scheduler it accepts, on every model, LoRA and full: it trains; or `check` says why not.

Not each with each of all: runs are chosen so that every two of trainer, scheduler and model meet, and every trainer
trains every model in both ways.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
from end_to_end.conftest import metrics
from flowfactory.cli.main import main
from flowfactory.discovery.registry import Registry

TRAINERS = ("grpo", "grpo-guard", "dppo", "dpo", "dgpo", "crd", "nft", "awm", "draft", "refl", "stepgrpo", "tempflow")
DENSITY = {
    "flow-sde": "gaussian",
    "dance-sde": "gaussian",
    "linear-sde": "gaussian",
    "cps": "squared-error",
    "ode": "none",
    "dpm-solver": "none",
    "unipc": "none",
    "heun": "none",
    "sa-solver": "none",
}
ACCEPTS = {
    "grpo": {"gaussian", "squared-error"},
    "grpo-guard": {"gaussian"},
    "dppo": {"gaussian"},
    "stepgrpo": {"gaussian", "squared-error"},
    "tempflow": {"gaussian", "squared-error"},
    "dpo": set(DENSITY.values()),
    "dgpo": set(DENSITY.values()),
    "crd": set(DENSITY.values()),
    "nft": set(DENSITY.values()),
    "awm": set(DENSITY.values()),
    "draft": set(DENSITY.values()),
    "refl": set(DENSITY.values()),
}
PARTS = {"grpo": {"policy"}, "grpo-guard": {"policy"}, "dppo": {"policy"}, "dpo": {"policy"}} | {
    "dgpo": {"policy", "kl"},
    "crd": {"policy", "kl"},
    "nft": {"policy", "kl"},
    "awm": {"policy", "kl", "average"},
    "draft": {"reward"},
    "refl": {"reward"},
    "stepgrpo": {"policy"},
    "tempflow": {"policy"},
}
SIZES = {"flux": "32", "diffusers": "32", "qwen-image": "32", "wan": "[32, 32, 5]"}
TUNINGS = {"full": ("full={}",), "lora": ("-full", "lora.rank=2")}


Run = tuple[str, str, str, str]
"""Trainer, scheduler, model, tuning."""


def met(run: Run) -> set[tuple[str, ...]]:
    """What meets in a run."""
    trainer, scheduler, model, tuning = run
    return {(trainer, scheduler), (scheduler, model), (trainer, model, tuning)}


def chosen() -> list[Run]:
    """Runs until all that can meet has met, each time the first of those in which most meets anew."""
    pairs = [(t, s) for t, s in product(TRAINERS, DENSITY) if DENSITY[s] in ACCEPTS[t]]
    possible = [(*pair, model, tuning) for pair, model, tuning in product(pairs, SIZES, TUNINGS)]
    missing, runs = set[tuple[str, ...]]().union(*map(met, possible)), list[Run]()
    while missing:
        runs.append(max(possible, key=lambda run: len(met(run) & missing)))
        missing -= met(runs[-1])
    return runs


def changes(trainer: str, scheduler: str) -> tuple[str, ...]:
    window = ', window={rule="random", size=2}' if DENSITY[scheduler] != "none" else ""
    reward = ('reward=[{name="blueness"}]',) if trainer in ("draft", "refl") else ()
    return (f'trainer={{name="{trainer}"}}', f'scheduler={{name="{scheduler}"{window}}}', "run.epochs=1", *reward)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny checkpoint of each model."""
    registry, folder = Registry(), tmp_path_factory.mktemp("models")
    return {name: registry.target("adapters", name).tiny(folder / name) for name in SIZES}  # type: ignore[attr-defined]


@pytest.mark.parametrize(("trainer", "scheduler", "model", "tuning"), chosen())
def test_it_trains(
    run: Callable[..., Path], checkpoints: dict[str, Path], trainer: str, scheduler: str, model: str, tuning: str
) -> None:
    table = f'model={{name="{model}", path="{checkpoints[model]}"}}'
    small = (f"sampling.size={SIZES[model]}", "sampling.prompts=2", "optimizer.updates=1")
    folder = run("a", table, *changes(trainer, scheduler), *TUNINGS[tuning], *small, "-eval", "-data.eval_prompts")
    line = metrics(folder)[-1]
    assert {name.removeprefix("loss/") for name in line if name.startswith("loss/")} == PARTS[trainer]
    assert 0 < line["train/gradient_norm"] < float("inf")


@pytest.mark.parametrize(
    ("trainer", "scheduler"), [(t, s) for t, s in product(TRAINERS, DENSITY) if DENSITY[s] not in ACCEPTS[t]]
)
def test_it_is_refused_with_a_reason(
    spec: Path, capsys: pytest.CaptureFixture[str], trainer: str, scheduler: str
) -> None:
    assert main(["check", str(spec), *(f"--set={c}" for c in changes(trainer, scheduler))]) == 2
    said = capsys.readouterr().err
    assert f"`{trainer}` needs" in said
    assert f"scheduler `{scheduler}`" in said
