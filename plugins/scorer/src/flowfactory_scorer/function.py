"""The function that scores: found by its name, called with pictures, its answers checked."""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
import sys
import traceback
from collections.abc import Mapping, Sequence, Set
from itertools import islice
from pathlib import Path
from typing import Any, Callable

import numpy as np
from PIL import Image

from flowfactory_scorer.server import Score
from flowfactory_scorer.wire import Record

Function = Callable[[Sequence[Any], Sequence[str], Sequence[Mapping[str, Any]]], Any]
"""`score(images, prompts, rows)`; see `load`."""


class WrongAnswer(ValueError):
    """The function returned something other than one finite number or `None` for each sample."""


def load(name: str) -> Function:
    """The function `./file.py:name` or `package.module:name`. It is called as `score(images, prompts, rows)`.

    Raises:
        ValueError: there is none. Whatever importing its module raises.
    """
    home, _, attribute = name.rpartition(":")
    module = _from_file(Path(home)) if home.endswith(".py") else importlib.import_module(home)
    function: Function | None = vars(module).get(attribute)
    if function is None or not callable(function):
        raise ValueError(f"{home} has no function {attribute!r}")
    return function


def _from_file(path: Path) -> Any:
    """A module from a file, which may import what lies beside it."""
    path = path.resolve()
    name = re.sub(r"\W", "_", path.stem)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, "the name ends in .py"
    assert spec.loader is not None, "it is a file"
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    sys.modules.setdefault(name, module)
    spec.loader.exec_module(module)
    return module


def scorer(function: Function) -> Callable[[Sequence[Record]], list[Score]]:
    """What asks a function about samples as they came; what it raises is shown in full on stderr."""

    def score(records: Sequence[Record]) -> list[Score]:
        try:
            images = [_shown(record.media) for record in records]
            answer = function(images, [record.prompt for record in records], [_row(record) for record in records])
            return _checked(answer, len(records))
        except BaseException:
            traceback.print_exc()
            raise

    return score


def _row(record: Record) -> dict[str, Any]:
    """What belongs to a prompt: its columns, and its condition images as pictures."""
    return {
        "prompt": record.prompt,
        "negative_prompt": record.negative_prompt,
        "images": [Image.fromarray(image) for image in record.images],
        "metadata": dict(record.metadata),
    }


def _shown(media: np.ndarray) -> Any:
    """A picture, or the pictures of a video."""
    if media.dtype != np.uint8:
        media = np.rint(np.nan_to_num(media).clip(0, 1) * 255).astype(np.uint8)
    if media.ndim == 4:
        return [Image.fromarray(frame) for frame in media]
    return Image.fromarray(np.ascontiguousarray(media))


def _checked(answer: Any, count: int) -> list[Score]:
    if isinstance(answer, (Mapping, Set, str, bytes)):
        raise WrongAnswer(f"the function returned a {type(answer).__name__}, not a sequence of {count} scores")
    scores = list(islice(answer, count + 1))
    if len(scores) != count:
        had = f"more than {count}" if len(scores) > count else len(scores)
        raise WrongAnswer(f"the function returned {had} scores for {count} samples")
    return [_score(score) for score in scores]


def _score(score: Any) -> Score:
    """A number; or a total with named parts and words, from a dict `{"total": 0.7, "parts": {"colour": 0.9}}`."""
    if isinstance(score, Mapping):
        known = {"total", "parts"} <= set(score) <= {"total", "parts", "words"}
        if not known or not all(isinstance(value, Mapping) for name, value in score.items() if name != "total"):
            raise WrongAnswer(f"the function returned {repr(score)[:200]}, not a number nor a total with parts")
        parts = {str(name): None if part is None else _number(part) for name, part in score["parts"].items()}
        words = {str(name): str(text) for name, text in score.get("words", {}).items()}
        return {"total": _number(score["total"]), "parts": parts, **({"words": words} if words else {})}
    return None if score is None else _number(score)


def _number(score: Any) -> float:
    """A score as a float: of Python, numpy or torch."""
    try:
        value = math.nan if isinstance(score, (bool, np.bool_, str, bytes)) else float(score)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise WrongAnswer(f"the function returned {repr(score)[:200]}, not a finite number")
    return value
