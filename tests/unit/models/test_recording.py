"""What pipelines' encode methods return, through `Conditions` and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flowfactory.models.recording import (
    SEEN,
    SHAPES,
    Recorder,
    Replay,
    as_one_row,
    flatten,
    nothing,
    of_one_kind,
    one_row_a_call,
    suffixes,
)
from PIL import Image


def returned(lengths: list[int]) -> tuple[Any, ...]:
    """One of each kind for prompts of these lengths: batched, no batch axis, a list per sample, nothing, nested."""
    longest = max(lengths)
    batched = torch.stack([torch.full((longest, 2), float(n)) for n in lengths])
    each = [torch.full((n, 3), float(n)) for n in lengths]
    return batched, torch.arange(6).reshape(3, 2), each, None, (batched + 1, [batched + 2, None])


def conditions_of(length: int) -> dict[str, torch.Tensor]:
    one, two = [("encode_prompt", returned([length]))], [("encode_prompt", returned([length, length]))]
    return flatten(one, suffixes(one, two))


def test_names_say_how_a_value_meets_the_batch():
    assert {name: tuple(tensor.shape) for name, tensor in conditions_of(4).items()} == {
        "encode_prompt.0.0": (1, 4, 2),
        "encode_prompt.0.1:shared": (1, 3, 2),
        "encode_prompt.0.2:each": (1, 4, 3),
        "encode_prompt.0.3:none": (1, 0),
        "encode_prompt.0.4.0": (1, 4, 2),
        "encode_prompt.0.4.1.0": (1, 4, 2),
        "encode_prompt.0.4.1.1:none": (1, 0),
        SHAPES: (1, 12),
    }


def test_replay_returns_what_was_recorded_for_a_batch():
    one = conditions_of(4)
    batch = {name: torch.cat([tensor, tensor]) for name, tensor in one.items()}
    batched, shared, each, nothing, (nested, (inner, absent)) = Replay(batch).method("encode_prompt")()
    expected = returned([4, 4])
    assert torch.equal(batched, expected[0])
    assert torch.equal(shared, expected[1])
    assert isinstance(each, list)
    assert all(torch.equal(a, b) for a, b in zip(each, expected[2], strict=True))
    assert nothing is absent is None
    assert torch.equal(nested, expected[4][0])
    assert torch.equal(inner, expected[4][1][0])


def test_replay_removes_the_padding():
    padded = {
        name: torch.nn.functional.pad(tensor, (0, 0, 0, 5)) if tensor.dim() == 3 else tensor
        for name, tensor in conditions_of(4).items()
    }
    assert Replay(padded).method("encode_prompt")()[0].shape == (1, 4, 2)


def test_calls_are_replayed_in_order_and_no_oftener():
    calls = [("encode_prompt", torch.zeros(1, 2)), ("encode_prompt", torch.ones(1, 2))]
    twice = [("encode_prompt", torch.zeros(2, 2)), ("encode_prompt", torch.ones(2, 2))]
    method = Replay(flatten(calls, suffixes(calls, twice))).method("encode_prompt")
    assert method().sum() == 0
    assert method("any", argument=1).sum() == 2
    with pytest.raises(ValueError, match="calls encode_prompt oftener than when the prompts were encoded"):
        method()


def test_only_outermost_calls_are_recorded():
    recorder = Recorder()
    inner = recorder.around("_encode_one", lambda: torch.zeros(1))
    outer = recorder.around("encode_all", lambda: inner() + 1)
    outer()
    assert [name for name, _ in recorder.calls] == ["encode_all"]


@pytest.mark.parametrize(
    ("one", "two", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(4, 3), r"encode_prompt.0 is \(2, 3\) for one prompt and \(4, 3\) for two"),
        ("text", "text", "encode_prompt.0 is of str, which cannot be kept as tensors"),
    ],
)
def test_what_cannot_be_kept_is_refused(one, two, message):
    with pytest.raises(ValueError, match=message):
        suffixes([("encode_prompt", one)], [("encode_prompt", two)])


def test_calls_that_depend_on_the_batch_are_refused():
    one = [("_encode_vae_image", torch.zeros(1, 3))]
    with pytest.raises(ValueError, match="encodes one prompt by 1 calls and two by 2"):
        suffixes(one, one * 2)


def test_images_have_the_size_in_which_they_were_encoded():
    recorder = Recorder()
    encode = recorder.around("encode_prompt", lambda images: torch.zeros(1, 2))
    encode([Image.new("RGB", (6, 4))])
    (seen,) = recorder.seen
    calls = [(SEEN, torch.empty(1, seen.height, seen.width, 0)), *recorder.calls]
    conditions = flatten(calls, as_one_row(calls))
    assert Replay(conditions).method("encode_prompt")(images=[seen]).shape == (1, 2)
    with pytest.raises(ValueError, match="4x4 now, and 4x6 when the prompt was encoded"):
        Replay(conditions).method("encode_prompt")(images=[Image.new("RGB", (4, 4))])


def test_lists_of_lists_are_kept_as_those_of_one_row():
    """As Z-Image-Omni encodes prompts."""
    calls = [("encode_prompt", ([[torch.ones(3, 2)]], [[torch.zeros(4, 2)]]))]
    conditions = flatten(calls, as_one_row(calls))
    assert one_row_a_call(conditions)
    prompt, negative = Replay(conditions).method("encode_prompt")()
    assert ([tuple(t.shape) for t in prompt[0]], [tuple(t.shape) for t in negative[0]]) == ([(3, 2)], [(4, 2)])


def test_what_is_nothing_in_some_rows_joins_what_it_is_in_others():
    """As a mask is left out where nothing is masked."""
    with_mask = [("encode_prompt", (torch.ones(1, 3, 2), torch.ones(1, 3)))]
    without = [("encode_prompt", (torch.ones(1, 4, 2), None))]
    rows = [flatten(calls, suffixes(calls, twice(calls))) for calls in (with_mask, without)]
    assert nothing(without) == ("encode_prompt.0.1",)
    one, other = of_one_kind(rows)
    assert one.keys() == other.keys() == {"encode_prompt.0.0", "encode_prompt.0.1", SHAPES}
    assert one[SHAPES].tolist() == [[3, 2, 3]]
    assert other[SHAPES].tolist() == [[4, 2, 0]]
    assert Replay(other).method("encode_prompt")()[1] is None
    assert torch.equal(Replay(one).method("encode_prompt")()[1], torch.ones(1, 3))


def twice(calls):
    return [(name, tuple(None if v is None else torch.cat([v, v]) for v in values)) for name, values in calls]
