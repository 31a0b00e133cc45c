"""What a pipeline's `encode_*` methods return, as `Conditions`, and back.

A name says where a tensor belongs: `encode_prompt.1.0` is the first item of what the second call of `encode_prompt`
returned. A suffix says how it meets the batch. None: its first axis is the batch. `:each`: the method returned a list
with one tensor per sample. `:shared`: it has no batch axis and is repeated for each row. `:none`: it was `None`.
`:row`: it is of one row, whichever of its axes the batch is, so every row is a call of its own. `:listed`: likewise,
and the method returned a list of nothing else.
Rows of unequal length are padded by `Adapter.collate`; `shapes` `(B, …)` keeps what their lengths were.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from flowfactory.contracts.types import Conditions

SHAPES = "shapes"
SEEN = "seen"
"""Among recorded calls: not a method, but the sizes of the images that methods were handed, where these matter."""

EACH, SHARED, NONE, ROW, LISTED = ":each", ":shared", ":none", ":row", ":listed"

Call = tuple[str, Any]
"""A method's name and what it returned."""


class Recorder:
    """Stands in for methods and keeps what their outermost calls return, in order. seen: images they were handed."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.seen: list[Image.Image] = []
        self._depth = 0

    def idle(self) -> bool:
        """Whether none of the methods is running."""
        return self._depth == 0

    def around(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """A function that calls `method` and records the result."""

        def recorded(*args: Any, **kwargs: Any) -> Any:
            if self._depth == 0:
                self.seen += _images([*args, *kwargs.values()])
            self._depth += 1
            try:
                value = method(*args, **kwargs)
            finally:
                self._depth -= 1
            if self._depth == 0 and not _text(value):
                self.calls.append((name, value))
            return value

        return recorded


def suffixes(one: Sequence[Call], two: Sequence[Call]) -> dict[str, str]:
    """How each recorded value meets the batch, from the calls of a batch of one row and of that row twice.

    Raises:
        ValueError: a value is neither per sample nor independent of the batch, or the number of calls depends on it.
    """
    if [name for name, _ in one] != [name for name, _ in two]:
        raise ValueError(f"the pipeline encodes one prompt by {len(one)} calls and two by {len(two)}")
    found: dict[str, str] = {}
    for (name, a), (_, b) in zip(_named(one), _named(two), strict=True):
        found.update(_compare(name, a, b))
    return found


def as_one_row(calls: Sequence[Call]) -> dict[str, str]:
    """Suffixes for the recorded values of a batch of one row, which is never to be part of a larger one.

    Raises:
        ValueError: a value cannot be kept.
    """
    return {name: suffix for call in _named(calls) for name, suffix in _as_it_is(*call)}


def one_row_a_call(conditions: Conditions) -> bool:
    """Whether they can be used by calls of one row only."""
    return any(name.endswith((ROW, LISTED)) for name in conditions)


def flatten(calls: Sequence[Call], suffix: Mapping[str, str]) -> dict[str, Tensor]:
    """The calls of a batch of one row as conditions `(1, …)`."""
    conditions = {name + suffix[name]: tensor for call in _named(calls) for name, tensor in _leaves(*call, suffix)}
    lengths = [n for name in sorted(conditions) for n in conditions[name].shape[1:]]
    return conditions | {SHAPES: torch.tensor([lengths])}


def lengths(conditions: Conditions, name: str) -> Tensor:
    """The lengths before padding of all axes but the first of the recorded tensor `name`: `(B, axes)`.

    Raises:
        KeyError: nothing of that name was recorded.
    """
    before = sum(conditions[other].dim() - 1 for other in conditions if other != SHAPES and other < name)
    return conditions[SHAPES][:, before : before + conditions[name].dim() - 1]


def nothing(calls: Sequence[Call]) -> tuple[str, ...]:
    """The names of recorded values that are `None`, which those of other rows may not be."""
    return tuple(name for call in _named(calls) for name, suffix in _as_it_is(*call) if suffix == NONE)


def of_one_kind(parts: Sequence[Conditions]) -> Sequence[Conditions]:
    """Conditions `(B, …)` in which what is `None` in some is a tensor without elements there, as it is one in others.

    What has no axis but the batch's cannot be told from a tensor, and stays as it is.
    """
    names = {name for part in parts for name in part if not name.endswith(NONE)}
    kinds = {name.partition(":")[0]: next(part[name] for part in parts if name in part) for name in names}
    bases = {name.partition(":")[0]: name for name in names if kinds[name.partition(":")[0]].dim() > 1}
    return [_with_empty(part, bases, kinds) for part in parts]


def _with_empty(part: Conditions, bases: Mapping[str, str], kinds: Mapping[str, Tensor]) -> Conditions:
    changed = {
        name: name.removesuffix(NONE) for name in part if name.endswith(NONE) and name.removesuffix(NONE) in bases
    }
    if not changed:
        return part
    batch, tensors = len(part[SHAPES]), {name: t for name, t in part.items() if name not in (SHAPES, *changed)}
    own = {name: lengths(part, name) for name in tensors}
    for base in changed.values():
        like = kinds[base]
        tensors[bases[base]] = like.new_empty(batch, *[0] * (like.dim() - 1))
        own[bases[base]] = part[SHAPES].new_zeros(batch, like.dim() - 1)
    return tensors | {SHAPES: torch.cat([own[name] for name in sorted(tensors)], 1)}


def alike(one: Conditions, other: Conditions) -> bool:
    """Whether two rows have equal conditions."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Replay:
    """Stands in for the recorded methods of a batch whose rows all have the same shapes.

    Args:
        refusal: makes an error of why conditions cannot be used.
    """

    def __init__(self, conditions: Conditions, refusal: Callable[[str], Exception] = ValueError) -> None:
        self._refusal = refusal
        lengths = iter(conditions[SHAPES][0].tolist())
        self._returns: dict[str, Any] = {}
        for name in sorted(conditions):
            if name != SHAPES:
                tensor = conditions[name]
                region = tuple(slice(0, next(lengths)) for _ in tensor.shape[1:])
                self._place(name, tensor[(slice(None), *region)])
        self._made: Counter[str] = Counter()

    def _place(self, name: str, tensor: Tensor) -> None:
        path, colon, kind = name.partition(":")
        *above, last = path.split(".")
        node = self._returns
        for part in above:
            node = node.setdefault(part, {})
        empty = tensor.dim() > 1 and not any(tensor.shape[1:])  # it is `None` here, and something in other rows
        suffix = NONE if empty else colon + kind
        listed, one = [*tensor], tensor[0]
        node[last] = {"": tensor, EACH: listed, SHARED: one, ROW: one, LISTED: listed, NONE: None}[suffix]

    def method(self, name: str) -> Callable[..., Any]:
        """A function that returns what the next call of method `name` returned."""

        def replayed(*args: Any, **kwargs: Any) -> Any:
            for image in _images([*args, *kwargs.values()]) if SEEN in self._returns else ():
                self._compare(image)
            call = str(self._made[name])
            self._made[name] += 1
            if name not in self._returns and "encode_" not in name:
                return [*args, *kwargs.values()][0]  # it makes prompts of prompts, which are not read any more
            if call not in self._returns.get(name, {}):
                raise ValueError(f"the pipeline calls {name} oftener than when the prompts were encoded")
            return _sequence(self._returns[name][call])

        return replayed

    def _compare(self, image: Image.Image) -> None:
        """Refuse an image that is not of the size of the one that was encoded in its place."""
        shape = self.method(SEEN)().shape[1:3]
        if (image.height, image.width) != shape:
            now, then = f"{image.height}x{image.width}", "x".join(map(str, shape))
            raise self._refusal(
                f"it cuts its condition image to the shape of what it makes before its encoder sees it: {now} now, and "
                f"{then} when the prompt was encoded; give rows images of the shape of [sampling] size"
            )


