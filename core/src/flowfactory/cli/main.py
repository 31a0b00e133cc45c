"""The command line. Imports torch only to run.

Exit codes: 0 done; 1 the run failed; 2 bad usage or spec; 3 plugin missing, conflicting or broken;
75 stopped by SIGTERM with a checkpoint; 130 interrupted.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence

import click

from flowfactory.cli.commands import Commands
from flowfactory.cli.leaving import in_time
from flowfactory.cli.ui import Ui
from flowfactory.cli.verbs import looking, plugins, running
from flowfactory.cli.verbs.options import DONE, INTERRUPTED, report
from flowfactory.errors import BAD_PLUGIN, BAD_SPEC, PluginError, RunError, SpecError
from flowfactory.plan import launch


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    return in_time(_main(arguments))


def _main(arguments: Sequence[str] | None) -> int:
    ui = Ui(quiet=launch.rank() > 0)
    try:
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
        error.show()
        return BAD_SPEC
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    return int(code or DONE)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(importlib.metadata.version("flowfactory"), prog_name="flowfactory")
def cli() -> None:
    """Fine-tune flow-matching image and video models by reinforcement learning."""


for verb in (
    *(running.run, running.resume, running.export, running.bench_spec),
    *(looking.check, looking.plan, looking.schema, looking.env, looking.report_runs),
    *(plugins.plugins, plugins.new),
):
    cli.add_command(verb)
