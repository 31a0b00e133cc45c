"""What every entry owes, whatever its kind."""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from flowfactory.contracts.hooks import PROJECT
from flowfactory.contracts.key import Key
from flowfactory.discovery.entries import noun
from flowfactory.spec.kinds import declared, keys, plain
from flowfactory.testing.subject import Broken, Check, NotOwed, Subject, expect, offline

HEAVY = ("torch", "diffusers", "transformers", "accelerate", "peft", "torchvision", "tensorflow", "jax")
BUDGET = 0.25
"""Seconds of processor time that importing a hook module may take, beyond flowfactory's own hooks."""

PROBE = """
import json, sys, time
import flowfactory.contracts.hooks, flowfactory.spec, flowfactory.builtin
before = time.process_time()
__import__(sys.argv[1])
spent = time.process_time() - before
print(json.dumps({"spent": spent, "heavy": sorted(set(sys.argv[2:]) & set(sys.modules))}))
"""


def names_agree(subject: Subject) -> None:
    """Its hook module loads, its hooks are known ones, and what they provide is what its entry points name."""
    expect(subject.contribution.provides.name == subject.entry.name, "the names differ")


def summary_is_a_line(subject: Subject) -> None:
    """It has a summary of one line."""
    summary = subject.contribution.provides.summary
    expect(summary.strip() and len(summary.splitlines()) == 1, f"the summary is {summary!r}, not one line")
    expect(len(summary) <= 120, f"the summary has {len(summary)} characters, and 120 are a line")


def requirement_is_a_range(subject: Subject) -> None:
    """Its distribution requires a range of flowfactory versions, not a single one."""
    required = [Requirement(text) for text in subject.entry.requires]
    own = [r for r in required if canonicalize_name(r.name) == PROJECT]
    expect(own, f"it does not require {PROJECT}; add e.g. '{PROJECT}>={_minor()},<1' to its dependencies")
    for requirement in own:
        pinned = [str(s) for s in requirement.specifier if s.operator in ("==", "===") and "*" not in s.version]
        expect(not pinned, f"it requires {requirement}: no other plugin that needs another version can be used with it")
        expect(len(requirement.specifier), f"it requires any {PROJECT} there ever will be; say which, as a range")


def hook_module_is_light(subject: Subject) -> None:
    """Importing its hook module imports no deep-learning library: `check` and `plan` do so."""
    _is_installed(subject)
    heavy = _probe(subject.entry.module)["heavy"]
    expect(not heavy, f"`import {subject.entry.module}` imports {', '.join(heavy)}; import them where the target is")


def hook_module_is_quick(subject: Subject) -> None:
    """Importing its hook module takes little time."""
    _is_installed(subject)
    spent = min(_probe(subject.entry.module)["spent"], _probe(subject.entry.module, again=True)["spent"])
    expect(
        spent <= BUDGET, f"`import {subject.entry.module}` takes {spent:.2f} s of processor time, more than {BUDGET}"
    )


def spec_is_frozen(subject: Subject) -> None:
    """Instances of its spec class cannot be changed."""
    cls: Any = subject.contribution.provides.spec
    try:
        cls.__new__(cls).__setattr__("anything", 1)
    except attrs.exceptions.FrozenInstanceError:
        return
    except AttributeError:
        pass  # a slotted class that is not frozen
    raise Broken(f"`{cls.__name__}` can be changed; declare it with @attrs.frozen(kw_only=True)")


def spec_is_keyword_only(subject: Subject) -> None:
    """Its keys have no order, so that one can be added."""
    cls = subject.contribution.provides.spec
    positional = [field.name for field in attrs.fields(cls) if field.init and not field.kw_only]
    expect(not positional, f"{', '.join(positional)} of `{cls.__name__}` can be given by position; use kw_only=True")


