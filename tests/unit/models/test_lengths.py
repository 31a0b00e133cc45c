"""Prompts that are longer than their encoder reads are counted, for every tokenizer of a pipeline."""

from __future__ import annotations

import pytest
import torch
from flowfactory.builtin import PipelineSpec
from flowfactory.contracts.types import Cut, Row
from flowfactory.models.pipeline import PipelineAdapter
from flowfactory.models.tiny import stable_diffusion_3
from flowfactory.training.encoding import say_cut

SHORT, LONG = "a cat", "a cat on a mat, " * 40 + "in the rain"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> PipelineAdapter[PipelineSpec]:
    folder = tmp_path_factory.mktemp("sd3")
    stable_diffusion_3().save_pretrained(folder)
    made = PipelineAdapter(PipelineSpec(path=str(folder), max_sequence_length=24))
    made.load(torch.device("cpu"), torch.float32)
    return made


def test_what_every_prompt_is_read_of_is_not_mentioned(adapter: PipelineAdapter[PipelineSpec]) -> None:
    assert adapter.cut([SHORT]) == []
    assert adapter.cut([]) == []


def test_every_tokenizer_counts_what_it_cuts(adapter: PipelineAdapter[PipelineSpec]) -> None:
    cuts = {cut.encoder: cut for cut in adapter.cut([SHORT, LONG, "a dog"])}
    assert set(cuts) == {"tokenizer", "tokenizer_2", "tokenizer_3"}
    for name, cut in cuts.items():
        tokenizer = getattr(adapter.pipe, name)
        read = tokenizer(LONG, truncation=True, max_length=24 if name == "tokenizer_3" else 77)["input_ids"]
        whole = tokenizer(LONG)["input_ids"]
        special = len(whole) - len(tokenizer(LONG, add_special_tokens=False)["input_ids"])
        assert (cut.count, cut.most, cut.longest) == (1, len(read) - special, len(whole) - special)
        assert cut.rest.replace(" ", "").endswith("rain")


def test_a_prompt_that_just_fits_is_whole(adapter: PipelineAdapter[PipelineSpec]) -> None:
    most = {cut.encoder: cut.most for cut in adapter.cut([LONG])}["tokenizer_3"]
    tokenizer, texts = adapter.pipe.tokenizer_3, [LONG[:n] for n in range(200)]
    tokens = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    fits = max((text for text, count in zip(texts, tokens, strict=True) if count <= most), key=len)
    exceeds = LONG[: len(fits) + 1]
    assert adapter.cut([fits]) == []
    assert [cut.encoder for cut in adapter.cut([exceeds])] == ["tokenizer_3"]


def test_watching_changes_nothing(adapter: PipelineAdapter[PipelineSpec]) -> None:
    before = adapter.encode([Row(LONG)])
    adapter.cut([LONG])
    after = adapter.encode([Row(LONG)])
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_it_is_said_once_for_each_encoder() -> None:
    class Said:
        def __init__(self) -> None:
            self.lines: list[str] = []

        def say(self, text: str) -> None:
            self.lines.append(text)

    class Fixed:
        def cut(self, prompts: list[str]) -> list[Cut]:
            assert prompts == ["one", "blurry", "two"]  # negative ones too, each once
            return [Cut("tokenizer", 75, 2, 120, "w" * 100)]

    rows = [Row("one", negative_prompt="blurry"), Row("two", negative_prompt="blurry"), Row("one")]
    say_cut(Fixed(), rows, said := Said())  # type: ignore[arg-type]
    (line,) = said.lines
    assert line.startswith("2 of 3 prompts have more than the 75 tokens that `tokenizer` keeps, the longest 120;")
