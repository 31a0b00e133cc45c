"""The reference pages are what the source declares; the guide's snippets work."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from flowfactory import hooks, reference
from flowfactory.cli import cli
from flowfactory.describe import describe
from flowfactory.entries import KINDS
from flowfactory.reader import keys
from flowfactory.registry import Registry
from flowfactory.spec import RewardEntry
from flowfactory.structure import TABLES, load_spec

DOCS = Path(__file__).parents[2] / "docs"
GUIDE = (DOCS / "guide.md").read_text(encoding="utf-8")


def snippets(language: str, text: str = GUIDE) -> list[str]:
    """The code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", ["spec.md", "hooks.md", "cli.md"])
def test_pages_are_up_to_date(name: str) -> None:
    written = (DOCS / name).read_text(encoding="utf-8")
    assert written == reference.pages()[name], "run: python -m flowfactory.reference docs"


def test_every_key_is_in_the_page() -> None:
    page = (DOCS / "spec.md").read_text(encoding="utf-8")
    for name, cls in TABLES.items():
        section = page.partition(f"## `[{name}]`")[2].partition("\n## ")[0]
        for row in describe(cls):
            assert f"| `{row.name}` |" in section, f"[{name}] {row.name}"
            assert row.doc, f"[{name}] {row.name}"
    for name in set(keys(RewardEntry)) - {"spec"}:
        assert f"| `{name}` |" in page


def test_every_hook_and_group_is_in_the_page() -> None:
    page = (DOCS / "hooks.md").read_text(encoding="utf-8")
    for name in reference.hook_functions():
        assert f"### `{name}`" in page
        assert (vars(hooks)[name].__doc__ or "").splitlines()[0] in page
    assert all(kind.group in page for kind in KINDS.values())


def test_every_command_and_option_is_in_the_page() -> None:
    page = (DOCS / "cli.md").read_text(encoding="utf-8")
    for path, command in reference.commands(cli, "flowfactory"):
        section = page.partition(f"## `{path}`")[2].partition("\n## ")[0]
        for parameter in command.params:
            option = next((text for text in parameter.opts if text.startswith("--")), None)
            assert option is None or option in section, f"{path} {option}"


def test_reference_imports_no_torch() -> None:
    code = "import sys; from flowfactory import reference; reference.pages(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_guides_specs_load(tmp_path: Path) -> None:
    first, extending = snippets("toml")
    (tmp_path / "base.toml").write_text(first)
    (tmp_path / "spec.toml").write_text(extending)
    for name in ("train.txt", "eval.txt"):
        (tmp_path / name).write_text("a red circle\n")
    spec = load_spec(tmp_path / "spec.toml", Registry())
    assert (spec.run.name, spec.scheduler.spec.eta) == ("more-noise", 0.9)


def test_the_guides_reward_works(tmp_path: Path) -> None:
    (code,) = snippets("python")
    (tmp_path / "my_rewards.py").write_text(code)
    registry = Registry()
    registry.load_file(tmp_path / "my_rewards.py")
    assert registry.find("rewards", "red").provides.spec().least == 0.0


def test_the_hook_pages_plugin_works(tmp_path: Path) -> None:
    (code,) = snippets("python", reference.HOOKS_INTRODUCTION)
    (tmp_path / "mine.py").write_text(code)
    registry = Registry()
    registry.load_file(tmp_path / "mine.py")
    assert registry.find("rewards", "mine").provides.summary == "What it rewards, in one line."


def test_the_guides_commands_parse() -> None:
    lines = [line[2:] for block in snippets("console") for line in block.splitlines() if line.startswith("$ ")]
    assert len(lines) >= 7
    for line in lines:
        program, verb, *arguments = shlex.split(line)
        assert program == "flowfactory"
        command = cli.commands[verb]
        command.make_context(verb, arguments, obj=None)