def spec_is_documented(subject: Subject) -> None:
    """Its spec class and each of its keys say what they are."""
    cls = subject.contribution.provides.spec
    expect((cls.__doc__ or "").strip(), f"`{cls.__name__}` has no docstring")
    bare = [name for name, field in keys(cls).items() if not declared(field).doc.strip()]
    expect(not bare, f'without words: {", ".join(bare)}; declare keys with flowfactory.key("…")')
    own = [name for name, field in keys(cls).items() if Key.METADATA not in field.metadata]
    expect(not own, f"{', '.join(own)} are not declared with flowfactory.key")


def spec_round_trips(subject: Subject) -> None:
    """Its spec, written out with every default, reads back the same; so every default is within its own bounds."""
    again = subject.read(plain(subject.spec))
    expect(again == subject.spec, f"{subject.spec} is written and read back as {again}")


def unknown_key_is_refused(subject: Subject) -> None:
    """A key that nobody reads is an error."""
    try:
        subject.read({**subject.keys, "a_key_nobody_reads": 1})
    except Broken as refusal:
        expect("a_key_nobody_reads" in str(refusal), f"the refusal does not name the key: {refusal}")
        return
    raise Broken("it accepts `a_key_nobody_reads`")


def target_honours_its_contract(subject: Subject) -> None:
    """Its target can be imported, extends its kind's base class, lacks no method, and is made from the spec alone."""
    target = subject.target
    if inspect.isclass(target):
        missing = sorted(vars(target)["__abstractmethods__"]) if inspect.isabstract(target) else []
        expect(not missing, f"`{target.__name__}` lacks {', '.join(missing)}")
        for name, own, base in _overrides(target):
            expect(_parameters(own) == _parameters(base), _signatures(name, own, base))
        subject.make()
    else:
        expect(len(_parameters(target)) == 1, f"`{target.__name__}` takes {_parameters(target)}, not samples alone")


def target_is_documented(subject: Subject) -> None:
    """Its target has a docstring of its own."""
    target = subject.target
    said = vars(target).get("__doc__") if inspect.isclass(target) else target.__doc__
    expect((said or "").strip(), f"{noun(subject.entry.kind)} `{target.__name__}` has no docstring")


def tiny_is_offline(subject: Subject) -> None:
    """What it is tried with is made without another machine's help."""
    with offline():
        expect(subject.spec is not None, "it has no spec")


CHECKS: Sequence[Check] = (
    names_agree,
    summary_is_a_line,
    hook_module_is_light,
    hook_module_is_quick,
    spec_is_frozen,
    spec_is_keyword_only,
    spec_is_documented,
    tiny_is_offline,
    spec_round_trips,
    unknown_key_is_refused,
    target_honours_its_contract,
    target_is_documented,
)
PLUGIN_CHECKS: Sequence[Check] = (requirement_is_a_range,)
"""What only entries of other distributions than flowfactory's own owe."""


def _is_installed(subject: Subject) -> None:
    if subject.entry.source.is_file:
        raise NotOwed("a local file is no module that others import")


@functools.cache
def _probe(module: str, again: bool = False) -> Mapping[str, Any]:
    """What importing a module brings into a fresh process, and how long it takes there."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", PROBE, module, *HEAVY]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Broken(f"`import {module}` fails in a fresh process: {done.stderr.strip().splitlines()[-1]}")
    found: Mapping[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _minor() -> str:
    return ".".join(importlib.metadata.version(PROJECT).split(".")[:2])


def _overrides(target: type) -> list[tuple[str, Any, Any]]:
    """The methods of flowfactory's base classes that a class has in a version of its own."""
    found = []
    for base in target.__mro__[1:]:
        if base.__module__.split(".")[0] == PROJECT:
            for name, method in vars(base).items():
                own = inspect.getattr_static(target, name)
                if inspect.isfunction(method) and inspect.isfunction(own) and own is not method and name[0] != "_":
                    found.append((name, own, method))
    return found


def _parameters(function: Any) -> list[str]:
    """Names of the parameters that have no default."""
    parameters = inspect.signature(function).parameters.values()
    return [
        p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]


def _signatures(name: str, own: Any, base: Any) -> str:
    return f"`{name}` takes {', '.join(_parameters(own))}, and its contract says {', '.join(_parameters(base))}"
