"""Paths and text as people and their programs write them. Imports no torch."""

from __future__ import annotations

import codecs
import os
import re
import stat
from pathlib import Path

from flowfactory.errors import printable

MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks and what they promise; the longer ones first."""

PACKED = {
    b"\x1f\x8b": "packed by gzip: unpack it first",
    b"PK\x03\x04": "packed, as .zip and .xlsx files are: unpack it, or save it as .csv",
    b"PAR1": "parquet: call it .parquet",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"%PDF": "a PDF",
}
"""How files begin that people take for text, and what they are."""

KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)

LARGEST = 1 << 30
"""Bytes of the largest text that is read."""

_SURROGATE = re.compile("[\ud800-\udfff]")


def path_of(written: str, folder: Path) -> Path:
    """The path a person wrote, absolute, under the name that was written: a link's own, not that of what it points to.

    Args:
        folder: what relative paths are relative to.

    Raises:
        ValueError: it is no path.
    """
    if not written:
        raise ValueError("expected a path, not an empty string")
    if "\0" in written or _SURROGATE.search(written):
        raise ValueError(f"expected a path, not {printable(repr(written[:80]))}")
    try:
        path = folder / Path(written).expanduser()
    except RuntimeError:
        raise ValueError(f"there is no user {written.partition('/')[0][1:80]!r} whose folder `~` could mean") from None
    fits(path)
    try:
        return path.resolve() if path.name == ".." else path.parent.resolve() / path.name
    except (OSError, RuntimeError):
        raise ValueError(f"{path} leads in a circle of links, or nowhere") from None


def fits(path: Path) -> None:
    """See that a path is one that file systems can have; asking for any other is an error everywhere.

    Raises:
        ValueError: it is too long.
    """
    if long := [part for part in path.parts if len(os.fsencode(part)) > 255]:
        raise ValueError(f"the name is longer than file systems allow: {printable(long[0][:80])}…")
    if len(os.fsencode(path)) > 4000:
        raise ValueError(f"the path is longer than file systems allow: {printable(str(path)[:80])}…")


def exists(path: Path) -> bool:
    """Whether something is there; what may not be looked at is not."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def read_text(path: Path, largest: int = LARGEST) -> str:
    """The text of a file: UTF-8, or what its byte order mark says, which is no part of the text.

    Raises:
        ValueError: it cannot be read, is no ordinary file, too large, or no such text; without the file's name.
    """
    size = size_of(path)
    if size > largest:
        raise ValueError(f"it has {size} bytes; at most {largest} are read")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    return decoded(data)


def size_of(path: Path) -> int:
    """The bytes of an ordinary file.

    Raises:
        ValueError: it is none, or cannot be looked at; without its name.
    """
    try:
        facts = path.stat()
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    if not stat.S_ISREG(facts.st_mode):
        what = next((words for test, words in KINDS if test(facts.st_mode)), "something else")
        raise ValueError(f"expected a file, but it is {what}")
    return facts.st_size


def decoded(data: bytes) -> str:
    """Bytes as text, without a byte order mark.

    Raises:
        ValueError: they are none; the message says what they look like, and where it ends.
    """
    if packed := next((words for mark, words in PACKED.items() if data.startswith(mark)), None):
        raise ValueError(f"it is not text but {packed}")
    encoding = next((encoding for mark, encoding in MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        like = "; it looks like UTF-16 without a byte order mark" if b"\0" in data[:200] else ""
        raise ValueError(f"it is not {encoding.removesuffix('-sig').upper()} text: see line {line}{like}") from None
    if "\0" in text[:200]:
        raise ValueError("it is not text, or UTF-16 without a byte order mark; save it as UTF-8")
    return text
