"""What files of weights hold, from their headers: safetensors and GGUF. No torch: no weight is read."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import attrs

Shape = tuple[int, ...]

BITS = {"BOOL": 8, "U4": 4, "I4": 4, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
"""Of safetensors' number formats whose name does not end in them, as in `F32`, or says more than that."""

POINTER = b"version https://git-lfs"

QUANT_STATE = ".quant_state.bitsandbytes__"
"""In the name of the tensor that says what shape a weight of 4 bits has, as JSON."""


@attrs.frozen
class Tensor:
    """One tensor: its number format, its shape and the bytes it takes."""

    format: str
    shape: Shape
    bytes: int

    @property
    def floating(self) -> bool:
        """Whether it is numbers that are loaded in the precision of the run."""
        return self.format.startswith(("F", "BF"))


@attrs.frozen
class Weights:
    """The tensors of one or several files, by name. packed: shapes of weights in fewer bits, where they are known."""

    tensors: Mapping[str, Tensor]
    packed: Mapping[str, Shape] = attrs.field(factory=dict)


def weights(file: Path) -> Weights:
    """What is in a file of weights.

    Raises:
        ValueError: what is wrong with the file, without its name.
    """
    refuse_empty(file)
    size = file.stat().st_size
    with file.open("rb") as opened:
        begin = opened.read(4)
        opened.seek(0)
        if begin.startswith(b"GGUF"):
            return _gguf(opened, size)
        return _safetensors(opened, size)


def refuse_empty(file: Path) -> None:
    """Look at how a file begins.

    Raises:
        ValueError: there is nothing in it, or it only stands for the file that git-lfs has not fetched.
    """
    with file.open("rb") as opened:
        begin = opened.read(len(POINTER))
    if not begin:
        raise ValueError("is empty")
    if begin == POINTER:
        raise ValueError("is a pointer of git-lfs, not the file it stands for; run `git lfs pull` where it lies")


def of_header(header: Any) -> dict[str, Tensor]:
    """The tensors that a safetensors header lists.

    Raises:
        ValueError: it is not such a header.
    """
    try:
        tensors = {name: facts for name, facts in header.items() if name != "__metadata__"}
        return {name: _tensor(facts["dtype"], tuple(facts["shape"])) for name, facts in tensors.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError("is no safetensors file: its header is not one") from error


def _tensor(format: str, shape: Shape) -> Tensor:
    number = "".join(c for c in format.partition("_")[0] if c.isdigit())
    return Tensor(format, shape, math.prod(shape) * BITS.get(format, int(number or 8)) // 8)


def _safetensors(opened: BinaryIO, size: int) -> Weights:
    """A file begins with the length of its JSON header, and that."""
    length = int.from_bytes(opened.read(8), "little")
    if size < 8 or length > size - 8:
        raise ValueError("is cut short, or no safetensors file")
    try:
        header = json.loads(opened.read(length))
    except (ValueError, RecursionError) as error:
        raise ValueError("is no safetensors file: its header is not JSON") from error
    tensors = of_header(header)
    ends = [facts["data_offsets"] for name, facts in header.items() if name != "__metadata__"]
    whole = 8 + length + max((end for _, end in ends), default=0)
    if whole > size:
        raise ValueError(f"is cut short: it has {size} of {whole} bytes")
    packed = {}
    for name in tensors:
        weight, mark, _ = name.partition(QUANT_STATE)
        if mark:
            begin, end = header[name]["data_offsets"]
            opened.seek(8 + length + begin)
            packed[weight] = tuple(json.loads(opened.read(end - begin))["shape"])
    return Weights(tensors, packed)


_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9


def _gguf(opened: BinaryIO, size: int) -> Weights:
    """A file begins with facts about the model, of any types; then each tensor's name, shape, type and place."""

    def number(form: str) -> Any:
        (read,) = struct.unpack(form, opened.read(struct.calcsize(form)))
        return read

    def text() -> str:
        return opened.read(number("<Q")).decode("utf-8", "replace")

    def skip(kind: int) -> None:
        if kind == _STRING:
            text()
        elif kind == _ARRAY:
            inner, count = number("<I"), number("<Q")
            for _ in range(count):
                skip(inner)
        else:
            number(_SCALARS[kind])

    try:
        opened.seek(8)
        count, facts = number("<Q"), number("<Q")
        for _ in range(facts):
            text()
            skip(number("<I"))
        shapes, begins = {}, []
        for _ in range(count):
            name = text()
            shapes[name] = tuple(reversed([number("<Q") for _ in range(number("<I"))]))
            number("<I")
            begins.append(number("<Q"))
        start = -(-opened.tell() // 32) * 32
    except (struct.error, KeyError, OverflowError, MemoryError) as error:
        raise ValueError("is cut short, or no GGUF file") from error
    if start + max(begins, default=0) >= size:
        raise ValueError("is cut short: some of its tensors are not in it")
    ends = [*sorted(begins)[1:], size - start]
    lengths = {begin: end - begin for begin, end in zip(sorted(begins), ends, strict=True)}
    tensors = {
        name: Tensor("GGUF", shape, lengths[begin]) for (name, shape), begin in zip(shapes.items(), begins, strict=True)
    }
    return Weights(tensors, {name: shape for name, shape in shapes.items() if len(shape) > 1})
