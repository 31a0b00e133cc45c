"""What a page says of runs in tables: facts, differences of their specs, times, plans, versions."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
from flowfactory import History

from flowfactory_plugin_report.curves import SCORE, best_epoch, is_said_by_its_only_reward
from flowfactory_plugin_report.numbers import duration, number


@attrs.frozen
class Table:
    """Rows of cells under a head."""

    head: Sequence[str]
    body: Sequence[Sequence[str]]


def facts(run: History) -> Iterator[tuple[str, str]]:
    """What a run is, how far it came, and what it scored, in words."""
    spec = run.plan["spec"]
    yield "state", state(run)
    yield "model", f"{spec['model']['name']}: {spec['model'].get('path', '')}"
    yield "trained", _tuning(spec)
    yield "trainer", spec["trainer"]["name"]
    yield "scheduler", spec["scheduler"]["name"]
    yield "rewards", ", ".join(f"{r.get('label', r['name'])} ({_counts(r.get('weight', 1.0))})" for r in spec["reward"])
    yield "epochs", f"{max(run.metrics, default=0)} of {spec['run']['epochs']}"
    for name in sorted(run.names(), key=lambda name: name != SCORE):
        series = [(epoch, value) for epoch, value in run.series(name) if math.isfinite(value)]
        if is_said_by_its_only_reward([run], name):
            continue
        if (name == SCORE or (name.startswith("eval/") and name.endswith("/mean"))) and series:
            label = name.removeprefix("eval/").removesuffix("/mean")
            ends = ((series[0], 0), (series[-1], max(run.metrics)))
            values = (number(value) + ("" if epoch == due else f" (epoch {epoch})") for (epoch, value), due in ends)
            yield f"held-out {label}", " → ".join(values)
    if (best := best_epoch(run)) is not None:
        yield "best epoch", f"{best[0]} ({number(best[1])})"
    seconds = sum(value for name in run.names() if name.startswith("time/") for _, value in run.series(name))
    world = run.plan["world"]
    yield "time", duration(seconds) + (f" on {world} processes" if world > 1 else "")
    yield "digest", run.plan["digest"][:16]


def state(run: History) -> str:
    """Whether a run goes on, is finished, or was stopped before its last epoch."""
    finished = max(run.metrics, default=0) >= run.plan["spec"]["run"]["epochs"]
    return "running" if run.going_on() else "finished" if finished else "stopped"


def table_of_runs(runs: Sequence[History]) -> Table:
    """A row for each run; facts that all share are left to the cards."""
    told = [dict(facts(run)) for run in runs]
    names = [name for name in dict.fromkeys(name for own in told for name in own) if name != "digest"]
    kept = [name for name in names if name in ALWAYS or len({own.get(name) for own in told}) > 1]
    return Table(
        ("run", *kept),
        [(run.title, *(own.get(name, "") for name in kept)) for run, own in zip(runs, told, strict=True)],
    )


ALWAYS = ("state", "trainer", "epochs", "best epoch", "time")
"""Facts that stand in the table of runs even where they are the same."""


def _counts(weight: float) -> str:
    return f"weight {weight:g}" if weight else "watched only"


def _tuning(spec: Mapping[str, Any]) -> str:
    table = spec.get("lora", spec.get("full", {}))
    began = f", begun with {table['from']}" if "from" in table else ""
    rank = f" of rank {table['rank']}" if "rank" in table else ""
    return (f"LoRA{rank}" if "lora" in spec else "all weights") + began


def differences(runs: Sequence[History]) -> Table:
    """Keys of the specs that are not the same in all runs, the run's name apart.

    Of a table that some runs lack, or that names another plugin in them, the name is told, and those of its keys that
    runs which have them set to different values.
    """
    specs = [dict(_flat(run.plan["spec"])) for run in runs]
    keys = list(dict.fromkeys(key for spec in specs for key in spec))
    unlike = [key for key in keys if key != "run.name" and len({spec.get(key) for spec in specs}) > 1]
    unlike = [key for key in unlike if not _follows_from_its_name(key, specs)]
    return Table(
        ("key", *(run.title for run in runs)), [(key, *(spec.get(key, "") for spec in specs)) for key in unlike]
    )


def _follows_from_its_name(key: str, specs: Sequence[Mapping[str, str]]) -> bool:
    """Whether a key is only there because its table, such as `trainer` or `reward[1]`, names this plugin."""
    name = f"{key.partition('.')[0]}.name"
    values = [spec.get(key) for spec in specs]
    another = len({spec.get(name) for spec in specs}) > 1
    return key != name and another and None in values and len({*values} - {None}) == 1


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every key as `table.key`, `reward[0].weight`, with its value as TOML."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else key)
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        for place, item in enumerate(value):
            yield from _flat(item, f"{prefix}[{place}]")
    else:
        yield prefix, json.dumps(value, ensure_ascii=False)


def times(runs: Sequence[History]) -> Table:
    """Seconds of each phase over a whole run."""
    names = list(dict.fromkeys(name for run in runs for name in run.names() if name.startswith("time/")))
    rows = [
        (name.removeprefix("time/"), *(duration(sum(value for _, value in run.series(name))) for run in runs))
        for name in names
    ]
    return Table(("phase, in all", *(run.title for run in runs)), rows)


def numbers(runs: Sequence[History]) -> Table:
    """The plans' numbers; the reasons where they are those of one plan or of all."""
    named = [{n["name"]: n for n in run.plan["numbers"]} for run in runs]
    rows = []
    for name in dict.fromkeys(name for numbers in named for name in numbers):
        found = [numbers.get(name) for numbers in named]
        reasons = {n["reason"] for n in found if n is not None}
        values = ("" if n is None else str(n["value"]) for n in found)
        rows.append((name, *values, reasons.pop() if len(reasons) == 1 else "differs"))
    return Table(("number", *(run.title for run in runs), "because"), rows)


def versions(runs: Sequence[History]) -> Table:
    """Of the plugins as planned, and of the libraries underneath."""
    every = [{**run.plan["versions"], **run.packages} for run in runs]
    names = list(dict.fromkeys(name for versions in every for name in versions))
    rows = [(name, *(versions.get(name, "") for versions in every)) for name in names]
    return Table(("package", *(run.title for run in runs)), rows)
