"""How much of a prompt each text encoder of a pipeline reads: found out by watching its tokenizers, not assumed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diffusers import DiffusionPipeline
from transformers import PreTrainedTokenizerBase

from flowfactory.contracts.types import Cut

PROBE = "a photo"


def tokenizers(pipe: DiffusionPipeline) -> dict[str, Any]:
    """What cuts prompts into tokens, by name; one for each text encoder."""
    return {name: part for name, part in pipe.components.items() if isinstance(part, PreTrainedTokenizerBase)}


def cut(
    tokenizers: Mapping[str, Any], encode: Callable[[str, Mapping[str, Any]], None], prompts: Sequence[str]
) -> list[Cut]:
    """What is cut off of some prompts, by tokenizer; those that read every prompt to its end are left out.

    Args:
        encode: encodes a prompt, with stand-ins for the tokenizers.
    """
    found = []
    for name, tokenizer in tokenizers.items():
        notes: list[tuple[int, int]] = []
        encode(PROBE, {name: noting(tokenizer, notes)})
        if notes:
            length, most = notes[0]
            added = length - len(_tokens(tokenizer, PROBE))  # by the pipeline's template, and marks of the ends
            found.append(_cut(name, tokenizer, prompts, most - added))
    return [one for one in found if one.count]


def noting(tokenizer: Any, notes: list[tuple[int, int]]) -> Any:
    """A copy of `tokenizer` that notes, whenever it may cut a text off, how many tokens that has and may have."""
    noted, base = copy.copy(tokenizer), type(tokenizer)

    def call(self: Any, text: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("truncation"):
            whole = base.__call__(self, text if isinstance(text, str) else text[0])["input_ids"]
            notes.append((len(whole), kwargs.get("max_length") or self.model_max_length))
        return base.__call__(self, text, *args, **kwargs)

    noted.__class__ = type(base.__name__, (base,), {"__call__": call})
    return noted


def _cut(name: str, tokenizer: Any, prompts: Sequence[str], most: int) -> Cut:
    """The prompts with more than `most` tokens."""
    tokens = [_tokens(tokenizer, prompt) for prompt in prompts]
    long = max(tokens, key=len, default=[])
    count = sum(len(one) > most for one in tokens)
    return Cut(name, most, count, len(long), tokenizer.decode(long[most:]).strip())


def _tokens(tokenizer: Any, prompt: str) -> list[int]:
    """A prompt's tokens, without those that mark its ends."""
    return list(tokenizer(prompt, add_special_tokens=False)["input_ids"])
