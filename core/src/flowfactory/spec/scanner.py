"""Where every key and value of a valid TOML text stands, which tomllib does not tell."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence

import attrs

Address = tuple[str | int, ...]
"""A way from the root: table keys and array indices."""


@attrs.frozen
class Spans:
    """Offsets, end excluded, of a key and its value; of an array's entry or a header's table, twice the same."""

    key: tuple[int, int]
    value: tuple[int, int]


Part = tuple[str, tuple[int, int]]
"""One part of a dotted key, and where."""


class Scanner:
    """Finds where every key and value of a valid TOML text stands."""

    _BLANK = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
    _SPACE = re.compile(r"[ \t]*")
    _BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
    _STRING = re.compile(
        r'"""(?:[^\\]|\\.)*?"{3,5}(?!")|' r"'''.*?'{3,5}(?!')|" r'"(?:[^"\\]|\\.)*"|' r"'[^']*'", re.DOTALL
    )
    _SCALAR = re.compile(r"[^,\]}#\n]*")

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.spans: dict[Address, Spans] = {}
        self._entries: dict[Address, int] = {}  # entries so far of each array of tables

    def scan(self) -> Mapping[Address, Spans]:
        """The spans of everything below the root."""
        table: Address = ()
        self._skip(self._BLANK)
        while self.at < len(self.text):
            if self.text[self.at] == "[":
                table = self._header()
            else:
                self._pair(table)
            self._skip(self._BLANK)
        return self.spans

    def _header(self) -> Address:
        brackets = 2 if self.text.startswith("[[", self.at) else 1
        self.at += brackets
        parts = self._key()
        self.at += brackets
        table = self._tables((), parts[:-1])
        name, span = parts[-1]
        address = (*table, name)
        if brackets == 1:
            address = self._latest(address)
            self.spans[address] = Spans(span, span)
            return address
        self.spans.setdefault(address, Spans(span, span))
        index = self._entries[address] = self._entries.get(address, -1) + 1
        self.spans[(*address, index)] = Spans(span, span)
        return (*address, index)

    def _pair(self, table: Address) -> None:
        parts = self._key()
        self._skip(self._SPACE)
        self.at += 1  # the equals sign
        self._skip(self._SPACE)
        name, span = parts[-1]
        self._value((*self._tables(table, parts[:-1]), name), span)

    def _tables(self, table: Address, parts: Sequence[Part]) -> Address:
        """Enter tables by name, noting those not seen before; in an array of tables, its latest entry."""
        for name, span in parts:
            table = self._latest((*table, name))
            self.spans.setdefault(table, Spans(span, span))
        return table

    def _latest(self, address: Address) -> Address:
        return (*address, self._entries[address]) if address in self._entries else address

    def _key(self) -> list[Part]:
        parts = [self._key_part()]
        while self.text.startswith(".", self.at):
            self.at += 1
            parts.append(self._key_part())
        return parts

    def _key_part(self) -> Part:
        self._skip(self._SPACE)
        quoted = self.text[self.at] in "\"'"
        span = self._skip(self._STRING if quoted else self._BARE_KEY)
        raw = self.text[slice(*span)]
        self._skip(self._SPACE)
        return (tomllib.loads(f"key = {raw}")["key"] if quoted else raw), span

    def _value(self, address: Address, key: tuple[int, int] | None = None) -> None:
        start = self.at
        first = self.text[start]
        self.spans[address] = Spans(
            (start, start), (start, start)
        )  # before its contents, so that order is reading order
        if first in "\"'":
            self._skip(self._STRING)
        elif first == "[":
            self._array(address)
        elif first == "{":
            self._inline_table(address)
        else:
            self.at = start + len(self._SCALAR.match(self.text, start)[0].rstrip())  # type: ignore[index]
        span = (start, self.at)
        self.spans[address] = Spans(key or span, span)

    def _array(self, address: Address) -> None:
        index = 0
        while self._next_entry("]"):
            self._value((*address, index))
            index += 1

    def _inline_table(self, address: Address) -> None:
        while self._next_entry("}"):
            self._pair(address)

    def _next_entry(self, closing: str) -> bool:
        """Step over an opening bracket or a comma; whether an entry follows, else step over the closing bracket."""
        self._skip(self._BLANK)
        if self.text[self.at] != closing:
            self.at += 1
            self._skip(self._BLANK)
        if self.text[self.at] == closing:
            self.at += 1
            return False
        return True

    def _skip(self, pattern: re.Pattern[str]) -> tuple[int, int]:
        found = pattern.match(self.text, self.at)
        if found is None:
            raise AssertionError(f"the scanner lost its way at offset {self.at}: {self.text[self.at : self.at + 40]!r}")
        self.at = found.end()
        return found.span()
