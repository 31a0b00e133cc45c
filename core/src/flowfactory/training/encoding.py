"""Loading a model, and encoding with it what is not kept from earlier: prompts, and what rows show."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from flowfactory.conditions.cache import ConditionCache, cache_folder, never
from flowfactory.conditions.identity import encoder_identity
from flowfactory.conditions.targets import encode_target, target_cache
from flowfactory.contracts.adapter import Adapter
from flowfactory.contracts.types import Row
from flowfactory.data.store import user_folder
from flowfactory.discovery.entries import Source as Distribution
from flowfactory.metrics.clock import Clock
from flowfactory.metrics.display import Display
from flowfactory.processes.distributed import DTYPES, Processes
from flowfactory.processes.stop import StopRequest
from flowfactory.spec.tables import Spec


def load_model(
    spec: Spec,
    adapter: Adapter[Any],
    source: Distribution,
    rows: Sequence[Row],
    device: torch.device,
    display: Display,
    clock: Clock,
    asking: AbstractContextManager[Callable[[], bool]] | None = None,
    first: Sequence[Row] | None = None,
) -> ConditionCache:
    """Load the model and encode what the cache lacks; where it lacks nothing, the encoders are not even read.

    Args:
        source: the distribution of the adapter: what another version has encoded is not used.
        asking: active while prompts are encoded; gives what says whether to stop. Then not all of them are there.
        first: which of the rows are encoded now, where the encoders stay for the others; see `encode_more`.
    """
    with display.phase("looking for encoded prompts"), clock("encode"):
        cache = ConditionCache(*_place(spec, adapter, source), rows, display.say)
        missing = cache.missing()
    with display.phase("loading the model"), clock("load"):
        adapter.load(device, DTYPES[spec.run.precision], None if missing else cache[rows[0]])
    _encode(adapter, cache, first, display, clock, asking or nullcontext(never))
    if missing:
        say_cut(adapter, rows, display)
    if first is None or not cache.missing():
        adapter.drop_encoders()
    return cache


def encode_more(
    spec: Spec,
    adapter: Adapter[Any],
    cache: ConditionCache,
    rows: Sequence[Row],
    device: torch.device,
    display: Display,
    clock: Clock,
    asking: AbstractContextManager[Callable[[], bool]],
) -> bool:
    """Encode what the cache lacks of some rows, by the encoders that `load_model` left; whether it still lacks others.

    After the last row, whoever has encoded it, the encoders go.
    """
    lacking = bool(cache.missing(rows))
    moves = lacking and "vae" in spec.memory.offload
    if moves:
        adapter.place(device)
    if lacking:
        _encode(adapter, cache, rows, display, clock, asking)
    left = bool(cache.missing())
    if not left:
        adapter.drop_encoders()
    if moves:
        adapter.place(torch.device("cpu"))
    return left


def _encode(
    adapter: Adapter[Any],
    cache: ConditionCache,
    rows: Sequence[Row] | None,
    display: Display,
    clock: Clock,
    asking: AbstractContextManager[Callable[[], bool]],
) -> None:
    count = len(cache.missing(rows))
    with (
        display.phase("encoding prompts", count, "prompts") as bar,
        clock("encode"),
        torch.no_grad(),
        asking as stopped,
    ):
        cache.fill(adapter.encode, bar.advance, stopped, rows)


def load_media(
    spec: Spec,
    adapter: Adapter[Any],
    source: Distribution,
    rows: Sequence[Row],
    display: Display,
    clock: Clock,
    asking: AbstractContextManager[Callable[[], bool]],
) -> ConditionCache:
    """Encode what rows show, as `load_model` does prompts; the model is loaded."""
    with clock("encode"), torch.no_grad():
        size = spec.sampling.size
        cache = target_cache(*_place(spec, adapter, source), rows, size, display.say)
        with display.phase("encoding media", len(cache.missing()), "rows") as bar, asking as stopped:
            cache.fill(lambda some: encode_target(adapter, some, size), bar.advance, stopped)
    return cache


def _place(spec: Spec, adapter: Adapter[Any], source: Distribution) -> tuple[Path, dict[str, Any]]:
    """The folder of all that is encoded, and the identity of an adapter's encoders."""
    folder = cache_folder(spec.memory.cache)
    memory = folder if spec.memory.cache else user_folder()
    return folder, encoder_identity(adapter, spec.run.precision, {source.name: source.version}, memory)


@contextmanager
def stoppable(stop: StopRequest | None, processes: Processes) -> Iterator[Callable[[], bool]]:
    """While active, a signal ends nothing by itself; says whether any process has had one."""
    if stop is None:
        yield never
        return
    with stop.deferred():
        yield lambda: stop.asked(processes)


def say_cut(adapter: Adapter[Any], rows: Sequence[Row], display: Display) -> None:
    """Say, once for each text encoder, which prompts are too long for it."""
    prompts = list(dict.fromkeys(text for row in rows for text in (row.prompt, row.negative_prompt) if text))
    for cut in adapter.cut(prompts):
        what = f"{cut.count} of {len(prompts)} prompts have more than the {cut.most} tokens that `{cut.encoder}` keeps"
        display.say(f"{what}, the longest {cut.longest}; the rest is not read, there: {_short(cut.rest)!r}")


def _short(text: str, most: int = 80) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