def together(keys: Sequence[Hashable], ask: Callable[[list[int]], Tensor]) -> Tensor:
    """Call `ask` once for all rows of equal keys; the results `(rows, …)`, joined in the order of the rows.

    Args:
        keys: one for each row. ask: gets the numbers of some rows, rising.
    """
    alike: dict[Hashable, list[int]] = {}
    for row, key in enumerate(keys):
        alike.setdefault(key, []).append(row)
    answers = torch.cat([ask(rows) for rows in alike.values()])
    if len(alike) == 1:
        return answers
    order = torch.tensor([row for rows in alike.values() for row in rows]).argsort()
    return answers[order.to(answers.device)]


def _images(values: Sequence[Any]) -> list[Image.Image]:
    """Those among some arguments, or in lists that are."""
    listed = [item for value in values for item in (value if isinstance(value, list | tuple) else [value])]
    return [item for item in listed if isinstance(item, Image.Image)]


def _text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))


def _named(calls: Sequence[Call]) -> Iterator[tuple[str, Any]]:
    made: Counter[str] = Counter()
    for name, value in calls:
        yield f"{name}.{made[name]}", value
        made[name] += 1


def _compare(name: str, one: Any, two: Any) -> Iterator[tuple[str, str]]:
    if one is None and two is None:
        yield name, NONE
    elif isinstance(one, Tensor) and isinstance(two, Tensor):
        if one.dim() and len(one) == 1 and len(two) == 2:
            yield name, ""
        elif one.shape == two.shape:
            yield name, SHARED
        else:
            raise ValueError(f"{name} is {tuple(one.shape)} for one prompt and {tuple(two.shape)} for two")
    elif isinstance(one, list) and len(one) == 1 and len(two) == 2 and isinstance(one[0], Tensor):
        yield name, EACH
    elif isinstance(one, list | tuple) and len(one) == len(two):
        for i, (a, b) in enumerate(zip(one, two, strict=True)):
            yield from _compare(f"{name}.{i}", a, b)
    else:
        raise ValueError(f"{name} is of {type(one).__name__}, which cannot be kept as tensors")


def _as_it_is(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if value is None:
        yield name, NONE
    elif isinstance(value, Tensor):
        yield name, ROW
    elif isinstance(value, list) and len(value) == 1 and isinstance(value[0], Tensor):
        yield name, LISTED
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _as_it_is(f"{name}.{i}", item)
    else:
        raise ValueError(f"{name} is of {type(value).__name__}, which cannot be kept as tensors")


def _leaves(name: str, value: Any, suffix: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    match suffix.get(name):
        case ":none":
            yield name, torch.empty(1, 0)
        case ":each" | ":listed":
            yield name, value[0][None]
        case ":shared" | ":row":
            yield name, value[None]
        case "":
            yield name, value
        case _:
            for i, item in enumerate(value):
                yield from _leaves(f"{name}.{i}", item, suffix)


def _sequence(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    return tuple(_sequence(node[str(i)]) for i in range(len(node)))
