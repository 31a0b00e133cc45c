"""What TAB offers, in process and through a real bash, and that it runs no plugin it need not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from flowfactory.cli.describe import describe
from flowfactory.cli.main import cli
from flowfactory.spec.tables import Lora, Optimizer
from specs import DISTRIBUTIONS, SOURCES, edited


def items(*words: str) -> dict[str, str]:
    """What is offered for the last word, and the description beside it."""
    *before, typed = words
    completion = ShellComplete(cli, {}, "flowfactory", "_FLOWFACTORY_COMPLETE")
    found = completion.get_completions(before, typed)
    return {item.value: item.help or "" for item in found if item.type == "plain"}


def test_names_of_plugins_come_from_metadata_alone(installed: Path) -> None:
    found = items("plugins", "show", "")
    assert found["good"] == "reward of flowfactory-plugin-good 1.0"
    assert {"broken", "crash", "twin@other-twin", "twin@flowfactory-plugin-twin"} <= found.keys()
    assert not {"twin", "watcher"} & found.keys()
    assert not {d.module for d in DISTRIBUTIONS} & sys.modules.keys()
    assert items("plugins", "show", "flow-") == {"flow-sde": found["flow-sde"]}
    assert {"flowfactory-plugin-good", "good"} <= items("plugins", "check", "").keys()


def test_kinds_and_choices() -> None:
    assert list(items("new", "")) == ["adapter", "reward", "scheduler", "trainer"]
    assert list(items("export", "run", "--form", "")) == ["lora", "kohya", "merged"]


def test_keys_of_core_need_no_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    declared = {f"optimizer.{row.name}=": row.doc for row in describe(Optimizer)}
    assert items("run", "--set", "optimizer.") == declared
    assert items("run", "absent.toml", "--set", "optimizer.") == declared
    assert list(items("run", "--unset", "lor")) == ["lora", *(f"lora.{row.name}" for row in describe(Lora))]


def test_keys_of_the_plugins_a_spec_names(spec: Path, installed: Path) -> None:
    spec.write_text(edited(('[[reward]]\nname = "bright"\nlabel', '[[reward]]\nname = "good"\nlabel')))
    for verb in ("run", "check", "plan", "bench"):
        found = items(verb, "spec.toml", "--set", "")
        assert {"scheduler.eta=", "reward[1].size=", "reward[0].weight=", "trainer.std="} <= found.keys()
        assert not {"reward[0].size=", "reward[2].weight=", "scheduler.window="} & found.keys()
    assert "trainer.beta=" not in found, "a local file does not run because TAB was pressed"
    assert list(items("run", "spec.toml", "--unset", "reward[1]")) == [
        f"reward[1].{key}" for key in ("name", "label", "weight", "target")
    ]


def test_keys_of_the_sources_a_spec_has(spec: Path) -> None:
    assert not items("run", "spec.toml", "--set", "data.source[")
    spec.write_text(edited(SOURCES))
    found = items("run", "spec.toml", "--set", "data.source[1]")
    assert list(found) == [f"data.source[1].{key}=" for key in ("name", "prompts", "eval_prompts", "share")]


def test_a_spec_is_found_among_the_words_bash_makes_of_an_equals_sign(spec: Path) -> None:
    assert "scheduler.eta=" in items("run", "--set", "run.epochs", "=", "3", "spec.toml", "--set", "sch")


@pytest.mark.parametrize("text", ["[run", 'extends = "spec.toml"', '[scheduler]\nname = "nobody-has-it"'])
def test_a_spec_that_cannot_be_read_offers_what_core_has(spec: Path, text: str) -> None:
    spec.write_text(text)
    assert "optimizer.lr=" in items("run", "spec.toml", "--set", "")


def test_specs_and_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.toml", "notes.txt", "runs/first/plan.json", "runs/no-run/x.txt", "elsewhere/plan.json"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    assert list(items("run", "")) == list(items("check", "a.toml", "")) == ["a.toml"]
    for verb in ("resume", "export", "report"):
        assert list(items(verb, "")) == ["elsewhere", "runs/first"]
        assert list(items(verb, "runs/f")) == ["runs/first"]


def test_every_argument_and_option_that_names_something_is_completed() -> None:
    """A new verb with a SPEC or a RUN is completed as the others are."""

    def parameters(group: click.Group) -> list[click.Parameter]:
        below = [parameters(c) if isinstance(c, click.Group) else c.params for c in group.commands.values()]
        return [parameter for found in below for parameter in found]

    named = {"spec", "specs", "run", "runs", "sets", "unsets"}
    mine = [p for p in parameters(cli) if p.name in named and "--runs" not in p.opts and p.metavar != "ENTRY.KEY=VALUE"]
    assert len(mine) > 10
    assert all(p._custom_shell_complete is not None for p in mine)


PROGRAM = """
eval "$(_FLOWFACTORY_COMPLETE=bash_source flowfactory)"
complete -p flowfactory
COMP_WORDS=(flowfactory "$@")
COMP_CWORD=$#
_flowfactory_completion flowfactory
printf '%s\\n' "${COMPREPLY[@]}"
"""


def bash(*words: str) -> list[str]:
    """What a real bash would offer, after the line that says how it is set up."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = ["bash", "-c", PROGRAM, "bash", *words]
    done = subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True)
    set_up, *offered = done.stdout.splitlines()
    assert "_flowfactory_completion flowfactory" in set_up
    return offered


def test_through_bash(spec: Path) -> None:
    assert bash("plugins", "show", "dpm") == ["dpm-solver"]
    assert bash("run", "spec.toml", "--set", "scheduler.et") == ["scheduler.eta="]
    assert bash("run", "sp") == ["spec.toml"]


def test_it_imports_nothing_heavy(spec: Path) -> None:
    program = (
        "import sys\nfrom flowfactory.cli.main import main\n"
        "try: main([])\nexcept SystemExit as done: assert done.code == 0\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'accelerate', 'numpy'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    words = "flowfactory\nrun\nspec.toml\n--set\ntr"
    asked = {"_FLOWFACTORY_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": "4"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env={**os.environ, **asked}, capture_output=True, text=True, check=True)
    assert "plain,trainer.name=" in done.stdout
