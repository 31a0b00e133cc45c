"""`flowfactory report` and `flowfactory watch`. Imports neither torch nor, unasked, what draws."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

import click
from click.shell_completion import CompletionItem
from flowfactory import Display, RunError, shown

DONE = 0
OF_A_RUN = "plan.json"


def _runs(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem[str]]:
    """Folders of runs, also those one below: `runs/first` comes at once."""
    start = glob.escape(typed)
    plans = [*glob.glob(f"{start}*/{OF_A_RUN}"), *glob.glob(f"{start}*/*/{OF_A_RUN}")]
    found = sorted(os.path.dirname(plan) for plan in plans)
    return [CompletionItem(typed, type="dir"), *(CompletionItem(path) for path in found)]


@click.command()
@click.argument(
    "runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path), shell_complete=_runs
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Where to write it.  [default: report.html in RUN, or here]"
)
@click.pass_obj
def report(ui: Display, runs: Sequence[Path], out: Path | None) -> int:
    """Write one page about the run in folder RUN, or about several side by side, and figures of its curves."""
    from flowfactory_plugin_report.report import PAGE  # what draws takes a second
    from flowfactory_plugin_report.report import report as write
    from flowfactory_plugin_report.writing import Refused

    try:
        written = write(runs, out or (runs[0] / PAGE if len(runs) == 1 else Path(PAGE)))
    except RunError as error:
        raise Refused(str(error)) from error
    ui.say(f"the report is in {shown(written)}")
    return DONE


@click.command()
@click.argument("run", type=click.Path(path_type=Path), shell_complete=_runs)
@click.option("--port", type=click.IntRange(0, 65535), help="Port; 0 takes a free one.  [default: 8390, if it is free]")
@click.option("--wait", type=click.IntRange(0), default=0, metavar="SECONDS", help="How long to wait for it to begin.")
@click.pass_obj
def watch(ui: Display, run: Path, port: int | None, wait: int) -> int:
    """Show the page about the run in folder RUN in a browser of this machine, and renew it as epochs end."""
    from flowfactory_plugin_report.server import listen
    from flowfactory_plugin_report.writing import Refused

    try:
        server = listen(run, port, wait)
    except RunError as error:
        raise Refused(str(error)) from error
    with server:
        ui.say(f"watch it at {server.address} until Ctrl-C")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            ui.say("the page is closed; the run goes on")
    return DONE
