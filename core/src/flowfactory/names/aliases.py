"""What other programs call the names, tables and keys of a spec: one table, for messages and for the docs. No torch."""

from __future__ import annotations

import functools
import importlib.resources
import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

FILE = "aliases.toml"


@attrs.frozen
class Alias:
    """What one thing is called elsewhere.

    here: its name here: a plugin's, `[table]`, or `[table] key`; empty where nothing here is the same.
    words: by program; under the empty name where no program is meant in particular.
    kind: of a plugin, e.g. `adapters`. note: what else to know.
    """

    here: str
    words: Mapping[str, Sequence[str]]
    kind: str = ""
    note: str = ""

    def hint(self) -> str:
        """What to say to somebody who used another word."""
        name = self.here if self.here.startswith("[") else f"`{self.here}`"
        called = f"here it is called {name}" if self.here else ""
        return "; ".join(part for part in (called, self.note) if part)


@functools.cache
def aliases(what: str) -> tuple[Alias, ...]:
    """All aliases of one sort: "plugin", "table" or "key", in the order of the file."""
    text = (importlib.resources.files("flowfactory.names") / FILE).read_text(encoding="utf-8")
    return tuple(map(_alias, tomllib.loads(text)[what]))


def _alias(record: Mapping[str, str]) -> Alias:
    own: dict[str, Any] = {name: record[name] for name in ("kind", "note") if name in record}
    said = {name: words for name, words in record.items() if name not in ("here", "kind", "note")}
    words = {"" if name == "words" else name: text.split() for name, text in said.items()}
    return Alias(record.get("here", ""), words, **own)


def plugin(kind: str, word: str) -> Alias | None:
    """The plugin that another program's word means."""
    return next((alias for alias in aliases("plugin") if alias.kind == kind and _is_one(word, alias)), None)


def stem(word: str) -> str:
    """What a class of another library is of: `GRPO` of `GRPOTrainer`, `Flux` of `FluxPipeline`; other words whole."""
    return re.sub(r"(?<=.)(Img2Img|Inpaint)?(Pipeline|Trainer|Config|Scheduler|Scorer|Reward)$", "", word[:100])


def table(word: str) -> Alias | None:
    """The table that another program's word means."""
    return next((alias for alias in aliases("table") if _is_one(word, alias)), None)


def key(word: str, within: str) -> Alias | None:
    """The key that another program's word means; of several, one of the table `within`, e.g. `[optimizer]`."""
    found = [alias for alias in aliases("key") if _is_one(word, alias)]
    return next((alias for alias in found if alias.here.startswith(f"{within} ")), found[0] if found else None)


def _is_one(word: str, alias: Alias) -> bool:
    others, of_class = [other for words in alias.words.values() for other in words], stem(word)
    if of_class != word[:100] and any(_joined(of_class) == _joined(other) for other in others):
        return True
    return any(_plain(word) == _plain(other) for other in others)


def _plain(word: str) -> str:
    return word[:100].lower().replace("_", "-")


def _joined(word: str) -> str:
    """As classes are called, but small."""
    return re.sub("[-_. ]", "", word.lower())
