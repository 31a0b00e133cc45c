"""The page of hooks, entry points, and what spec classes are made of. Imports no torch."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import Any

from flowfactory.contracts import hooks
from flowfactory.contracts.hooks import Provides
from flowfactory.contracts.specs import (
    AdapterSpec,
    Decay,
    Needs,
    SchedulerSpec,
    StochasticSpec,
    Times,
    TrainerSpec,
    Window,
)
from flowfactory.discovery.entries import KINDS
from tables import keys_table, page, row

HOOKS_INTRODUCTION = """
A plugin is a distribution with entry points. The name of an entry point is the public name; its value is the *hook
module*, which holds spec classes and the functions below, each marked with `flowfactory.hookimpl`. The hook module must
not import torch: `check`, `plan` and `schema` load it.

```toml
[project]
name = "flowfactory-plugin-mine"
dependencies = ["flowfactory>=0.1,<1"]

[project.entry-points."flowfactory.rewards"]
mine = "flowfactory_plugin_mine"
```

```python
import attrs
from flowfactory import Provides, hookimpl, key


@attrs.frozen(kw_only=True)
class MineSpec:
    \"\"\"Keys of `[[reward]] name = "mine"`.\"\"\"

    strength: float = key("How much.", default=1.0, gt=0)


@hookimpl
def flowfactory_rewards():
    yield Provides("mine", MineSpec, "flowfactory_plugin_mine.reward:Mine", "What it rewards, in one line.")
```

A single file does as well: `plugins = ["./my_rewards.py"]` in the spec loads it as a hook module, and there `target`
may be the object itself.

A plugin is imported when a spec uses one of its names or lists it in `plugins`. Observers, which only implement event
hooks, have entry points in the group `flowfactory.plugins` and are always listed. `FLOWFACTORY_TRACE=1` prints every
hook call.
"""


def hooks_page() -> str:
    """`docs/hooks.md`."""
    lines = ["# Hooks", HOOKS_INTRODUCTION, "## Entry-point groups", "", "| group | hook | what |", "|---|---|---|"]
    for kind in KINDS.values():
        lines.append(row(f"`{kind.group}`", f"`{kind.hook}`", f"named by `{kind.key}`"))
    lines += [row("`flowfactory.plugins`", "any event hook", "observers, named in `plugins`")]
    lines += [row("`flowfactory.commands`", "none", "click commands, by their names: `flowfactory NAME`"), ""]
    lines += ["## `Provides`", "", inspect.cleandoc(Provides.__doc__ or "").replace("\n", "  \n"), ""]
    lines += ["## `key`", "", *_function_doc(vars(sys.modules[Needs.__module__])["key"]), ""]
    lines += ["## Hook functions", "", inspect.cleandoc(hooks.__doc__ or "").partition("\n\n")[2], ""]
    for name, function in hook_functions().items():
        lines += [f"### `{name}`", "", "```py", f"def {name}{_signature(function)}", "```", ""]
        lines += [inspect.cleandoc(function.__doc__ or ""), ""]
    lines += ["## What spec classes are made of", ""]
    for cls in (AdapterSpec, SchedulerSpec, StochasticSpec, TrainerSpec, Window, Times, Decay):
        lines += [f"### `{cls.__name__}`", "", inspect.cleandoc(cls.__doc__ or ""), "", *keys_table(cls)]
    lines += ["### `Needs`", "", inspect.cleandoc(Needs.__doc__ or "").replace("\n", "  \n"), ""]
    return page(lines)


def hook_functions() -> Mapping[str, Any]:
    """Every hook specification, in the order of the source."""
    return {name: value for name, value in vars(hooks).items() if name.startswith("flowfactory_")}


def _signature(function: Any) -> str:
    return str(inspect.signature(function)).replace("'", "")


def _function_doc(function: Any) -> list[str]:
    return ["```text", inspect.cleandoc(function.__doc__ or ""), "```"]
