"""Wan 2.2 with one expert trained: every trainer learns at that expert's noise levels, or a person is told why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from end_to_end.conftest import metrics
from flowfactory.discovery.registry import Registry
from flowfactory.runs import archive
from flowfactory_plugin_wan import EXPERTS
from flowfactory_plugin_wan.checkpoint import tiny_wan
from flowfactory_plugin_wan.wan import Wan
from PIL import Image
from safetensors import safe_open

pytestmark = pytest.mark.slow

STEPWISE = "scheduler={name='flow-sde'}"
ANYWHERE = ("scheduler={name='ode'}", "trainer.times={rule='subset'}")
BY_REWARD = ("scheduler={name='ode'}", "reward=[{name='blueness'}]")
OF_DATA = ("-reward", "-sampling.group", "sampling.size=[32, 32]")

TRAINERS: dict[str, tuple[str, ...]] = {
    "grpo": (STEPWISE,),
    "grpo-guard": (STEPWISE,),
    "dppo": (STEPWISE,),
    "nft": ("scheduler={name='ode'}",),
    "awm": ("scheduler={name='ode'}",),
    "crd": ANYWHERE,
    "dgpo": ANYWHERE,
    "dpo": ANYWHERE,
    "sft": (*ANYWHERE, *OF_DATA, "data.prompts=OTHER/media.jsonl"),
    "diffusion-dpo": (*ANYWHERE, *OF_DATA, "data.prompts=OTHER/pairs.jsonl"),
    "draft": (*BY_REWARD, "trainer.steps=6"),
    "refl": (*BY_REWARD, "trainer.fraction=1.0", "trainer.scale=1.0"),
    "opd": ("scheduler={name='ode'}", "-reward", "trainer.teachers=[{from='OTHER/checkpoint'}]"),
    "branchgrpo": (STEPWISE, "trainer.splits=[1, 3]"),
    "stepgrpo": (STEPWISE,),
    "tempflow": (STEPWISE, "trainer.width=2"),
    "dmd": (
        "scheduler={name='ode'}",
        "-reward",
        "sampling.prompts=6",
        "trainer.times={rule='uniform', range=[0.8, 0.99], count=1}",
    ),
    "tdm": ("scheduler={name='ode'}", "-reward", "sampling.prompts=6"),
}
"""What each is given beside its name, so that it may learn at all noise levels. `OTHER`: see `other`."""

SMALL = (
    "sampling.size=[32, 32, 5]",
    "sampling.prompts=2",
    "sampling.steps=6",
    "optimizer.updates=1",
    "run.epochs=1",
    "run.save_samples=0",
    "-full",
    "lora.rank=2",
    "-eval",
    "-data.eval_prompts",
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two experts. Of its six noise levels the expert for high noise answers at the first three."""
    return Wan.tiny(tmp_path_factory.mktemp("wan") / "checkpoint", experts=2)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint to learn from, and rows of media."""
    folder = tmp_path_factory.mktemp("wan")
    tiny_wan(experts=2, seed=1).save_pretrained(folder / "checkpoint")
    for name in ("a", "b"):
        Image.linear_gradient("L").convert("RGB").rotate(90 * (name == "b")).resize((32, 32)).save(
            folder / f"{name}.png"
        )
    for name, shown in {"media": {"media": "a.png"}, "pairs": {"chosen": "a.png", "rejected": "b.png"}}.items():
        rows = [json.dumps({"prompt": text, **shown}) for text in ("sky", "sea")]
        (folder / f"{name}.jsonl").write_text("\n".join(rows))
    return folder


def model(checkpoint: Path, experts: str) -> str:
    return f'model={{name="wan", path="{checkpoint}", experts="{experts}", max_sequence_length=32}}'


def test_no_trainer_is_left_out() -> None:
    assert TRAINERS.keys() == set(Registry().names("trainers"))


BOTH = ("grpo", "nft", "dgpo", "diffusion-dpo", "draft", "opd", "branchgrpo", "dmd")
"""Trainers of each kind: of steps, of noise levels, groups, data, gradients, teachers, branches and several networks.

With both experts, as with one network, nothing is left out: what is trained does not depend on the trainer.
"""
ONE = [(trainer, expert) for trainer in TRAINERS for expert in ("high", "low")]


@pytest.mark.parametrize(("trainer", "experts"), [*ONE, *((trainer, "both") for trainer in BOTH)])
def test_every_trainer_trains_it(
    run: Callable[..., Path], checkpoint: Path, other: Path, trainer: str, experts: str
) -> None:
    """And no weight of another."""
    own = [change.replace("OTHER", str(other)) for change in TRAINERS[trainer]]
    folder = run("a", model(checkpoint, experts), f"trainer.name={trainer}", *SMALL, *own)
    assert 0 < metrics(folder)[-1]["train/gradient_norm"] < float("inf")
    with safe_open(archive.checkpoints(folder / "checkpoints")[-1] / "current.safetensors", "pt") as weights:
        trained = {name.partition(".")[0] for name in [*weights.keys()]}
    assert trained == {name for expert, name in EXPERTS.items() if experts in (expert, "both")}


AT_LOW = "trainer.times={rule='uniform', range=[0.1, 0.5], count=1}"
LATE = "scheduler={name='flow-sde', window={rule='list', steps=[4]}}"
EARLY = "scheduler={name='flow-sde', window={rule='list', steps=[0]}}"

NONE_LEFT: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "grpo, early": ("high", "[scheduler] window", (LATE,)),
    "grpo, late": ("low", "[scheduler] window", (EARLY,)),
    "nft": ("low", "[trainer] times", ("scheduler={name='ode'}", "trainer.times={rule='uniform', range=[0.95, 1.0]}")),
    "sft": ("high", "[trainer] times", (*TRAINERS["sft"], "trainer.times={rule='uniform', range=[0.1, 0.5]}")),
    "draft": ("high", "[trainer]", (*BY_REWARD, "trainer.steps=3")),
    "draft, stochastic": ("high", "[trainer]", (STEPWISE, BY_REWARD[1], "trainer.steps=3")),
    "refl": ("high", "[trainer]", BY_REWARD),
    "opd": ("low", "[trainer]", (*TRAINERS["opd"], "trainer.fraction=0.2")),
    "branchgrpo": ("low", "[scheduler] window", (EARLY, "trainer.splits=[0]")),
    "stepgrpo": ("high", "[scheduler] window", (LATE,)),
    "tempflow": ("low", "[scheduler] window", (EARLY,)),
    "dmd": ("high", "[trainer] times", (*TRAINERS["dmd"][:-1], AT_LOW)),
}
"""The expert that is trained, what is to be widened, and the rest of the spec, by the trainer's name."""


@pytest.mark.parametrize("case", NONE_LEFT)
def test_where_no_level_of_it_is_left_it_is_refused(
    run: Callable[..., Path], checkpoint: Path, other: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    experts, widened, changes = NONE_LEFT[case]
    own = [change.replace("OTHER", str(other)) for change in changes]
    with pytest.raises(AssertionError, match="assert 1 == 0"):
        run("a", model(checkpoint, experts), f"trainer.name={case.partition(',')[0]}", *SMALL, *own)
    said = " ".join(capsys.readouterr().err.split())
    assert f"{EXPERTS[experts]}, which [model] trains, answers at none of the noise levels" in said
    assert f"that {widened} leaves" in said
