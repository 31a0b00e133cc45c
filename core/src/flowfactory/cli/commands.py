"""Commands that plugins add: click commands declared as entry points of the group `flowfactory.commands`."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any

import click

from flowfactory.calling import calling
from flowfactory.discovery.entries import Source, installed_points
from flowfactory.errors import Ended, Ending, PluginError, cause, printable
from flowfactory.names import directory
from flowfactory.streams import unheard

KIND = "commands"
GROUP = f"flowfactory.{KIND}"

LONGEST = 200
"""Characters of a command's sentence that help shows; it is wrapped, not cut."""


class Verbs(click.Group):
    """A command group whose help lists commands by their purpose, with whole sentences.

    Args:
        purposes: headings, each with the names of its commands; those of plugins have none.
    """

    def __init__(self, *arguments: Any, purposes: Mapping[str, Sequence[str]] | None = None, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.purposes = purposes or {}

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Every command under its purpose, with all of its first sentence."""
        names = self.list_commands(ctx)
        known = {name for some in self.purposes.values() for name in some}
        rest = [name for name in names if name not in known]
        for heading, some in {**self.purposes, "More" if self.purposes else "Commands": rest}.items():
            found = [(name, self.get_command(ctx, name)) for name in some if name in names]
            rows = [(name, one.get_short_help_str(LONGEST)) for name, one in found if one and not one.hidden]
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)


class Commands(Verbs):
    """A command group that also has the commands of installed plugins; one is imported when it is used or listed.

    A command of the group's own goes before a plugin's of the same name.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Own commands in order, then those of plugins."""
        own = list(self.commands)
        return [*own, *sorted({point.name for point, _ in plugin_points()} - set(own))]

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. What click would answer by itself, and what ends programs, are mistakes like any other."""
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort, Ending):
            raise
        except (EOFError, OSError) as error:
            if isinstance(error, BrokenPipeError) and unheard():
                raise
            raise Ended(str(error)) from error
        except Exception:
            raise
        except BaseException as error:
            raise Ended(str(error)) from error

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name. One that cannot be had says why when it is run, and disturbs no other; so does one
        that is not installed, but known to the directory of plugins."""
        own = super().get_command(ctx, cmd_name)
        points = [] if own is not None else [found for found in plugin_points() if found[0].name == cmd_name]
        if own is not None:
            return own
        if not points:
            advice = directory.advice(KIND, cmd_name)
            return _failing(cmd_name, "plugin-missing", _absent(cmd_name), advice) if advice else None
        names = " and ".join(sorted(str(source) for _, source in points))
        if len(points) > 1:
            return _failing(
                cmd_name, "plugin-conflict", f"command `{cmd_name}` is provided by {names}", "uninstall one"
            )
        try:
            with calling(f"command `{cmd_name}` ({names})", environment=False):
                command = points[0][0].load()
        except Exception as error:
            what = f"command `{cmd_name}` ({names}) is broken: {cause(error)}"
            return _failing(cmd_name, "plugin-broken", what, "report this to its author")
        if not isinstance(command, click.Command):
            what = f"command `{cmd_name}` ({names}) is broken: {points[0][0].value} is not a click command"
            return _failing(cmd_name, "plugin-broken", what, "report this to its author")
        return command


def see(name: str) -> None:
    """See that a plugin provides a command.

    Raises:
        PluginError: none does; the message says which would.
    """
    if name not in {point.name for point, _ in plugin_points()}:
        raise PluginError("plugin-missing", _absent(name), directory.advice(KIND, name))


def _absent(name: str) -> str:
    return f"command `{name}` is not installed"


def plugin_points() -> list[tuple[importlib.metadata.EntryPoint, Source]]:
    """The commands that plugins declare, and whose they are."""
    return [
        (importlib.metadata.EntryPoint(point.name, point.value, GROUP), source)
        for points, source, *_ in installed_points((GROUP,))
        for point in points
        if point.value
    ]


def _failing(name: str, kind: str, what: str, hint: str) -> click.Command:
    def fail() -> None:
        raise PluginError(kind, what, hint)

    settings = {"ignore_unknown_options": True, "allow_extra_args": True}
    said, listed = printable(f"{what}; {hint}"), "(cannot be used)"
    return click.Command(name, callback=fail, help=said, short_help=listed, context_settings=settings)
