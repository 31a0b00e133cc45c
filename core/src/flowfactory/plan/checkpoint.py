"""A diffusers checkpoint before it is loaded: its models by their folders, and what is wrong with its files.

It lies in a folder, in the hub's cache, or on the hub, of which only configs and headers are fetched. No torch.
"""

from __future__ import annotations

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import attrs

from flowfactory.builtin import PipelineSpec
from flowfactory.contracts.specs import AdapterSpec
from flowfactory.data.refusals import Refusal, end_waiting, refusal
from flowfactory.plan import headers
from flowfactory.plan.headers import QUANT_STATE, Shape, Weights
from flowfactory.spec.holdings import INDEX

BLOCK = re.compile(r"\w+\.\d+\.")
"""How the names of weights begin in the blocks that a network repeats."""

FILE = re.compile(r"(?P<stem>\w+)(\.(?P<variant>\w+))?(-\d+-of-\d+)?(\.(?P<late>\w+))?\.(?P<kind>safetensors|bin)")
"""A file of weights; shards have the variant's name before or after their number."""

_WITHOUT_WEIGHTS = re.compile(r".*(Tokenizer|Processor|Extractor|Scheduler).*|Guider|.*Guidance")
"""Classes of parts that are not models."""

OTHERS = ("first_stage_model.", "cond_stage_model.", "conditioner.", "text_encoders.", "vae.")
"""How the names of what is no network begin in a file that holds a whole model."""


@attrs.frozen
class Part:
    """One model of a checkpoint.

    shapes: of its floating-point weights by name. config: its own. packed: shapes of weights that are stored in fewer
    bits, where they are known. unknown: how many are of unknown shape. fixed: bytes of what is loaded as it is stored.
    """

    shapes: Mapping[str, Shape]
    config: Mapping[str, Any]
    packed: Mapping[str, Shape] = attrs.field(factory=dict)
    unknown: int = 0
    fixed: int = 0

    @property
    def quantized(self) -> str:
        """By what, if its weights are stored in fewer bits; empty if they are not."""
        table = self.config.get("quantization_config")
        return str(table.get("quant_method", "an unknown method")) if isinstance(table, Mapping) else ""

    @property
    def parameters(self) -> int:
        """How many numbers the weights are."""
        return sum(map(math.prod, [*self.shapes.values(), *self.packed.values()]))

    def bytes(self, size: int) -> int:
        """In memory, at `size` bytes for each number that is not stored in fewer bits."""
        return self.fixed + size * sum(map(math.prod, self.shapes.values()))

    def linear(self, inside_blocks: bool = False) -> dict[str, tuple[int, int]]:
        """Rows and columns of what linear layers multiply by, by layer; of convolutions, as matrices.

        Args:
            inside_blocks: only linear layers, and only those in the blocks the network repeats.
        """
        return {
            name.removesuffix(".weight"): (shape[0], math.prod(shape[1:]))
            for name, shape in [*self.shapes.items(), *self.packed.items()]
            if name.endswith(".weight")
            and (len(shape) == 2 and BLOCK.match(name) is not None if inside_blocks else len(shape) > 1)
        }

    def adapted(self, targets: Sequence[str]) -> list[tuple[int, int]]:
        """Rows and columns of the layers with these name endings, as peft finds them; of attention's when empty."""
        if targets:
            endings = tuple(f".{target}" for target in targets)
            return [shape for name, shape in self.linear().items() if f".{name}".endswith(endings)]
        return [
            shape
            for name, shape in self.linear().items()
            if any("attn" in above or "attention" in above for above in name.split(".")[:-1])
        ]


def part(read: Sequence[Weights], config: Mapping[str, Any]) -> Part:
    """A model from what its files hold."""
    tensors = {name: tensor for file in read for name, tensor in file.tensors.items()}
    shapes = {shaped: shape for file in read for shaped, shape in file.packed.items()}
    table = config.get("quantization_config")
    if not isinstance(table, Mapping) and not shapes:
        return Part({name: t.shape for name, t in tensors.items() if t.floating}, config)
    beside = {name: t for name, t in tensors.items() if not t.floating or t.format.startswith("F8") or _scale(name)}
    shapes |= {name: t.shape for name, t in beside.items() if t.format == "I8" and name not in shapes}
    unknown = [n for n, t in beside.items() if t.format == "U8" and n.endswith(".weight") and n not in shapes]
    own = {name: t.shape for name, t in tensors.items() if name not in beside}
    return Part(own, config, shapes, len(unknown), sum(t.bytes for t in beside.values()))


def _scale(name: str) -> bool:
    return (
        name.endswith((".absmax", ".SCB", ".quant_map", ".nested_absmax", ".nested_quant_map")) or QUANT_STATE in name
    )


T = TypeVar("T")


class Place(ABC):
    """Where a checkpoint lies. names: of its files."""

    names: Sequence[str]

    @abstractmethod
    def table(self, name: str) -> Mapping[str, Any]:
        """What a JSON file holds.

        Raises:
            ValueError: it cannot be read; the message does not name it.
        """

    @abstractmethod
    def weights(self, name: str) -> Weights:
        """What a file of weights holds.

        Raises:
            ValueError: it cannot be read; the message does not name it.
        """

    def models(self) -> list[str]:
        """The folders with weights in them, as `model_index.json` has them, or else as they lie there."""
        if INDEX not in self.names:
            return sorted({name.split("/")[0] for name in self.names if name.endswith("/config.json")})
        return [name for name, kind in parts_of(self.table(INDEX)).items() if not _WITHOUT_WEIGHTS.fullmatch(kind)]

    def files(self, folder: str, variant: str | None) -> list[str]:
        """The files of a model's weights that are read: those of the variant, or else those without one."""
        found: dict[str | None, list[str]] = {}
        for name in self.names:
            above, _, own = name.rpartition("/")
            match = FILE.fullmatch(own)
            if above == folder and match and match["kind"] == "safetensors":
                found.setdefault(match["variant"] or match["late"], []).append(name)
        return found.get(variant) or found.get(None) or []

    def read(self, folder: str, variant: str | None) -> Part | None:
        """One model; none where its weights are not safetensors.

        Raises:
            ValueError: naming the file that cannot be read.
        """
        files = self.files(folder, variant)
        if not files or f"{folder}/config.json" not in self.names:
            return None
        return part([said(name, self.weights, name) for name in files], said(f"{folder}/config.json", self.table))


