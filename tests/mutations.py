"""Breaks a spec in every way a hand can, and says what became of each mutant. Run it on a spec; torch is out of reach.

    python tests/mutations.py [--few] SPEC…

A mutant that is accepted must be a valid spec: valid by the JSON Schema, and with every value kept as it was written.
A mutant that is refused for what a single key says must be invalid by the schema, too.
"""

from __future__ import annotations

import json
import math
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

HEAVY = ("torch", "diffusers", "transformers", "accelerate", "peft", "numpy")
if __name__ == "__main__":
    sys.modules.update(dict.fromkeys(HEAVY))  # type: ignore[arg-type]  # importing one raises

from flowfactory.discovery.entries import installed_entries  # noqa: E402
from flowfactory.discovery.registry import Registry  # noqa: E402
from flowfactory.errors import SpecError  # noqa: E402
from flowfactory.spec import toml  # noqa: E402
from flowfactory.spec.schema import spec_schema  # noqa: E402
from flowfactory.spec.structure import load_spec  # noqa: E402
from flowfactory.spec.tables import COMPONENTS, unstructure  # noqa: E402
from jsonschema import Draft202012Validator  # noqa: E402

Address = tuple[str | int, ...]
Mutant = tuple[str, Address, dict[str, Any]]

WRONG: tuple[Any, ...] = ("zzz", "", 3.7, 2, -1, 0, 10**15, True, [], ["zzz", 1], {}, {"zzz": 1}, math.nan, -math.inf)
FEW: tuple[Any, ...] = ("zzz", -1)
SINGLE = {"unknown-key", "wrong-type", "bad-value", "missing-key", "missing-table", "not-a-table", "not-an-array"}
"""Kinds of problems that one key or table has by itself."""
NEVER = ("typo", "unknown name", "unknown table", "renamed table", "unknown key")
"""Mutations that no spec survives."""


def mutants(data: dict[str, Any], values: tuple[Any, ...], done: set[str]) -> Iterator[Mutant]:
    """Every mutant of a spec, with the mutation's name and where it was made.

    `done` is added to. What is in it is not changed again: the same value of the same key, in a table of the same name.
    """
    for address, value in addresses(data):
        key = address[-1]
        place = json.dumps([[part for part in address if isinstance(part, str)], owner(data, address), value])
        if place in done:
            continue
        done.add(place)
        if isinstance(key, str):
            yield changed("typo", data, address, rename=typo(key))
        yield changed("deletion", data, address, delete=True)
        if key == "name" and address[0] != "run" and "aspects" not in address:  # whose names are the user's
            yield changed("unknown name", data, address, value=f"{value}-zq")
        for wrong in values:
            if type(wrong) is not type(value) or wrong != value:
                yield changed("wrong value", data, address, value=wrong)
        if isinstance(value, dict):
            yield changed("unknown key", data, (*address, "zzz"), value=1)
        if isinstance(value, str):
            yield changed("typo in a value", data, address, value=typo(value))
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield changed("sign", data, address, value=-value)
            yield changed("quoted number", data, address, value=str(value))
    yield changed("unknown table", data, ("zzz",), value={})


def addresses(data: Any, at: Address = ()) -> Iterator[tuple[Address, Any]]:
    """Everything below the root."""
    children = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, child in children:
        yield (*at, key), child
        yield from addresses(child, (*at, key))


def owner(data: Any, address: Address) -> str:
    """The `name` of the innermost table with one that a place lies in, such as a component's."""
    name = ""
    for part in address[:-1]:
        data = data[part]
        name = data.get("name", name) if isinstance(data, dict) else name
    return name


def changed(
    name: str, data: dict[str, Any], address: Address, value: Any = None, rename: str = "", delete: bool = False
) -> Mutant:
    """A copy with one thing changed."""
    copy = deepcopy(data)
    above: Any = copy
    for part in address[:-1]:
        above = above[part]
    if rename:
        above[rename] = above.pop(address[-1])
    elif delete:
        del above[address[-1]]
    else:
        above[address[-1]] = value
    return name, address, copy


