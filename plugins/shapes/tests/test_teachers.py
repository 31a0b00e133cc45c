"""The teachers are LoRA for the embedded checkpoint, and the prompts they were made for are told apart as they say."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from flowfactory.discovery.registry import Registry, installed_entries
from flowfactory.plan import disk
from flowfactory.spec import holdings
from flowfactory.spec.structure import load_spec
from flowfactory.spec.tables import Spec
from flowfactory_plugin_shapes.world import parse, prompts
from safetensors.torch import load_file

SHIPPED = Path(str(files("flowfactory_plugin_shapes")))
PLUGIN = Path(__file__).parents[1]
TEACHERS = ("all", "one")


def spec(path: str) -> Spec:
    return load_spec(PLUGIN / path, Registry(installed_entries()), also=disk.RULES)


def test_each_row_has_the_teacher_of_its_kind() -> None:
    rows = [json.loads(line) for line in (SHIPPED / "prompts/taught.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == list(prompts("train"))
    own = {name: [row["prompt"] for row in rows if row["teacher"] == name] for name in TEACHERS}
    assert {name: len(of) for name, of in own.items()} == {"all": 36, "one": 36}
    assert all(len(parse(prompt).things) == 1 for prompt in own["one"])
    assert all(len(parse(prompt).things) == 2 for prompt in own["all"])
    assert (SHIPPED / "prompts/one.txt").read_text().splitlines() == own["one"]


@pytest.mark.parametrize("name", TEACHERS)
def test_a_teacher_is_a_small_lora_of_the_checkpoint(name: str) -> None:
    found = holdings.find(str(SHIPPED / "teachers" / name))
    assert found is not None
    assert (found.kind, found.ranks) == ("lora", {8})
    (file,) = found.files[""]
    assert file.stat().st_size < 2e5
    network = load_file(SHIPPED / "checkpoint/transformer/diffusion_pytorch_model.safetensors")
    for name, factor in load_file(file).items():
        layer, _, side = name.removeprefix("transformer.").partition(".lora_")
        assert factor.shape[side == "A.weight"] == network[f"{layer}.weight"].shape[side == "A.weight"]
        assert factor.isfinite().all()
        assert factor.abs().max() > 0


def test_teachers_differ() -> None:
    several = [load_file(SHIPPED / "teachers" / name / holdings.LORA_FILES[0]) for name in TEACHERS]
    assert all(not torch.equal(several[0][name], several[1][name]) for name in several[0])


@pytest.mark.parametrize(
    ("path", "teachers"),
    [("examples/shapes-opd.toml", ["all"]), ("examples/shapes-opd-two.toml", ["one", "all"]),
     ("reproduce/opd.toml", ["all"])],
)  # fmt: skip
def test_the_specs_that_learn_from_them_are_sound(path: str, teachers: list[str]) -> None:
    found = spec(path)
    assert found.trainer.name == "opd"
    assert found.rewards == ()
    assert [Path(teacher.from_).name for teacher in found.trainer.spec.teachers] == teachers


def test_the_spec_that_made_them_is_sound() -> None:
    assert spec("reproduce/teacher.toml").trainer.name == "nft"
