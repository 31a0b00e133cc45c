"""Commands that plugins add to the command line."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import Any

import attrs
import click
import pytest
from click.testing import CliRunner
from flowfactory.cli import commands
from flowfactory.cli.commands import Commands
from flowfactory.cli.main import cli
from flowfactory.discovery.entries import Source
from flowfactory.errors import PluginError
from flowfactory.names import directory


@click.command()
@click.argument("word")
def shout(word: str) -> None:
    """Say WORD loudly."""
    click.echo(word.upper())


def fails() -> Any:
    raise ImportError("no module named numpy")


@attrs.frozen
class Distribution:
    name: str
    version: str = "1.0"


@attrs.frozen
class Point:
    """An entry point whose object is made by `load`."""

    name: str
    load: Callable[[], Any]
    dist: Distribution = Distribution("flowfactory-plugin-a")
    value: str = "somewhere:something"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[Point]:
    points: list[Point] = []

    monkeypatch.setattr(commands, "plugin_points", lambda: [(p, Source(p.dist.name, p.dist.version)) for p in points])
    return points


def run(*arguments: str) -> Any:
    group = Commands("flowfactory", {"own": click.Command("own", callback=lambda: click.echo("mine"))})
    return CliRunner().invoke(group, arguments)


def test_a_plugins_command_runs_and_is_listed(installed: list[Point]) -> None:
    installed.append(Point("shout", lambda: shout))
    assert run("shout", "hello").output == "HELLO\n"
    assert "Say WORD loudly." in run("--help").output


def test_help_lists_by_purpose_with_whole_sentences(installed: list[Point]) -> None:
    installed.append(Point("shout", lambda: shout))
    long = "Do this with " + "very " * 20 + "long words."
    own = {"a": click.Command("a", help=long), "b": click.Command("b", help="Do that.")}
    group = Commands("flowfactory", own, purposes={"First": ("b",), "Then": ("a", "absent")})
    shown = CliRunner().invoke(group, ["--help"]).output
    assert [shown.index(word) for word in ("First:", "Do that", "Then:", "Do this", "More:", "Say WORD")] == sorted(
        shown.index(word) for word in ("First:", "Do that", "Then:", "Do this", "More:", "Say WORD")
    )
    assert "..." not in shown.partition("First:")[2]
    assert "".join(shown.split()).count("very") == 20


@pytest.mark.parametrize("group", ["plugins", "examples", "rewards"])
def test_help_of_a_group_cuts_no_sentence_off(group: str) -> None:
    listed = CliRunner().invoke(cli, [group, "--help"]).output.partition("Commands:")[2]
    assert len(listed.split()) > 5
    assert "..." not in listed


def test_help_says_where_the_documentation_is() -> None:
    (home,) = importlib.metadata.metadata("flowfactory").get_all("Project-URL") or ()
    address = home.partition(", ")[2]
    assert address.startswith("https://")
    assert address in CliRunner().invoke(cli, ["--help"]).output


def test_own_commands_go_first_and_an_unknown_one_is_unknown(installed: list[Point]) -> None:
    installed.append(Point("own", lambda: shout))
    assert run("own").output == "mine\n"
    assert run("whisper").exit_code == 2


@pytest.mark.parametrize(
    ("points", "said"),
    [
        (
            [Point("shout", fails)],
            r"`shout` \(flowfactory-plugin-a 1.0\) is broken: ImportError: no module named numpy",
        ),
        ([Point("shout", lambda: print)], "is not a click command"),
        (
            [Point("shout", lambda: shout), Point("shout", lambda: shout, Distribution("other", "2.0"))],
            "provided by flowfactory-plugin-a 1.0 and other 2.0",
        ),
    ],
)
def test_a_broken_command_says_so_when_used_and_disturbs_no_other(
    installed: list[Point], points: list[Point], said: str
) -> None:
    installed += points
    assert "(cannot be used)" in run("--help").output
    assert run("own").output == "mine\n"
    answer = run("shout")
    assert isinstance(answer.exception, PluginError)
    with pytest.raises(PluginError, match=said):
        raise answer.exception


@pytest.mark.parametrize("arguments", [["runs/first", "--out", "x.html"], [], ["--help"]])
def test_a_command_of_the_directory_says_what_brings_it(installed: list[Point], arguments: list[str]) -> None:
    said = run("report", *arguments)
    if arguments == ["--help"]:
        assert "is not installed; try: pip install flowfactory-plugin-report" in said.output
        return
    assert isinstance(said.exception, PluginError)
    assert str(said.exception) == "command `report` is not installed; try: pip install flowfactory-plugin-report"


def test_every_command_that_core_advises_is_its_own_or_known_to_the_directory() -> None:
    """Of a command that is neither, nobody could say where it comes from."""
    purposes = {name for names in cli.purposes.values() for name in names}
    assert purposes - set(cli.commands) <= set(directory.names(commands.KIND))
