"""What `flowfactory new` makes is a working plugin: its tests pass, it is clean, it runs, and it can be published."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from flowfactory.cli.baking import TEMPLATES, bake, questions
from flowfactory.cli.main import main
from flowfactory.discovery.entries import KINDS
from outside import ROOT, Environment, build_wheel, run

pytestmark = pytest.mark.slow

NAMES = {kind.name: f"my-{kind.name}" for kind in KINDS.values()}
RUNS = {"adapter": ("--set=model.path=tiny", "--set=sampling.size=64", "--set=run.epochs=1")}
"""What the examples need besides: where the checkpoint is that the plugin's `tiny` wrote."""
WRITE_TINY = (
    "from pathlib import Path; from flowfactory_plugin_my_adapter.adapter import MyAdapter as A; A.tiny(Path('tiny'))"
)


@pytest.fixture(scope="module")
def baked(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A plugin from every template, by kind."""
    folder = tmp_path_factory.mktemp("baked")
    return {kind: bake(kind, name, {}, folder) for kind, name in NAMES.items()}


@pytest.fixture(scope="module")
def made(baked: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Their wheels, by kind."""
    folder = tmp_path_factory.mktemp("made")
    return {kind: build_wheel(project, folder) for kind, project in baked.items()}


@pytest.fixture(scope="module")
def outside(
    wheels: Mapping[str, Path], made: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Environment]:
    """A fresh environment with core, the plugins that the examples name, and the four new ones."""
    environment = Environment(tmp_path_factory.mktemp("outside") / "venv")
    environment.install(*(wheels[name] for name in ("core", "flux", "grpo", "shapes")), *made.values())
    yield environment
    environment.close()


@pytest.mark.parametrize("kind", NAMES)
def test_its_own_tests_pass(outside: Environment, baked: Mapping[str, Path], kind: str) -> None:
    said = outside.run_warm("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=baked[kind])
    assert re.search(r"^[1-9]\d* passed", said, re.MULTILINE)
    assert "failed" not in said


@pytest.mark.parametrize("kind", NAMES)
def test_its_example_runs(outside: Environment, baked: Mapping[str, Path], tmp_path: Path, kind: str) -> None:
    example = str(baked[kind] / "examples" / f"{NAMES[kind]}.toml")
    if kind == "adapter":
        outside.run_warm("python", "-c", WRITE_TINY, cwd=tmp_path)
    outside.run("flowfactory", "check", example, *RUNS.get(kind, ()), cwd=tmp_path)
    outside.run_warm("flowfactory", "run", example, *RUNS.get(kind, ()), "--folder=done", cwd=tmp_path)
    assert (tmp_path / "done" / "metrics.jsonl").read_text().count("\n") >= 1


@pytest.mark.parametrize("kind", NAMES)
def test_its_code_is_clean(baked: Mapping[str, Path], kind: str) -> None:
    ruff = (sys.executable, "-m", "ruff")
    run([*ruff, "check", "--config", str(ROOT / "pyproject.toml"), "src", "tests"], cwd=baked[kind])
    run([*ruff, "check"], cwd=baked[kind])
    run([*ruff, "format", "--check"], cwd=baked[kind])


def test_the_wheels_can_be_published(made: Mapping[str, Path]) -> None:
    run([sys.executable, "-m", "twine", "check", "--strict", *map(str, made.values())], cwd=ROOT)


@pytest.mark.parametrize("kind", NAMES)
def test_a_template_is_small_and_asks_little(kind: str) -> None:
    files = [path for path in (TEMPLATES / kind).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert len(files) <= 10  # licence, ignore file and CI among them
    assert len(questions(kind)) == 4


def test_new_bakes_what_was_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = ['--summary=Says "quotes" and \\ back', "--author=A. Nonym", "--license=MIT"]
    assert main(["new", "reward", "loud-one", *said, "--into", str(tmp_path)]) == 0
    folder = tmp_path / "flowfactory-plugin-loud-one"
    assert str(folder) in capsys.readouterr().err
    wheel = build_wheel(folder, tmp_path)
    assert wheel.name == "flowfactory_plugin_loud_one-0.1.0-py3-none-any.whl"
    assert 'license = "MIT"' in (folder / "pyproject.toml").read_text()
    run([sys.executable, "-m", "ruff", "check"], cwd=folder)


@pytest.mark.parametrize("name", ["Mine", "my_reward", "-x", "x-", "../x", "x y", ""])
def test_new_refuses_names_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert main(["new", "reward", "--into", str(tmp_path), "--", name]) == 2
    assert "expected a name of up to 60 small letters, digits and hyphens" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_new_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for code in (0, 2):
        assert main(["new", "trainer", "mine", "--into", str(tmp_path)]) == code
    assert "exists already" in capsys.readouterr().err
