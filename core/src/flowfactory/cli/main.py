"""The command line. Imports torch only to run.

Exit codes: 0 done; 1 the run failed; 2 bad usage or spec; 3 plugin missing, conflicting or broken;
75 stopped by SIGTERM or SIGHUP with a checkpoint, 143 and 129 without one; 130 interrupted.
"""

from __future__ import annotations

import errno
import importlib.metadata
import io
import traceback
from collections.abc import Sequence
from typing import TextIO

import click

from flowfactory.calling import staying
from flowfactory.cli.commands import Commands
from flowfactory.cli.leaving import in_time
from flowfactory.cli.ui import Ui
from flowfactory.cli.verbs import evaluating, examples, looking, plugins, results, running
from flowfactory.cli.verbs.options import report
from flowfactory.errors import (
    BAD_PLUGIN,
    BAD_SPEC,
    DONE,
    FAILED,
    INTERRUPTED,
    PluginError,
    RunError,
    SpecError,
    meant,
    shortened,
)
from flowfactory.processes import launch
from flowfactory.processes.stop import AtOnce, Stopped, listening
from flowfactory.streams import speaking

BUG = "this is a mistake of flowfactory or a plugin: report it with the lines above and what `flowfactory env` says"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    return in_time(_main(arguments))


def _main(arguments: Sequence[str] | None) -> int:
    with speaking() as (out, err), staying():
        return _spoken(arguments, out, err)


def _spoken(arguments: Sequence[str] | None, out: TextIO, err: TextIO) -> int:
    ui = Ui(err, out)
    try:
        ui = Ui(err, out, quiet=launch.rank() > 0)
        with listening():
            code = cli.main(arguments, "flowfactory", standalone_mode=False, obj=ui)
    except SpecError as error:
        ui.error(report(error))
        return error.code
    except PluginError as error:
        ui.error(str(error))
        return BAD_PLUGIN
    except RunError as error:
        ui.error(str(error))
        return error.code
    except click.ClickException as error:
        said = io.StringIO()
        error.show(said)
        ui.error(said.getvalue().rstrip("\n"))
        return BAD_SPEC
    except Stopped as stopped:
        ui.say(f"stopped by {stopped}")
        return 128 + stopped.signal
    except (click.Abort, AtOnce):
        return INTERRUPTED
    except Exception as error:
        real = meant(error)
        if isinstance(real, OSError) and real.errno == errno.ENAMETOOLONG:  # a plugin's command was given it
            ui.error(f"{shortened(str(real.filename))}: {real.strerror}")
            return BAD_SPEC
        ui.error(f"{''.join(traceback.format_exception(real))}{BUG}")
        return FAILED
    return int(code or DONE)


OWN = importlib.metadata.metadata("flowfactory")
"""What this distribution says of itself: its version, and where its documentation is."""


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    purposes={
        "Before a run": ("examples", "check", "plan", "bench"),
        "Train": ("run", "resume"),
        "After a run": ("runs", "watch", "report", "sample", "evaluate", "export"),
        "Plugins": ("plugins", "new"),
        "Help": ("schema", "env"),
    },
    epilog="What else to ask: COMMAND --help for its options, schema for the keys of a spec, plugins show NAME for "
    f"those of a plugin, examples for specs to begin with. The documentation: {OWN['Project-URL'].partition(', ')[2]}",
)
@click.version_option(OWN["Version"], prog_name="flowfactory")
def cli() -> None:
    """Fine-tune flow-matching image and video models by reinforcement learning."""


for verb in (
    *(running.run, running.resume, results.export, results.sample, evaluating.evaluate, running.bench_spec),
    *(looking.check, looking.plan, looking.schema, looking.env, results.runs),
    *(examples.examples, plugins.plugins, plugins.new),
):
    cli.add_command(verb)
