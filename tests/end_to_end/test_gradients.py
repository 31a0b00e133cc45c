"""Training by the rewards' own gradients: what it depends on, and what it does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from end_to_end.conftest import metrics
from flowfactory.cli.main import main
from safetensors.torch import load_file

DRAFT = ("trainer.name=draft", "trainer.steps=2", "scheduler={name='ode'}", "reward=[{name='blueness'}]")
REFL = ("trainer={name='refl', fraction=0.5, scale=1.0}", "scheduler={name='ode'}", "reward=[{name='blueness'}]")
SHORT = ("eval.every=0", "run.save_samples=0")

Run = Callable[..., Path]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The trained weights of a run's last checkpoint."""
    (last,) = sorted((folder / "checkpoints").glob("epoch-*"))[-1:]
    return {str(f.relative_to(last)): t for f in last.rglob("*.safetensors") for t in load_file(f).values()}


def apart(one: Path, other: Path) -> float:
    """The largest difference of their weights, whose steps are of 1e-3."""
    a, b = (weights(folder) for folder in (one, other))
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


@pytest.mark.parametrize("trainer", [DRAFT, REFL], ids=["draft", "refl"])
def test_the_reward_rises(run: Run, trainer: tuple[str, ...]) -> None:
    lines = metrics(run("a", *trainer, *SHORT, "run.epochs=6", "optimizer.lr=5e-3"))
    assert lines[6]["reward/blueness/mean"] > lines[1]["reward/blueness/mean"] + 0.02


@pytest.mark.parametrize("trainer", [DRAFT, REFL], ids=["draft", "refl"])
def test_it_goes_on_to_the_bit(run: Run, trainer: tuple[str, ...]) -> None:
    whole, resumed = run("a", *trainer, *SHORT), run("b", *trainer, *SHORT, "run.epochs=1")
    assert main(["resume", str(resumed), "--epochs", "2"]) == 0
    assert metrics(whole) == metrics(resumed)
    assert apart(whole, resumed) == 0


FRUGAL = ("optimizer.micro_batch=2", "memory.gradient_checkpointing=true", "memory.offload=['vae', 'rewards']")


@pytest.mark.parametrize("trainer", [DRAFT, REFL], ids=["draft", "refl"])
def test_how_it_is_computed_does_not_matter(run: Run, trainer: tuple[str, ...]) -> None:
    """In smaller micro-batches, computed again in the backward pass, moved to main memory in between."""
    one, other = (
        metrics(run(name, *trainer, *SHORT, "run.epochs=1", *more)) for name, more in (("a", ()), ("b", FRUGAL))
    )
    for name in ("loss/reward", "train/reward", "train/gradient_norm"):
        assert other[-1][name] == pytest.approx(one[-1][name], rel=1e-4, abs=1e-6)


def test_rewards_of_weight_0_need_no_gradient_and_add_none(run: Run) -> None:
    both = "reward=[{name='blueness'}, {name='redness', weight=0}]"
    a, b = run("a", *DRAFT, *SHORT, "run.epochs=1"), run("b", *DRAFT[:-1], both, *SHORT, "run.epochs=1")
    assert apart(a, b) == 0
    assert "reward/redness/mean" in metrics(b)[-1]


def test_the_weight_of_a_reward_is_that_of_its_gradient(run: Run) -> None:
    doubled = "reward=[{name='blueness', weight=2.0}]"
    a, b = run("a", *DRAFT, *SHORT, "run.epochs=1"), run("b", *DRAFT[:-1], doubled, *SHORT, "run.epochs=1")
    one, two = metrics(a)[-1], metrics(b)[-1]
    assert two["train/reward"] == pytest.approx(2 * one["train/reward"], rel=1e-3)


def test_a_reward_without_a_gradient_is_refused_at_its_line(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec.write_text(spec.read_text().replace('name = "grpo"', 'name = "draft"'))
    assert main(["check", str(spec)]) == 2
    said = capsys.readouterr().err
    line = spec.read_text().splitlines().index('name = "redness"') + 1
    assert f"spec.toml:{line}: trainer `draft` follows the gradient of rewards, and reward `redness` has none" in said
    assert "`blueness`" in said


def test_it_cannot_do_without_a_reward(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(spec), "--set", "trainer.name=draft", "--set", "reward=[]"]) == 2
    assert "at least one [[reward]] is needed" in capsys.readouterr().err


FAULTY = """
import attrs
import torch

from flowfactory import DifferentiableReward, DifferentiableSpec, Provides, hookimpl


@attrs.frozen(kw_only=True)
class FaultySpec(DifferentiableSpec):
    kind: str = "numpy"


class Faulty(DifferentiableReward):
    def value(self, media, rows):
        said = media.flatten(1).mean(1)
        if not media.requires_grad:
            return said
        if self.spec.kind == "raises":
            raise ValueError("out of colours")
        dogs = torch.tensor([row.prompt == "a dog" for row in rows])
        if self.spec.kind == "value":
            return said / (1 - dogs.float())
        if self.spec.kind == "slope":
            steep = [0 * (x - x.detach()).sqrt() if dog else x for x, dog in zip(said, dogs, strict=True)]
            return torch.stack(steep)
        return said.detach() if self.spec.kind == "detached" else said[:1].expand(1, len(rows))


@hookimpl
def flowfactory_rewards():
    yield Provides("faulty", FaultySpec, Faulty, "Says something wrong.")
"""


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("raises", "reward 'faulty' cannot be asked for its gradient: ValueError: out of colours"),
        ("detached", "reward 'faulty' has values without a gradient"),
        ("shape", "reward 'faulty' has values (1, 6) of 6 samples"),
        ("value", "reward 'faulty' has a value that is not finite for prompt 'a dog'; mend"),
        ("slope", "reward 'faulty' has a gradient that is not finite for prompt 'a dog'; mend"),
    ],
)
def test_what_a_reward_does_wrong_ends_the_run_in_words(
    spec: Path, capsys: pytest.CaptureFixture[str], kind: str, words: str
) -> None:
    (spec.parent / "faulty.py").write_text(FAULTY)
    changes = [
        *DRAFT[:-1],
        f"reward=[{{name='faulty', kind='{kind}'}}]",
        f"plugins=['{spec.parent}/faulty.py']",
        "eval.every=0",
    ]
    code = main(["run", str(spec), "--folder", str(spec.parent / "a"), *(f"--set={change}" for change in changes)])
    assert code == 1
    assert words in capsys.readouterr().err
