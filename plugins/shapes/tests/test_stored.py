"""Demonstrations match their prompts, what is rejected does not, and what is shipped is what would be written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from flowfactory.discovery.registry import Registry, installed_entries
from flowfactory.plan import disk
from flowfactory.spec.structure import load_spec
from flowfactory_plugin_shapes.scoring import grade
from flowfactory_plugin_shapes.stored import write
from flowfactory_plugin_shapes.world import prompts
from PIL import Image

SHIPPED = Path(str(files("flowfactory_plugin_shapes"))) / "prompts"
SPECS = Path(__file__).parents[1] / "reproduce"


def table(name: str) -> Iterator[dict[str, str]]:
    yield from map(json.loads, (SHIPPED / f"{name}.jsonl").read_text().splitlines())


def correct(prompt: str, name: str) -> bool:
    with Image.open(SHIPPED / name) as picture:
        return grade(prompt, np.asarray(picture, dtype=np.float32) / 255).correct


def test_every_training_prompt_is_demonstrated_rightly() -> None:
    rows = list(table("demonstrations"))
    assert [row["prompt"] for row in rows] == [text for text in prompts("train") for _ in range(3)]
    assert all(correct(row["prompt"], row["media"]) for row in rows)


def test_the_chosen_is_right_and_the_rejected_is_wrong() -> None:
    rows = list(table("preferences"))
    assert len(rows) == 216
    assert all(correct(row["prompt"], row["chosen"]) for row in rows)
    assert not any(correct(row["prompt"], row["rejected"]) for row in rows)


def test_what_is_shipped_is_what_is_written(tmp_path: Path) -> None:
    write(tmp_path)
    for file in ("demonstrations.jsonl", "preferences.jsonl"):
        assert (tmp_path / file).read_text() == (SHIPPED / file).read_text()
    drawn = sorted(file.name for file in (tmp_path / "pictures").iterdir())
    assert drawn == sorted(file.name for file in (SHIPPED / "pictures").iterdir())
    for name in drawn[::7]:
        with Image.open(tmp_path / "pictures" / name) as new, Image.open(SHIPPED / "pictures" / name) as old:
            assert np.abs(np.asarray(new, dtype=int) - np.asarray(old, dtype=int)).max() <= 1


def test_they_stay_small() -> None:
    assert sum(file.stat().st_size for file in SHIPPED.rglob("*")) < 3e5


OTHERS = {"teacher": "nft", "dmd-nft": "nft", "nft-colours": "nft"}
"""What made the teachers, and what is called otherwise than its trainer."""
ALGORITHMS = sorted({path.stem for path in SPECS.glob("*.toml")} - {"base", "stored", *OTHERS})


@pytest.mark.parametrize("name", ALGORITHMS)
def test_what_is_reproduced_is_sound(name: str) -> None:
    spec = load_spec(SPECS / f"{name}.toml", Registry(installed_entries()), also=disk.RULES)
    assert name in (spec.trainer.name, "flow-grpo-fast", f"{spec.trainer.name}-estimated")
    assert (spec.trainer.spec.needs.source == "rollouts") == (name not in ("sft", "diffusion-dpo"))


@pytest.mark.parametrize(("name", "trainer"), OTHERS.items())
def test_the_other_specs_are_sound(name: str, trainer: str) -> None:
    spec = load_spec(SPECS / f"{name}.toml", Registry(installed_entries()), also=disk.RULES)
    assert spec.trainer.name == trainer


def test_every_spec_there_is_reproduced() -> None:
    text = (SPECS / "reproduce.py").read_text()
    lists = text[text.index("CREDIT = ") : text.index("REWARD, CORRECT")]
    assert [name for name in (*ALGORITHMS, *OTHERS) if f'"{name}"' not in lists] == ["teacher"]
