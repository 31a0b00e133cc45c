"""The reference pages are what the source declares. What stands in fenced blocks is tested in `test_snippets.py`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import reference
from flowfactory.cli.main import cli
from flowfactory.contracts import hooks
from flowfactory.contracts.specs import RewardEntry
from flowfactory.discovery.entries import KINDS
from flowfactory.discovery.registry import Registry
from flowfactory.spec.describe import describe
from flowfactory.spec.kinds import keys
from flowfactory.spec.structure import TABLES

DOCS = Path(__file__).parents[2] / "docs"
GUIDE = (DOCS / "guide.md").read_text(encoding="utf-8")


def snippets(language: str, text: str = GUIDE) -> list[str]:
    """The code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", ["spec.md", "hooks.md", "cli.md", "plugins.md", "coming-from.md"])
def test_pages_are_up_to_date(name: str) -> None:
    written = (DOCS / name).read_text(encoding="utf-8")
    assert written == reference.pages()[name], "run: python docs/tools/reference.py"


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
    code = "import sys, reference; reference.pages(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=DOCS / "tools")


def test_the_hook_pages_plugin_works(tmp_path: Path) -> None:
    (code,) = snippets("python", reference.HOOKS_INTRODUCTION)
    (tmp_path / "mine.py").write_text(code)
    registry = Registry()
    registry.load_file(tmp_path / "mine.py")
    assert registry.find("rewards", "mine").provides.summary == "What it rewards, in one line."


def golden() -> dict[str, list[str]]:
    """The golden messages by kind."""
    found: dict[str, list[str]] = {}
    text = (Path(__file__).parent / "messages.txt").read_text(encoding="utf-8")
    for kind, message in re.findall(r"^== (\S+) ==\n(.*?)(?=\n\n== |\Z)", text, re.MULTILINE | re.DOTALL):
        found.setdefault(kind, []).append(message.strip("\n"))
    return found


@pytest.mark.parametrize("kind", golden())
def test_every_kind_of_message_is_explained(kind: str) -> None:
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    section = page.partition(f"### `{kind}`\n")[2].partition("\n##")[0]
    example, explanation = re.fullmatch(r"\n```text\n(.*?)\n```\n\n(.+)", section, re.DOTALL).groups()  # type: ignore[union-attr]
    assert example in golden()[kind]
    assert len(explanation) > 20


def test_no_explanation_is_left_over() -> None:
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^### `(.+)`$", page, re.MULTILINE)) == golden().keys()


def test_every_page_is_in_the_navigation() -> None:
    text = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    named = re.findall(r"([a-z0-9/-]+\.md)$", text, re.MULTILINE)
    assert sorted(named) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=DOCS.parent, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    pages = {page.stem for page in tmp_path.glob("*.html")}
    assert pages >= {page.stem for page in DOCS.glob("*.md")}
    for page in tmp_path.glob("*.html"):
        assert not re.search(r"""(?:src|href)="https?://[^"]*\.(?:js|css|woff2?)""", page.read_text()), page.name
