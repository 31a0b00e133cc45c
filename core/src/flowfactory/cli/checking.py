"""The kit from the shell: `flowfactory plugins check NAME`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowfactory.cli.ui import Ui
from flowfactory.data.locations import locate
from flowfactory.data.rows import load
from flowfactory.data.store import unpacked_folder
from flowfactory.errors import BAD_PLUGIN, BAD_SPEC
from flowfactory.spec import layers
from flowfactory.testing.kit import Case, Kit, Outcome, counted

MARKS = {"passed": "ok", "failed": "FAILED", "not applicable": "-"}


def check(ui: Ui, name: str, sets: Sequence[str], prompts: str | None, as_json: bool) -> int:
    """Run every check that `name` owes and print what became of it; returns the exit code.

    Args:
        sets: `entry.key=value`. prompts: a file, or `package:resource`.
    """
    try:
        rows = load(locate(prompts, Path.cwd(), exists=True), unpacked_folder(None)) if prompts else ()
        kit = Kit(name, keys_of(sets), rows)
    except ValueError as error:
        ui.error(str(error))
        return BAD_SPEC
    outcomes = []
    with ui.phase(f"checking {name}", total=len(kit.cases)) as bar:
        for case in kit.cases:
            outcomes.append(outcome := case.outcome())
            bar.advance()
            if not as_json:
                ui.data(line(case, outcome))
    if as_json:
        ui.json([_json(case, outcome) for case, outcome in zip(kit.cases, outcomes, strict=True)])
    ui.say(counted(outcomes))
    return 0 if all(outcome.good for outcome in outcomes) else BAD_PLUGIN


def keys_of(sets: Sequence[str]) -> Mapping[str, Mapping[str, Any]]:
    """Keys by entry name, from `entry.key=value` texts; a value that is no TOML is a string.

    Raises:
        ValueError: a text has another form.
    """
    keys: dict[str, dict[str, Any]] = {}
    for text in sets:
        address, equals, value = text.partition("=")
        entry, dot, key = address.partition(".")
        if not (equals and dot and entry and key):
            raise ValueError(f"--set expects ENTRY.KEY=VALUE, not {text!r}")
        keys.setdefault(entry, {})[key] = layers.parse_value(value)
    return keys


def line(case: Case, outcome: Outcome) -> str:
    """`ok      reward mine: permutation`, with the reason where it did not pass."""
    mark = MARKS.get(outcome.result, outcome.result)
    return f"{mark:<10}  {case.id}" + (f": {outcome.why}" if outcome.why else "")


def _json(case: Case, outcome: Outcome) -> Mapping[str, str]:
    return {"case": case.id, "what": case.what, "result": outcome.result, "why": outcome.why}
