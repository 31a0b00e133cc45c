"""The JSON Schema of a spec file, from the declarations of core and of every installed plugin; for editors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args, get_origin

import attrs

from flowfactory.components.resolved import contributions
from flowfactory.contracts.key import Function, Key, Location, Size
from flowfactory.discovery.entries import KINDS, Contribution
from flowfactory.discovery.registry import Registry
from flowfactory.errors import PluginError
from flowfactory.spec.kinds import arms_of, declared, hints, is_literal, keys, plain
from flowfactory.spec.structure import TABLES
from flowfactory.spec.tables import COMPONENTS, RewardEntry

Schema = dict[str, Any]

REQUIRED = ("run", "model", "data", "sampling", "scheduler", "trainer", "optimizer")


def spec_schema(registry: Registry) -> tuple[Schema, Sequence[PluginError]]:
    """The schema, and what kept broken plugins out of it. Loads the hook module of every installed plugin.

    A spec that `extends` another need not be complete, so nothing is required of it.
    """
    offers, broken = contributions(registry)
    properties: Schema = {
        "extends": {
            "type": "string",
            "description": "Another spec that this one changes: tables merge, arrays replace.",
        },
        "requires": _strings("Distributions that must be installed, e.g. `flowfactory-plugin-x>=1.0`."),
        "plugins": _strings("Further plugins to load: observers by name, and local files, e.g. `./my_rewards.py`."),
    }
    properties |= {name: table_schema(cls, required=False) for name, cls in TABLES.items()}
    properties |= {name: _component(offers[kind], kind, {}) for name, kind in COMPONENTS.items()}
    reward = _component(offers["rewards"], "rewards", _properties(RewardEntry, leave=("name", "spec")))
    properties["reward"] = {"type": "array", "items": reward}
    properties["eval"]["properties"]["reward"] = {"type": "array", "items": reward}
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "flowfactory spec",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "if": {"not": {"required": ["extends"]}},
        "then": _complete(offers),
    }
    return schema, broken


def table_schema(cls: type, required: bool = True) -> Schema:
    """The schema of a table that an attrs class describes."""
    schema: Schema = {"type": "object", "properties": _properties(cls), "additionalProperties": False}
    needed = required_keys(cls)
    if required and needed:
        schema["required"] = needed
    return schema


def required_keys(cls: type) -> list[str]:
    """Keys without a default."""
    return [name for name, field in keys(cls).items() if field.default is attrs.NOTHING]


def value_schema(kind: Any, key: Key) -> Schema:
    """The schema of one value: its type, bounds and choices."""
    arms = [arm for arm in arms_of(kind) if arm is not type(None)]
    if len(arms) > 1:
        return {"anyOf": [value_schema(arm, key) for arm in arms]}
    (kind,) = arms
    if kind is Size:
        pixels = {"type": "integer", "minimum": 1}
        return {"anyOf": [pixels, {"type": "array", "items": pixels, "minItems": 2, "maxItems": 3}]}
    if get_origin(kind) is tuple:
        return _array(get_args(kind), key)
    if is_literal(kind):
        return {"enum": list(get_args(kind))}
    if attrs.has(kind):
        return table_schema(kind)
    return _scalar(kind, key)


def _properties(cls: type, leave: Iterable[str] = ()) -> Schema:
    types = hints(cls)
    return {
        name: _property(types[field.name], declared(field), field.default)
        for name, field in keys(cls).items()
        if name not in leave and not _elsewhere(types[field.name])
    }


def _elsewhere(kind: Any) -> bool:
    """Whether an attribute is filled from another table."""
    return bool(RewardEntry in get_args(kind))


def _property(kind: Any, key: Key, default: Any) -> Schema:
    schema = value_schema(kind, key)
    if key.doc:
        schema["description"] = key.doc
    if not (default is attrs.NOTHING or default is None or isinstance(default, attrs.Factory)):  # type: ignore[arg-type]
        schema["default"] = plain(default)
    return schema


def _array(kinds: tuple[Any, ...], key: Key) -> Schema:
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        schema: Schema = {"type": "array", "items": value_schema(kinds[0], attrs.evolve(key, min_length=None))}
        return schema | ({} if key.min_length is None else {"minItems": key.min_length})
    each = [value_schema(kind, key) for kind in kinds]
    items = each[0] if all(one == each[0] for one in each) else {"anyOf": each}
    # Not `prefixItems`: editors whose validators are older than it take the `items: false` after it for all there is.
    return {"type": "array", "items": items, "minItems": len(kinds), "maxItems": len(kinds)}


_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", Location: "string", Function: "string"}


def _scalar(kind: Any, key: Key) -> Schema:
    if kind not in _TYPES:
        return {}
    schema: Schema = {"type": _TYPES[kind]}
    if key.choices is not None:
        schema["enum"] = list(key.choices)
    if kind in (int, float):
        bounds = {"minimum": key.ge, "exclusiveMinimum": key.gt, "maximum": key.le, "exclusiveMaximum": key.lt}
        schema |= {word: bound for word, bound in bounds.items() if bound is not None}
    if kind is str and key.min_length is not None:
        schema["minLength"] = key.min_length
    if kind is str and key.pattern is not None:
        schema["pattern"] = f"^(?:{key.pattern})$"
    return schema


def _strings(doc: str) -> Schema:
    return {"type": "array", "items": {"type": "string"}, "description": doc}


def _component(offers: Sequence[Contribution], kind: str, core: Schema) -> Schema:
    """A plugin's table: `name` decides which further keys there are."""
    names = sorted({offer.provides.name for offer in offers})
    doc = f"Which {KINDS[kind].name}: its public name, or `name@distribution` where two share one."
    name = {"type": "string", "description": doc, "anyOf": [{"enum": names}, {"pattern": "^[^@]+@.+$"}]}
    branches = [_branch(offer, core) for offer in offers]
    return {"type": "object", "properties": {"name": name}, "allOf": branches}


def _branch(offer: Contribution, core: Schema) -> Schema:
    table = table_schema(offer.provides.spec, required=False)
    table["properties"] = {"name": True, **core, **table["properties"]}
    return {"if": _named(offer), "then": table | {"description": offer.provides.summary}}


def _named(offer: Contribution) -> Schema:
    full = f"{offer.provides.name}@{offer.source.name}"
    return {"properties": {"name": {"enum": [offer.provides.name, full]}}, "required": ["name"]}


def _complete(offers: Mapping[str, Sequence[Contribution]]) -> Schema:
    """What a spec that extends no other must have."""
    tables: Schema = {name: {"required": required_keys(cls)} for name, cls in TABLES.items() if required_keys(cls)}
    tables["data"] = {"oneOf": [{"required": ["prompts"]}, {"required": ["source"]}]}
    tables |= {name: _required_by_name(offers[kind]) for name, kind in COMPONENTS.items()}
    tables["reward"] = {"items": _required_by_name(offers["rewards"])}
    tables["eval"] = {"properties": {"reward": tables["reward"]}}
    one_tuning = {"oneOf": [{"required": ["lora"]}, {"required": ["full"]}]}
    return {"required": list(REQUIRED), "properties": tables, **one_tuning}


def _required_by_name(offers: Sequence[Contribution]) -> Schema:
    branches = [
        {"if": _named(offer), "then": {"required": required_keys(offer.provides.spec)}}
        for offer in offers
        if required_keys(offer.provides.spec)
    ]
    return {"required": ["name"], **({"allOf": branches} if branches else {})}
