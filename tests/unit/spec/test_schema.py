"""The JSON Schema agrees with what the loader accepts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from flowfactory.contracts.key import Key
from flowfactory.discovery.entries import installed_entries
from flowfactory.discovery.registry import Registry
from flowfactory.spec.schema import spec_schema
from flowfactory.spec.structure import load_spec
from flowfactory.spec.tables import unstructure
from jsonschema import Draft202012Validator
from specs import SOURCES, SPEC, edited


@pytest.fixture
def validator(spec: Path) -> Draft202012Validator:
    """The schema with the toy plugin in it."""
    registry = Registry([entry for entry in installed_entries() if entry.source.name == "flowfactory"])
    registry.load_file(spec.parent / "toy.py")
    schema, broken = spec_schema(registry)
    assert not broken
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def test_a_valid_spec_is_valid(validator: Draft202012Validator) -> None:
    validator.validate(tomllib.loads(SPEC))
    validator.validate(tomllib.loads(edited(SOURCES, ('label = "dark"', 'label = "dark"\nsources = ["signs"]'))))


def test_so_is_what_is_written_back(validator: Draft202012Validator, spec: Path) -> None:
    validator.validate(unstructure(load_spec(spec, Registry())))


@pytest.mark.parametrize(
    "edit",
    [
        ("epochs = 3", "epochs = -3"),
        ("epochs = 3", "epochs = 2.5"),
        ("epochs = 3", "epoch = 3"),
        ("epochs = 3", ""),
        ('name = "test"', 'name = "a/b"'),
        ("rank = 4", "rank = 0"),
        ("size = 32", "size = [32]"),
        ("beta = 0.1", "beta = -0.1"),
        ("beta = 0.1", "bata = 0.1"),
        ('name = "toy"', 'name = "toyy"'),
        ('name = "toy"', ""),
        ("target = 0.25", "target = 1.25"),
        ("target = 0.25", "taget = 0.25"),
        ('rule = "random"', 'rule = "rnd"'),
        ("[lora]", "[full]"),
        ("[eval]", "[evil]"),
        ("[lora]\nrank = 4\n", ""),
        ("lr = 1e-4", "lr = 0"),
        ('prompts = "train.txt"\n', ""),
        ("[sampling]", '[[data.source]]\nname = "x"\nprompts = "train.txt"\n\n[sampling]'),
        (SOURCES[0], SOURCES[1].replace("share", "shares")),
        (SOURCES[0], SOURCES[1].replace('name = "signs"\n', "")),
    ],
)
def test_mistakes_are_invalid(validator: Draft202012Validator, edit: tuple[str, str]) -> None:
    assert not validator.is_valid(tomllib.loads(edited(edit)))


def test_a_spec_that_extends_need_not_be_complete(validator: Draft202012Validator) -> None:
    validator.validate({"extends": "base.toml", "run": {"seed": 3}, "trainer": {"beta": 1.0}})
    assert not validator.is_valid({"run": {"seed": 3}})
    assert not validator.is_valid({"extends": "base.toml", "run": {"sede": 3}})


FILES = sorted(Path(__file__).parents[3].glob("plugins/*/examples/*.toml"))
EXAMPLES = [file for file in FILES if tomllib.loads(file.read_text()).keys() & {"run", "extends"}]


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The schema with every installed plugin, as `flowfactory schema` prints it."""
    schema, broken = spec_schema(Registry())
    assert not broken
    path = tmp_path_factory.mktemp("schema") / "spec.schema.json"
    path.write_text(json.dumps(schema))
    return path


def test_the_schema_of_all_plugins_is_one(everything: Path) -> None:
    schema = json.loads(everything.read_text())
    Draft202012Validator.check_schema(schema)
    assert len(schema["properties"]["trainer"]["allOf"]) > 3
    for pattern in re.findall(r'"pattern": ("[^"]*(?:\\.[^"]*)*")', everything.read_text()):
        re.compile(json.loads(pattern))


def test_our_examples_are_valid_by_it(everything: Path) -> None:
    validator = Draft202012Validator(json.loads(everything.read_text()))
    for example in EXAMPLES:
        validator.validate(tomllib.loads(example.read_text()))


@pytest.mark.parametrize(
    "line",
    [
        "[scheduler]\nname = 'flow-sde'\nwindow = {rule = 'random', size = 2, range = [0, 3]}",
        "[sampling]\nsize = [64, 64, 5]",
        "[optimizer]\nbetas = [0.9, 0.99]",
        "[[data.source]]\nname = 'a'\nprompts = 'a.txt'\nshare = 2\n\n[[data.source]]\nname = 'b'\nprompts = 'b.csv'",
    ],
)
def test_so_they_are_for_the_editors_that_use_taplo(everything: Path, tmp_path: Path, line: str) -> None:
    taplo = Path(sys.executable).parent / "taplo"
    if not taplo.exists():
        pytest.skip("taplo is not installed")
    own = tmp_path / "own.toml"
    own.write_text(f"extends = 'x.toml'\n{line}\n")
    command = [str(taplo), "check", "--schema", everything.as_uri(), str(own), *map(str, EXAMPLES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:1000]
    own.write_text(own.read_text().replace("[", "[nonsense", 1))
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


@pytest.mark.parametrize("pattern", ["(?s).*", "(?P<a>x)", r"x\Z", "a++", "(?i:x)"])
def test_patterns_are_of_a_kind_that_editors_read(pattern: str) -> None:
    with pytest.raises(ValueError, match="JSON Schema"):
        Key("A key.", pattern=pattern)


@pytest.mark.parametrize("pattern", [r"(?:a|b)+", r"(?=x)x", r"(?<!a)b", r"[\s\S]*", r"a\+"])
def test_other_patterns_are_taken(pattern: str) -> None:
    assert Key("A key.", pattern=pattern).pattern == pattern


def test_every_key_is_documented(validator: Draft202012Validator) -> None:
    def check(schema: Any, path: str) -> None:
        for name, child in schema.get("properties", {}).items():
            if child is not True and name != "name" and "items" not in child and "properties" not in child:
                assert child.get("description"), f"{path}.{name}"
            if isinstance(child, dict):
                check(child, f"{path}.{name}")

    check(validator.schema, "spec")
    assert Key("").doc == ""


def test_broken_plugins_are_left_out_and_told(installed: Path) -> None:
    schema, broken = spec_schema(Registry())
    told = " ".join(map(str, broken))
    assert "`broken`" in told
    assert "`good`" not in told
    names = schema["properties"]["reward"]["items"]["properties"]["name"]["anyOf"][0]["enum"]
    assert "good" in names
    assert "broken" not in names
