"""Every command, spec and program in the documentation works, or says why it is not run.

The blocks of a page are taken in order, in a folder of their own. A block with a title is that file. Whole specs are
checked, parts of specs on top of the one in `start.md`; programs and `flowfactory` commands are run.
"""

from __future__ import annotations

import ast
import runpy
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from flowfactory.cli import cli, main
from runs import lay_run
from snippets import Block, blocks

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(DOCS.glob("*.md"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder: with the spec and the prompts of `start.md`, and two runs to look at."""
    from accelerate.state import AcceleratorState

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for block in blocks(DOCS / "start.md"):
        if block.title:
            (tmp_path / block.title).write_text(block.text)
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
    whole = "model" in tables or "extends" in tables
    path = write(block, folder, "spec.toml" if whole else "part.toml")
    if not whole:
        path.write_text('extends = "first.toml"\n' + block.text)
    assert main(["check", path.name, *block.options]) == 0, block


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


def text(block: Block, folder: Path) -> None:
    if block.title:
        write(block, folder)


RUN: Mapping[str, Callable[[Block, Path], None]] = {
    "toml": toml,
    "python": python,
    "py": signature,
    "console": console,
    "text": text,
    "": text,
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_snippets_work(page: Path, folder: Path) -> None:
    if page.stem == "reports":
        for name in ("first", "slower"):
            lay_run(folder / "runs" / name)
    for block in blocks(page):
        assert block.language in RUN, f"{block}: there is no way to run {block.language!r}"
        if not block.not_run:
            RUN[block.language](block, folder)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_that_are_not_run_parse(page: Path) -> None:
    for block in blocks(page):
        if block.not_run and block.language == "console":
            for arguments in commands(block):
                command, rest = cli.commands[arguments[0]], arguments[1:]
                command.make_context(arguments[0], rest, obj=None)


def test_most_blocks_are_run() -> None:
    found = [block for page in PAGES for block in blocks(page)]
    assert len(found) > 40
    assert sum(bool(block.not_run) for block in found) < len(found) / 4
    assert all(len(block.not_run) > 10 for block in found if block.not_run)
