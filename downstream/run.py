"""Run other people's plugins against this checkout: see README.md beside this file.

python downstream/run.py [RECIPE...]
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

import attrs
import click

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from outside import Environment, build_wheel, packages  # noqa: E402


@attrs.frozen(kw_only=True)
class Recipe:
    """What to fetch, install and run; one of `repository` and `path`."""

    name: str
    folder: Path
    repository: str | None = None
    path: str | None = None
    revision: str | None = None
    install: Sequence[str] = (".",)
    commands: Sequence[str] = attrs.field(validator=attrs.validators.min_len(1))
    contact: str = ""

    def __attrs_post_init__(self) -> None:
        if (self.repository is None) == (self.path is None):
            raise ValueError("expected either `repository` or `path`")

    @classmethod
    def read(cls, file: Path) -> Recipe:
        """Raises:
        ValueError: the file is no recipe; the message says why.
        """
        try:
            table = tomllib.loads(file.read_text(encoding="utf-8"))
            return cls(**table, name=file.stem, folder=file.parent)
        except (OSError, TypeError, ValueError) as error:
            raise ValueError(f"{file} is no recipe: {error}") from error

    def fetch(self, folder: Path) -> Path:
        """The plugin's sources, in a new folder under `folder`."""
        sources = folder / "sources"
        if self.path is not None:
            return Path(shutil.copytree(self.folder / self.path, sources))
        assert self.repository is not None
        subprocess.run(["git", "clone", "--quiet", self.repository, str(sources)], check=True)
        if self.revision is not None:
            subprocess.run(["git", "-C", str(sources), "checkout", "--quiet", self.revision], check=True)
        return sources


@click.command(help=__doc__)
@click.argument("files", metavar="[RECIPE]...", nargs=-1, type=click.Path(exists=True, path_type=Path))
def main(files: Sequence[Path]) -> None:
    """Run recipes, all when none is named."""
    try:
        recipes = [Recipe.read(file) for file in files or sorted((HERE / "recipes").glob("*.toml"))]
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    with tempfile.TemporaryDirectory(prefix="downstream-") as folder:
        wheels = [build_wheel(package, Path(folder)) for package in packages()]
        failures = {recipe.name: failure(recipe, wheels, Path(folder) / recipe.name) for recipe in recipes}
    for recipe in recipes:
        why = failures[recipe.name]
        click.echo(f"{recipe.name}: ok" if why is None else f"{recipe.name}: FAILED ({recipe.contact})\n{why}")
    raise SystemExit(any(failures.values()))


def failure(recipe: Recipe, wheels: Sequence[Path], folder: Path) -> str | None:
    """Run a recipe in a new folder: what went wrong, or `None`."""
    folder.mkdir()
    try:
        sources, environment = recipe.fetch(folder), Environment(folder / "environment")
        environment.install(*map(str, wheels))
        environment.install("--upgrade", *recipe.install, index=True, cwd=sources)
        for command in recipe.commands:
            environment.run(*shlex.split(command), cwd=sources)
    except (AssertionError, OSError, subprocess.CalledProcessError) as error:
        return str(error)
    return None


if __name__ == "__main__":
    main()