def parts_of(index: Mapping[str, Any]) -> dict[str, str]:
    """The class of each part that a pipeline has by its `model_index.json`, which has plain values and lists, too."""
    pairs = {name: what for name, what in index.items() if isinstance(what, list) and len(what) == 2}
    return {name: kind for name, (_, kind) in pairs.items() if isinstance(kind, str)}


def said(name: str, read: Any, *arguments: str) -> Any:
    """What `read` returns; what it raises begins with the name of the file."""
    try:
        return read(*(arguments or (name,)))
    except (ValueError, OSError) as error:
        raise ValueError(f"{name} {error}") from error


class Folder(Place):
    """On this disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names = sorted(str(file.relative_to(path)) for file in path.glob("*/*") if file.is_file())
        self.names += [file.name for file in path.iterdir() if file.is_file()]

    def table(self, name: str) -> Mapping[str, Any]:
        try:
            text = (self.path / name).read_bytes()
            if text.startswith(headers.POINTER):
                raise ValueError("is a pointer of git-lfs, not the file it stands for; run `git lfs pull` there")
            table = json.loads(text)
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"is no JSON: {error}") from error
        if not isinstance(table, dict):
            raise ValueError("is not a table of JSON")
        return table

    def weights(self, name: str) -> Weights:
        return headers.weights(self.path / name)


def on_disk(own: AdapterSpec) -> Folder | None:
    """Where a checkpoint lies: its folder, or the hub's cache; `None` for one that was not downloaded."""
    if Path(own.path).is_dir():
        return Folder(Path(own.path))
    if Path(own.path).is_absolute():
        return None
    from huggingface_hub import try_to_load_from_cache  # takes a sixth of a second

    found = try_to_load_from_cache(own.path, INDEX, revision=own.revision)
    return Folder(Path(found).parent) if isinstance(found, str) else None


class Hub(Place):
    """On the hub: configs are downloaded, and of weights the headers are looked at."""

    def __init__(self, own: AdapterSpec) -> None:
        from huggingface_hub import HfApi

        end_waiting()
        self._hub, self._own = HfApi(), own
        facts = self._hub.model_info(own.path, revision=own.revision, timeout=10)
        self.names = [file.rfilename for file in facts.siblings or ()]

    def table(self, name: str) -> Mapping[str, Any]:
        file = Path(self._hub.hf_hub_download(self._own.path, name, revision=self._own.revision))
        return Folder(file.parents[name.count("/")]).table(name)

    def weights(self, name: str) -> Weights:
        from huggingface_hub.errors import SafetensorsParsingError

        try:
            read = self._hub.parse_safetensors_file_metadata(self._own.path, name, revision=self._own.revision)
        except SafetensorsParsingError as error:
            raise ValueError("is no safetensors file: its header is not one") from error
        header = {name: {"dtype": t.dtype, "shape": t.shape} for name, t in read.tensors.items()}
        return Weights(headers.of_header(header))


def on_the_hub(own: AdapterSpec, ask: Callable[[Hub], T]) -> T | Refusal:
    """What is asked of a checkpoint's place on the hub, or why the hub does not give it.

    Raises:
        ValueError: naming a file of it that cannot be read.
    """
    try:
        hub = Hub(own)
        hub.table(INDEX)  # what anybody may list, not everybody may read
        return ask(hub)
    except Exception as error:  # of whatever library the connection is made with
        if refused := refusal(error, own.path, own.revision):
            return refused
        raise


def parts(place: Place, own: AdapterSpec, known: Mapping[str, Part] | None = None) -> dict[str, Part]:
    """The models of a checkpoint by their folders' names; without those whose weights are not safetensors.

    Args:
        known: models from elsewhere, where the checkpoint has no such weights.

    Raises:
        ValueError: naming the file that cannot be read.
    """
    pipeline = own if isinstance(own, PipelineSpec) else None
    variant = pipeline.variant if pipeline else None
    found = {**(known or {})}
    found |= {name: part for name in place.models() if (part := place.read(name, variant)) is not None}
    if pipeline and pipeline.single_file:
        for name in [name for name in place.models() if own.trains(name)]:
            config = said(f"{name}/config.json", place.table) if f"{name}/config.json" in place.names else {}
            found[name] = from_file(pipeline.single_file, found.get(name), config)
    return found


def from_file(file: str, published: Part | None, config: Mapping[str, Any]) -> Part:
    """A network whose weights are in one file, under names that are not diffusers'.

    Args:
        published: the same network where the pipeline is, which says how its layers are called and how large they are.
    """
    read = headers.weights(Path(file)).tensors
    own = {name: t for name, t in read.items() if not name.startswith(OTHERS)}
    if file.endswith(".gguf"):
        shapes = dict(published.shapes) if published else {name: t.shape for name, t in own.items()}
        return Part({}, config, shapes, 0 if published else len(own), sum(t.bytes for t in own.values()))
    if published:
        return attrs.evolve(published, config=config)
    return Part({name: t.shape for name, t in own.items() if t.floating}, config, unknown=len(own))
