"""Soft scores of questions, by a real HTTP server that tells probabilities, right and misbehaving."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flowfactory import Composite, ServerError
from flowfactory.contracts.types import Row, Sample
from flowfactory.data.rows import load_rows
from flowfactory.discovery.registry import Registry
from flowfactory.spec.structure import load_spec
from flowfactory.testing import conformance
from flowfactory_plugin_geneval import GenEvalSpec
from flowfactory_plugin_geneval.geneval import GenEval, answers, questions_of
from flowfactory_plugin_judge.chat import LEAST
from servers import Chat, Reply, brightness, question, serving

EXAMPLES = Path(__file__).parents[1] / "examples"
APPLES = {
    "vqa_list": [["How many apples?", "two"], ["Are they red?", "Yes"], ["Is there a bowl?", "No"]],
    "skills": ["count", "attribute", "object"],
}

Serve = Callable[[Reply], Chat]


serve = pytest.fixture(serving)


def knows(request: dict[str, Any], number: int) -> tuple[int, dict[str, float]]:
    """Two apples, probably red, and perhaps a bowl."""
    asked = question(request)
    if asked.startswith("How many"):
        return 200, {"two": 0.5, "2": 0.3, "three": 0.2}
    return 200, {"Yes": 0.9, "No": 0.1} if "red" in asked else {"Yes": 0.6, "No": 0.2, " no": 0.2}


def lit(request: dict[str, Any], number: int) -> tuple[int, dict[str, float]]:
    """Answers by brightness whatever is asked."""
    p = brightness(request)[0] / 255 / 2
    return 200, {"yes": p, "two": p, "no": 1 - 2 * p}


def sample(metadata: Any = APPLES) -> Sample:
    return Sample(Row("two red apples, no bowl", metadata=metadata), torch.full((3, 8, 8), 0.5), 0, 0)


def reward(url: str, **keys: Any) -> GenEval:
    made = GenEval(GenEvalSpec(url=url, model="judge", **{"pause": 0.0, "attempts": 1, **keys}))
    made.load(torch.device("cpu"), torch.float32, lambda key, factory: factory())
    return made


@pytest.mark.parametrize(
    ("mean", "expected"), [("geometric", (0.8 * 0.9 * 0.4) ** (1 / 3)), ("arithmetic", (0.8 + 0.9 + 0.4) / 3)]
)
def test_the_score_is_the_mean_of_the_right_answers_probabilities(serve: Serve, mean: str, expected: float) -> None:
    server = serve(knows)
    (score,) = reward(server.url, mean=mean).score([sample()])
    assert isinstance(score, Composite)
    assert score == pytest.approx(expected)
    assert score.parts == pytest.approx({"count": 0.8, "attribute": 0.9, "object": 0.4})
    assert score.words["questions"].splitlines()[0] == "How many apples? two: 0.800"
    assert {question(r) for r in server.requests} == {f"{text} Answer in one word." for text, _ in APPLES["vqa_list"]}
    assert all(request["max_tokens"] == 1 for request in server.requests)


def test_a_skill_with_several_questions_has_their_arithmetic_mean(serve: Serve) -> None:
    (score,) = reward(serve(knows).url).score([sample(APPLES | {"skills": ["a", "a", "b"]})])
    assert isinstance(score, Composite)
    assert score.parts == pytest.approx({"a": 0.85, "b": 0.4})
    (bare,) = reward(serve(knows).url).score([sample({"vqa_list": APPLES["vqa_list"]})])
    assert isinstance(bare, Composite)
    assert (bare.parts, float(bare)) == ({}, float(score))


def test_what_cannot_be_seen_pulls_the_geometric_mean_down(serve: Serve) -> None:
    def sure(request: dict[str, Any], number: int) -> tuple[int, dict[str, float]]:
        return (200, {"five": 1.0}) if "How many" in question(request) else (200, {"Yes": 1.0})

    metadata = {"vqa_list": [["How many apples?", "two"], ["Are they red?", "Yes"]]}
    assert reward(serve(sure).url).score([sample(metadata)]) == pytest.approx([LEAST**0.5])
    assert reward(serve(sure).url, mean="arithmetic").score([sample(metadata)]) == pytest.approx([0.5], abs=1e-5)


def test_rows_without_questions_have_no_score_and_are_not_asked_about(serve: Serve) -> None:
    server = serve(knows)
    scores = reward(server.url).score([sample({}), sample(), sample({"vqa_list": []})])
    assert (scores[0], scores[2], len(server.requests)) == (None, None, 3)


@pytest.mark.parametrize(
    ("right", "wanted"),
    [
        ("Yes", ("yes",)),
        ("four", ("four", "4")),
        ("4", ("four", "4")),
        (" Twelve ", ("twelve", "12")),
        ("Red", ("red",)),
    ],
)
def test_what_a_right_answer_looks_like(right: str, wanted: tuple[str, ...]) -> None:
    assert answers(right)[0] == wanted


@pytest.mark.parametrize("odd", ["1", 7, [["a?"]], [["a?", 2]], [["a?", ""]], {"a?": "b"}])
def test_questions_written_otherwise_are_refused_in_words(odd: Any) -> None:
    with pytest.raises(ValueError, match=r"column `vqa_list` expects \[\[question, answer\], …\]"):
        questions_of({"vqa_list": odd})
    with pytest.raises(ValueError, match="column `skills` expects a skill for each of 3 questions"):
        questions_of(APPLES | {"skills": ["count"]})


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("Yes", "no log-probabilities"),
        ({"<think>": 1.0}, "none of the answers there are"),
        ({}, "no log-probabilities"),
    ],
)
def test_a_model_that_tells_no_probability_of_an_answer_is_a_failure(serve: Serve, said: Any, why: str) -> None:
    with pytest.raises(ServerError, match=why):
        reward(serve(lambda request, number: (200, said)).url).score([sample()])


@pytest.mark.parametrize("status", [400, 401, 500, 503])
def test_a_server_that_fails_is_a_failure(serve: Serve, status: int) -> None:
    with pytest.raises(ServerError, match=f"answered {status}"):
        reward(serve(lambda request, number: (status, "")).url).score([sample()])


def test_the_example_is_a_sound_spec_and_its_questions_are_in_order() -> None:
    assert isinstance(load_spec(EXAMPLES / "geneval.toml", Registry()).rewards[0].spec, GenEvalSpec)
    rows = load_rows(EXAMPLES / "prompts.jsonl")
    assert len(rows) == 8
    assert all(len(questions_of(row.metadata)) >= 4 for row in rows)


def keys(folder: Path) -> dict[str, Any]:
    return {"url": Chat(lit).url, "model": "judge", "pause": 0.0}


test_conformance = conformance("flowfactory-plugin-geneval", keys={"geneval": keys}, prompts=EXAMPLES / "prompts.jsonl")
