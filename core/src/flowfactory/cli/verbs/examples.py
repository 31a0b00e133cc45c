"""`examples`: the specs that installed plugins bring along. Imports none of them."""

from __future__ import annotations

import os
import re
import shutil
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
import click

from flowfactory.cli.commands import Verbs
from flowfactory.cli.ui import Ui
from flowfactory.cli.verbs.options import AnyPath, as_json
from flowfactory.data.locations import locate
from flowfactory.discovery.entries import GROUPS, installed_points
from flowfactory.errors import BAD_SPEC, DONE, SpecError, did_you_mean, listed, shown
from flowfactory.runs.files import writing
from flowfactory.spec.layers import load
from flowfactory.spec.toml import Node

FOLDER = "examples"

GPU = re.compile(r"^# GPU: (.+)$", re.MULTILINE)
"""What an example says of the GPU that it needs."""


@attrs.frozen
class Example:
    """A spec in a plugin's package.

    address: by which `run`, `check` and `plan` know it. gpu: which it needs, as its comment `# GPU: …` says.
    """

    name: str
    address: str
    file: Path
    base: str
    trainer: str
    rewards: tuple[str, ...]
    gpu: str

    @property
    def whole(self) -> bool:
        """Whether its base lies in the same package, so that nothing is downloaded."""
        return self.base.partition(":")[0] == self.address.partition(":")[0]


@click.group(cls=Verbs, invoke_without_command=True)
@as_json
@click.pass_context
def examples(context: click.Context, as_json: bool) -> None:
    """List the specs that come with installed plugins; `examples copy NAME` copies one."""
    if context.invoked_subcommand is not None:
        return
    ui: Ui = context.obj
    found = list(installed())
    if as_json:
        ui.json([attrs.asdict(example, filter=lambda field, _: field.name != "file") for example in found])
        return
    head = ("example", "base model", "trainer", "rewards", "GPU")
    ui.rows(head, [(e.name, e.base, e.trainer, ", ".join(e.rewards), e.gpu) for e in found])
    for example in sorted(found, key=lambda e: not e.whole)[:1]:
        ui.say(f"\nrun one as it is: flowfactory run {example.address}")
        ui.say(f"make it yours: flowfactory examples copy {example.name}")


@examples.command()
@click.argument("name")
@click.option("--to", type=AnyPath(), default=".", help="The folder to write into; the current one when absent.")
@click.pass_obj
def copy(ui: Ui, name: str, to: Path) -> int:
    """Write example NAME, what it extends, and the data beside it into a folder."""
    found = {example.name: example for example in installed()}
    if name not in found:
        hint = did_you_mean(name, found) or "`flowfactory examples` lists them"
        ui.error(f"no installed plugin has an example {name!r}; {hint}")
        return BAD_SPEC
    file = found[name].file
    beside = [path for path in file.parent.iterdir() if path.suffix != ".toml" and not path.name.startswith(".")]
    wanted = [*_extended(file), *sorted(beside)]
    with writing(to):
        to.mkdir(parents=True, exist_ok=True)
        if taken := [to / path.name for path in wanted if os.path.lexists(to / path.name)]:
            ui.error(f"nothing is written over: {listed(list(map(shown, taken)))} is there; --to names another folder")
            return BAD_SPEC
        _copy(wanted, to)
    ui.data(shown(to / file.name))
    return DONE


def _copy(paths: Sequence[Path], to: Path) -> None:
    """All of them, or none."""
    try:
        for path in paths:
            (shutil.copytree if path.is_dir() else shutil.copyfile)(path, to / path.name)
    except BaseException:
        for made in [to / path.name for path in paths]:
            shutil.rmtree(made) if made.is_dir() else made.unlink(missing_ok=True)
        raise


def installed() -> Iterator[Example]:
    """The runnable specs in the folders `examples` of all packages that contribute something, by package and name."""
    packages = {point.value.split(":")[0].split(".")[0] for points, *_ in installed_points(GROUPS) for point in points}
    for package in sorted(packages):
        try:
            folder = Path(locate(f"{package}:{FOLDER}", Path(), exists=True))
        except ValueError:
            continue
        for file in sorted(folder.glob("*.toml")):
            try:
                spec = load(file)
            except SpecError:
                continue
            if spec.at("trainer", "name") is not None:
                yield _example(package, file, spec)


def _example(package: str, file: Path, spec: Node) -> Example:
    def text(*address: str) -> str:
        node = spec.at(*address)
        return "" if node is None else str(node.value)

    entries = spec.at("reward")
    named = [] if entries is None or not entries.is_array else [entry.at("name") for entry in entries.value]
    rewards = tuple(str(name.value) for name in named if name is not None)
    address = f"{package}:{FOLDER}/{file.name}"
    said = GPU.search(file.read_text(encoding="utf-8"))
    gpu = said[1] if said else ""
    return Example(file.stem, address, file, text("model", "path"), text("trainer", "name"), rewards, gpu)


def _extended(file: Path) -> list[Path]:
    """A spec's file and those that it extends, one after the other."""
    base = tomllib.loads(file.read_text(encoding="utf-8")).get("extends")
    return [file, *([] if base is None else _extended(file.parent / base))]