def typo(word: str) -> str:
    """Two letters in the wrong order, or one too many."""
    for i in range(len(word) - 1, 0, -1):
        if word[i] != word[i - 1]:
            return word[: i - 1] + word[i] + word[i - 1] + word[i + 1 :]
    return word + "x"


def complaint(mutant: Mutant, path: Path, registry: Registry, schema: Draft202012Validator) -> tuple[str, str]:
    """What became of a mutant, and what is wrong with that; nothing if all is well."""
    name, _, data = mutant
    text = toml.dumps(data)
    path.write_text(text, encoding="utf-8")
    written = tomllib.loads(text)
    valid = schema.is_valid(written)
    try:
        spec = load_spec(path, registry)
    except SpecError as error:
        kinds = {problem.kind for problem in error.problems}
        single = kinds <= SINGLE and "extends" not in data and " = nan\n" not in text and " = -inf\n" not in text
        return "refused", f"refused, yet the schema has nothing against it: {error}" if single and valid else ""
    if name in NEVER:
        return "accepted", "accepted, though nobody can have meant it"
    if not valid:
        return "accepted", f"accepted, yet invalid: {next(schema.iter_errors(written)).message}"
    return "accepted", "" if "extends" in data else kept(written, unstructure(spec))


def kept(written: Any, read: Any, at: str = "") -> str:
    """What of a written document is not in the structured one."""
    if isinstance(written, dict) and isinstance(read, dict):
        below = [kept(value, read.get(key), f"{at}.{key}") for key, value in written.items() if key not in NOT_KEPT]
        return next(filter(None, below), "")
    if isinstance(written, list) and isinstance(read, list) and len(written) == len(read):
        return next(
            filter(None, (kept(a, b, f"{at}[{i}]") for i, (a, b) in enumerate(zip(written, read, strict=True)))), ""
        )
    if at.endswith(".size") and read in ([written, written], written):
        return ""
    number = type(written) is int and type(read) is float
    located = isinstance(read, str) and read.startswith("/") and isinstance(written, str)
    same = written == read and (type(written) is type(read) or number)
    absent_table = written == {} and read is None
    return "" if same or located or absent_table else f"{at} was written {written!r} and read {read!r}"


NOT_KEPT = ("requires", "plugins", "eval")


def survey(path: Path, values: tuple[Any, ...], done: set[str]) -> dict[str, Any]:
    """Counts of mutants refused and accepted, by mutation, and every complaint; see `mutants` for `done`."""
    entries = installed_entries()
    registry = Registry(entries)
    load_spec(path, registry)
    used = {contribution.source for kind in (*COMPONENTS.values(), "rewards") for contribution in registry.loaded(kind)}
    slim = Registry([entry for entry in entries if entry.source in used])
    for file in tomllib.loads(path.read_text()).get("plugins", []):
        if file.endswith(".py"):
            slim.load_file((path.parent / file).resolve())
    schema = Draft202012Validator(spec_schema(slim)[0])
    counts: Counter[str] = Counter()
    complaints = []
    for mutant in mutants(tomllib.loads(path.read_text(encoding="utf-8")), values, done):
        fresh = mutant[1][0] == "plugins"  # what the unbroken spec has loaded must not help
        used_registry = Registry(entries) if fresh else registry
        outcome, wrong = complaint(mutant, path.with_name("mutant.toml"), used_registry, schema)
        counts[f"{outcome}: {mutant[0]}"] += 1
        if wrong:
            complaints.append(f"{mutant[0]} at {mutant[1]}: {wrong}")
    assert not any(sys.modules[name] for name in HEAVY), "something heavy was imported"
    return {"counts": dict(sorted(counts.items())), "complaints": complaints}


if __name__ == "__main__":
    few = "--few" in sys.argv
    done: set[str] = set()
    print(json.dumps({name: survey(Path(name), FEW if few else WRONG, done) for name in sys.argv[1 + few :]}))
