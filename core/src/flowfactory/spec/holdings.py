"""What lies where weights are to be read from: LoRA or whole networks, told by names and headers. Imports no torch.

A location is a safetensors file, a folder as peft, diffusers or an export writes it, a run's folder or one of its
checkpoints, or a hub id.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import attrs

from flowfactory.builtin import PipelineSpec
from flowfactory.contracts.key import Function, Location, Size
from flowfactory.contracts.specs import AdapterSpec, Needs
from flowfactory.errors import Place, Problem, listed, shown
from flowfactory.spec.kinds import arms_of, attributes, hints, keys, plain, sound
from flowfactory.spec.tables import Component, Full, Lora, Tuning

Shape = tuple[int, ...]

LORA_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
"""As diffusers and peft call LoRA in a folder."""
DOWN = (".lora_A.weight", ".lora_A.default.weight", ".lora_down.weight", ".lora.down.weight", "_lora.down.weight")
"""How the names end of what maps to the rank: in peft and diffusers, in checkpoints of runs, in kohya, in old files."""
INDEX, PLAN = "model_index.json", "plan.json"
"""What names the parts of a pipeline, and what the folder of a run has."""
EXPECTED = "expected LoRA, a pipeline, a network or a run"
_FACTOR = re.compile(r"[._]lora([._](A|B|down|up)\b|_embedding_)|\.lo(kr|ha)_|\.hada_")
_WEIGHTS = re.compile(r"\w+(-\d+-of-\d+)?\.safetensors")


@attrs.frozen
class Holding:
    """What a location holds.

    kind: "lora"; or whole weights, of one "network" or of a "pipeline".
    files: by network, "" for the first one; in a pipeline or a network, all the files of each.
    """

    location: str
    kind: Literal["lora", "network", "pipeline"]
    files: Mapping[str, tuple[Path, ...]]

    @property
    def ranks(self) -> frozenset[int]:
        """The ranks of a LoRA."""
        shapes = (pair for files in self.files.values() for file in files for pair in header(file)[0].items())
        return frozenset(shape[0] for name, shape in shapes if name.endswith(DOWN))

    @property
    def parameters(self) -> int:
        """How many numbers a LoRA is."""
        shapes = [shape for files in self.files.values() for file in files for shape in header(file)[0].values()]
        return sum(map(math.prod, shapes))


def find(location: str) -> Holding | None:
    """What a location holds; `None` for a hub id that is not on this disk.

    Raises:
        ValueError: no weights are there that could be read.
    """
    path = standing_for(Path(location)) if Path(location).is_absolute() else _downloaded(location)
    if path is None:
        return None
    if (path / PLAN).is_file():
        raise ValueError(f"the run {shown(path)} has no checkpoint")
    if path.is_file():
        return Holding(location, "lora" if _is_lora(path) else "network", {"": (path,)})
    if (path / "model_index.json").is_file():
        folders = [folder for folder in sorted(path.iterdir()) if folder.name.startswith("transformer")]
        return Holding(location, "pipeline", {folder.name: _weights(folder) for folder in folders if folder.is_dir()})
    if found := _lora_folder(path):
        return Holding(location, "lora", found)
    if (path / "config.json").is_file() and (files := _weights(path)):
        return Holding(location, "network", {"": files})
    raise ValueError(f"{_words(location)} has no LoRA, no pipeline and no network in it")


def standing_for(path: Path) -> Path:
    """The file that is meant by the folder of a run or of a checkpoint; any other path means itself.

    Of a run it is the last checkpoint, and in that the averaged weights, or the current ones where there are none.
    """
    if (path / PLAN).is_file():
        numbered = {int(p.name[6:]): p for p in path.glob("checkpoints/epoch-*") if p.name[6:].isdecimal()}
        path = numbered[max(numbered)] if numbered else path
    sets = [file for name in ("ema", "current") if (file := path / f"{name}.safetensors").is_file()]
    return sets[0] if sets and (path / "state.json").is_file() else path


def header(file: Path) -> tuple[dict[str, Shape], dict[str, str]]:
    """The shapes in a safetensors file by name, and its metadata.

    Raises:
        ValueError: it is none.
    """
    try:
        with file.open("rb") as opened:
            read: dict[str, Any] = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        metadata = read.pop("__metadata__", {})
        return {name: tuple(facts["shape"]) for name, facts in read.items()}, metadata
    except (OSError, ValueError, OverflowError, MemoryError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{shown(file)} is no safetensors file") from error


def lora_problems(where: Callable[..., Place], tuning: Lora) -> Iterator[Problem]:
    """What is wrong with the LoRA to begin with."""
    wrong = [*_start_problems(where, "lora", tuning)]
    yield from wrong
    found = None if wrong or tuning.from_ is None else find(tuning.from_)
    if found is None:
        return
    if found.kind != "lora":
        what = "[lora] from: these are whole weights, not LoRA"
        yield Problem("from", what, where("lora", "from"), "make them the model's, or train [full]")
    elif tuning.rank is not None and tuning.rank not in found.ranks:
        ranks = " and ".join(map(str, sorted(found.ranks)))
        what = f"[lora] rank is {tuning.rank}, but `from` decides it, and has {ranks}"
        yield Problem("from", what, where("lora", "rank"), "leave it out")


def full_problems(where: Callable[..., Place], tuning: Full) -> Iterator[Problem]:
    """What is wrong with the weights to begin with."""
    return _start_problems(where, "full", tuning)


def _start_problems(where: Callable[..., Place], table: str, tuning: Tuning) -> Iterator[Problem]:
    try:
        if tuning.from_ is not None:
            find(tuning.from_)
        elif tuning.reference is not None:
            what = f"[{table}] reference has no meaning without `from`: the model is both the start and the base"
            yield Problem("from", what, where(table, "reference"), "leave it out")
    except ValueError as error:
        yield Problem("from", f"[{table}] from: {error}", where(table, "from"), EXPECTED)


def loaded_problems(where: Callable[..., Place], trainer: Component, needs: Needs) -> Iterator[Problem]:
    """What is wrong with the weights a trainer reads from elsewhere."""
    taken = {"current", "reference", "ema", "default", *needs.sets, *needs.roles}
    for name, location in needs.loaded.items():
        if not name.isidentifier() or name in taken:
            what, hint = "the name is no word or already taken", "only its author can change that"
            yield _loaded(where, trainer, name, location, what, hint)
        try:
            find(location)
        except ValueError as error:
            yield _loaded(where, trainer, name, location, str(error), EXPECTED)


def loaded_whole(
    where: Callable[..., Place], trainer: Component, needs: Needs, model: AdapterSpec
) -> Iterator[Problem]:
    """Whole weights cannot be read in the place of others that are in fewer bits."""
    quantized = isinstance(model, PipelineSpec) and model.quantize is not None
    for name, location in needs.loaded.items() if quantized else ():
        with suppress(ValueError):
            found = find(location)
            if found is not None and found.kind != "lora":
                what = "whole weights cannot replace those of [model] quantize"
                yield _loaded(where, trainer, name, location, what, "leave that out, or use a LoRA")


def _loaded(where: Callable[..., Place], trainer: Component, name: str, location: str, what: str, hint: str) -> Problem:
    written = _address(trainer.spec, location) or ("name",)
    said = f"trainer `{trainer.name}`, weights `{name}`: {what}"
    return Problem("loaded", said, where("trainer", *written), hint)


def _address(value: Any, location: str) -> tuple[str | int, ...] | None:
    """Where in a table a location is written: the keys and numbers on the way to it."""
    if isinstance(value, str) and value == location:
        return ()
    inner: Mapping[str | int, Any] = {}
    if attrs.has(type(value)):
        inner = dict(sound(value).items())
    elif isinstance(value, tuple):
        inner = dict(enumerate(value))
    found = ((key, _address(item, location)) for key, item in inner.items())
    return next(((key, *rest) for key, rest in found if rest is not None), None)


def _is_lora(file: Path) -> bool:
    return any(_FACTOR.search(name) for name in header(file)[0])


def _lora_folder(path: Path) -> dict[str, tuple[Path, ...]]:
    """The LoRA files of a folder: that of the first network, and those of others in folders of their names."""
    places = {"": path, **{folder.name: folder for folder in sorted(path.glob("transformer*")) if folder.is_dir()}}
    found = {name: _lora_file(folder) for name, folder in places.items()}
    return {name: (file,) for name, file in found.items() if file is not None}


def _lora_file(folder: Path) -> Path | None:
    named = [folder / name for name in LORA_FILES if (folder / name).is_file()]
    others = [file for file in sorted(folder.glob("*.safetensors")) if not named and _is_lora(file)]
    if len(others) > 1:
        raise ValueError(f"{shown(folder)} has several LoRA: {listed(file.name for file in others)}; name one of them")
    return next(iter([*named, *others]), None)


def _weights(folder: Path) -> tuple[Path, ...]:
    """The weights of a network: files without a variant's name."""
    return tuple(file for file in sorted(folder.glob("*.safetensors")) if _WEIGHTS.fullmatch(file.name))


