"""Every public module, class and function of core and of the plugins says what it is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted([*ROOT.glob("core/src/**/*.py"), *ROOT.glob("plugins/*/src/**/*.py")])
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def public(node: ast.Module | ast.ClassDef, name: str) -> Iterator[tuple[str, Definition]]:
    """The definitions of a module and of its public classes, less those whose docs an ancestor gives."""
    for child in node.body:
        if not isinstance(child, Definition) or child.name.startswith("_"):
            continue
        if isinstance(node, ast.ClassDef) and node.bases and not isinstance(child, ast.ClassDef):
            continue
        yield f"{name}.{child.name}", child
        if isinstance(child, ast.ClassDef):
            yield from public(child, f"{name}.{child.name}")


def is_hook(node: Definition) -> bool:
    """Whether the specification in `flowfactory.contracts.hooks` already says what it is."""
    return any(isinstance(d, ast.Name) and d.id == "hookimpl" for d in node.decorator_list)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_everything_public_is_documented(path: Path) -> None:
    module = ast.parse(path.read_text())
    missing = [] if ast.get_docstring(module) else ["the module itself"]
    missing += [name for name, node in public(module, path.stem) if not ast.get_docstring(node) and not is_hook(node)]
    assert not missing, f"without docstring: {', '.join(missing)}"


def test_there_is_something_to_look_at() -> None:
    assert len(MODULES) > 40
