"""The specs that installed plugins bring along."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from flowfactory.cli.main import main
from flowfactory.cli.verbs.examples import installed

ROOT = Path(__file__).parents[3]


def test_every_example_that_trains_is_listed() -> None:
    found = {example.name for example in installed()}
    specs = [path for path in ROOT.glob("plugins/*/examples/*.toml") if path.stem != "rewards"]
    assert found == {path.stem for path in specs}
    assert len(found) == len(specs)  # a name is enough to copy one


def test_what_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["examples", "--json"]) == 0
    listed = {example["name"]: example for example in json.loads(capsys.readouterr().out)}
    assert listed["shapes-grpo"] == {
        "name": "shapes-grpo",
        "address": "flowfactory_plugin_shapes:examples/shapes-grpo.toml",
        "base": "flowfactory_plugin_shapes:checkpoint",
        "trainer": "grpo",
        "rewards": ["shapes"],
        "gpu": "none needed",
    }
    assert listed["flux-dev-grpo"]["gpu"] == "48 GiB"
    assert all(example["gpu"] for example in listed.values())
    assert main(["examples"]) == 0
    said = capsys.readouterr()
    assert "shapes-grpo" in said.out
    address = said.err.partition("run one as it is: flowfactory run ")[2].partition("\n")[0]
    (offered,) = [example for example in listed.values() if example["address"] == address]
    assert offered["base"].endswith(":checkpoint")  # it is in a package, so nothing is downloaded


def test_a_copy_is_whole_and_nothing_is_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["examples", "copy", "qwen-image-edit-grpo", "--to", str(tmp_path / "mine")]) == 0
    spec = Path(capsys.readouterr().out.strip())
    assert spec == tmp_path / "mine/qwen-image-edit-grpo.toml"
    assert main(["check", str(spec)]) == 0
    changed = spec.write_text(spec.read_text() + "# mine\n")
    assert main(["examples", "copy", "qwen-image-edit-grpo", "--to", str(tmp_path / "mine")]) == 2
    assert "nothing is written over" in capsys.readouterr().err
    assert len(spec.read_text()) == changed


def test_a_name_that_is_nearly_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["examples", "copy", "shape-grpo", "--to", str(tmp_path)]) == 2
    assert "has an example 'shape-grpo'; did you mean `shapes-grpo`?" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_spec_in_a_package_is_named_by_its_address(capsys: pytest.CaptureFixture[str]) -> None:
    address = "flowfactory_plugin_shapes:examples/shapes-grpo.toml"
    for verb in ("check", "plan"):
        assert main([verb, address]) == 0
    assert main(["check", address.replace("grpo", "none")]) == 2
    assert "has no `examples/shapes-none.toml` in it" in capsys.readouterr().err