def _downloaded(hub_id: str) -> Path | None:
    from huggingface_hub import snapshot_download  # takes a sixth of a second
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def _words(location: str) -> str:
    return shown(Path(location)) if Path(location).is_absolute() else location


# --- and what it is known by -----------------------------------------------------------------------------------------


def fingerprint(location: str) -> str:
    """A location's content: a hash for files and folders, a hub id as it is. A run counts by what it stands for.

    What is hidden in a folder is not of the model: systems, git and the hub's client leave it there. Nor is what
    lies beside the parts that a pipeline's index names: its card, pictures, weights for other programs.
    """
    path = Path(location)
    if not path.is_absolute():
        return location
    path = standing_for(path)
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    named = _named(path / INDEX)
    parts = [f"{p.relative_to(path)} {_sketch(p)}" for p in files if _counts(p.relative_to(path), named)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _named(index: Path) -> set[str]:
    """What is read of a pipeline's folder: its index and the parts that it names; empty where there is no index."""
    try:
        return {INDEX, *json.loads(index.read_text(encoding="utf-8"))}
    except (OSError, ValueError, RecursionError, TypeError):
        return set()


def _counts(path: Path, named: set[str]) -> bool:
    hidden = any(part.startswith(".") for part in path.parts)
    return not hidden and (not named or path.parts[0] in named)


def _sketch(path: Path, most: int = 1 << 16) -> str:
    """Size, beginning and end of a file: weights are too large to read for a plan, and differ at both ends."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(most)
        file.seek(max(size - most, 0))
        return f"{size} {hashlib.sha256(head + file.read(most)).hexdigest()}"


def by_content(table: Any) -> dict[str, Any]:
    """A table in which locations stand for their content, so that a moved file leaves the digest as it is."""
    types, own = hints(type(table)), attributes(table)
    return {
        name: _content(types[field.name], own[field.name])
        for name, field in keys(type(table)).items()
        if own[field.name] is not None
    }


def _content(kind: Any, value: Any) -> Any:
    arms = arms_of(kind)
    if isinstance(value, str) and Location in arms:
        return fingerprint(value)
    if isinstance(value, str) and Function in arms:
        home, _, function = value.rpartition(":")
        return [fingerprint(home), function]
    if attrs.has(type(value)) and type(value) in arms and not isinstance(value, Size):
        return by_content(value)
    for arm in arms:
        if isinstance(value, tuple) and get_origin(arm) is tuple and get_args(arm):
            each = get_args(arm)
            each = each[:1] * len(value) if each[-1] is Ellipsis else each
            return [_content(*pair) for pair in zip(each, value, strict=True)]
    return plain(value)
