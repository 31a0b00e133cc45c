"""Every command, spec and program in the documentation works, or says why it is not run.

The blocks of a page are taken in order, in a folder of their own. A block with a title is that file. Whole specs are
checked, parts of specs on top of the one in `start.md`; programs and `flowfactory` commands are run. In `sh` blocks,
which are to be typed at the root of the repository, commands must exist.
"""

from __future__ import annotations

import ast
import json
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import pytest
from flowfactory.cli.main import cli, main
from flowfactory.spec.toml import dumps
from runs import lay_run
from snippets import Block, blocks

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *ROOT.glob("*.md"), *ROOT.glob("plugins/*/README.md")])
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}-{page.stem}")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder: with the spec and the prompts of `start.md`, and two runs to look at."""
    from accelerate.state import AcceleratorState

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for block in blocks(DOCS / "start.md"):
        if block.title:
            (tmp_path / block.title).write_text(block.text)
    (tmp_path / "edits.jsonl").write_text('{"prompt": "make it red", "image": "cat.png"}\n')
    (tmp_path / "images.jsonl").write_text('{"prompt": "a cat", "media": "cat.png"}\n')
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a cat", "chosen": "cat.png", "rejected": "cat.png"}\n')
    (tmp_path / "cat.png").write_bytes(b"")
    for name in ("signs", "signs-eval", "counting"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "a sign that says \\"hello\\""}\n')
    for name in ("train.txt", "eval.txt"):
        (tmp_path / name).write_text("a red circle\ntwo blue squares\n")
    yield tmp_path
    AcceleratorState._reset_state(True)


def write(block: Block, folder: Path, name: str = "") -> Path:
    path = folder / (block.title or name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.text)
    return path


def toml(block: Block, folder: Path) -> None:
    tables = tomllib.loads(block.text)
    if "project" in tables:
        return
    whole = "run" in tables or "extends" in tables
    path = write(block, folder, "spec.toml" if whole else "part.toml")
    if not whole:
        path.write_text(dumps(completed(tables, folder)))
    assert main(["check", path.name, *block.options]) == 0, block


def completed(part: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The spec of `start.md`, of ten steps, with some tables changed; those that name a plugin are replaced."""
    whole = tomllib.loads((folder / "first.toml").read_text())
    whole["sampling"]["steps"] = 10
    for name, table in part.items():
        merge = isinstance(table, dict) and "name" not in table
        whole[name] = {**whole.get(name, {}), **table} if merge else table
    return whole


def python(block: Block, folder: Path) -> None:
    runpy.run_path(str(write(block, folder, "snippet.py")))


def signature(block: Block, folder: Path) -> None:
    ast.parse(block.text.rstrip() + ": ...")


def console(block: Block, folder: Path) -> None:
    for arguments in commands(block):
        assert main(arguments) == 0, f"{block}: flowfactory {shlex.join(arguments)}"
        reset()


def reset() -> None:
    """Accelerate keeps one state per process."""
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state(True)


def commands(block: Block) -> Iterator[list[str]]:
    """The arguments of every flowfactory command of a block."""
    for line in block.text.splitlines():
        if line.startswith("$ "):
            program, *arguments = shlex.split(line[2:], comments=True)
            assert program == "flowfactory" or block.not_run, f"{block}: say why `{program}` is not run"
            if program == "flowfactory":
                yield arguments


def shell(block: Block, folder: Path) -> None:
    for line in block.text.replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(line, comments=True) or [""]
        if program == "make":
            assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), block
        if program == "flowfactory":
            parse(arguments)


def parse(arguments: Sequence[str]) -> str | None:
    """Take a command's arguments apart without running it; returns its name.

    Raises:
        click.UsageError: there is no such option, or an argument is missing.
    """
    command = cli.get_command(click.Context(cli), arguments[0])
    assert command is not None, f"there is no command {arguments[0]}"
    return command.make_context(arguments[0], list(arguments[1:]), obj=None).info_name


def text(block: Block, folder: Path) -> None:
    if block.title:
        write(block, folder)


def json_lines(block: Block, folder: Path) -> None:
    """One value, or one in each line."""
    try:
        json.loads(block.text)
    except json.JSONDecodeError:
        for line in block.text.splitlines():
            json.loads(line)


RUN: Mapping[str, Callable[[Block, Path], None]] = {
    "toml": toml,
    "python": python,
    "py": signature,
    "console": console,
    "sh": shell,
    "text": text,
    "": text,
    "json": json_lines,
}


@pages
def test_snippets_work(page: Path, folder: Path) -> None:
    if page.stem == "reports" or page.parent.name == "report":
        for name in ("first", "slower"):
            lay_run(folder / "runs" / name)
    for block in blocks(page):
        assert block.language in RUN, f"{block}: there is no way to run {block.language!r}"
        if not block.not_run:
            RUN[block.language](block, folder)


@pages
def test_commands_that_are_not_run_parse(page: Path) -> None:
    unrun = [block for block in blocks(page) if block.not_run and block.language == "console"]
    parsed = [parse(arguments) for block in unrun for arguments in commands(block)]
    written = [line for block in unrun for line in block.text.splitlines() if line.startswith("$ flowfactory ")]
    assert [f"$ flowfactory {name}" for name in parsed] == [" ".join(line.split()[:3]) for line in written]


def test_most_blocks_are_run() -> None:
    found = [block for page in PAGES for block in blocks(page)]
    assert len(found) > 40
    assert sum(bool(block.not_run) for block in found) < len(found) / 4
    assert all(len(block.not_run) > 10 for block in found if block.not_run)
