"""The reward against a real HTTP server that speaks the chat completions protocol, right and misbehaving."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flowfactory import Composite, SecretError, ServerError
from flowfactory.contracts.types import Row, Sample
from flowfactory.discovery.registry import Registry
from flowfactory.rewards.scoring import Judge as Rewards
from flowfactory.spec.structure import load_spec
from flowfactory.spec.tables import RewardEntry
from flowfactory.testing import conformance
from flowfactory_plugin_judge import Aspect, JudgeSpec
from flowfactory_plugin_judge.chat import LEAST, First
from flowfactory_plugin_judge.judge import Judge, last_number
from PIL import Image
from servers import Chat, Raw, Reply, answer, brightness, question, serving, titles

Serve = Callable[[Reply], Chat]


serve = pytest.fixture(serving)


def bright(request: dict[str, Any], number: int) -> tuple[int, str]:
    """Grades brightness from 0 to 10."""
    return 200, f"It is so bright.\n{brightness(request)[-1] / 25.5:.2f}"


def lit(request: dict[str, Any], number: int) -> tuple[int, dict[str, float]]:
    """Says yes as likely as the last picture is bright."""
    p = brightness(request)[-1] / 255
    return 200, {" Yes": 0.75 * p, "yes": 0.25 * p, "No": 1 - p}


def samples(*levels: float, prompt: str = "a bright room", **row: Any) -> list[Sample]:
    return [Sample(Row(prompt, **row), torch.full((3, 8, 8), level), 0, i) for i, level in enumerate(levels)]


def reward(url: str, **keys: Any) -> Judge:
    made = Judge(JudgeSpec(url=url, model="judge", **{"pause": 0.0, **keys}))
    made.load(torch.device("cpu"), torch.float32, lambda key, factory: factory())
    return made


def test_a_number_is_the_score_on_its_scale(serve: Serve) -> None:
    server = serve(bright)
    assert reward(server.url).score(samples(0.2, 1.0, 0.0)) == pytest.approx([0.2, 1.0, 0.0])
    assert reward(server.url, lowest=-10).score(samples(0.2)) == pytest.approx([0.6])
    asked = question(server.requests[0])
    assert asked.startswith("The image was made for this prompt:\na bright room")
    assert asked.endswith("holds nothing but a number from 0 (worst) to 10 (best).")
    assert {(r["model"], r["max_tokens"], r["temperature"]) for r in server.requests} == {("judge", 512, 0.0)}


def test_the_probability_of_yes_is_the_score_and_one_token_is_asked_for(serve: Serve) -> None:
    server = serve(lit)
    assert reward(server.url, answer="yes").score(samples(0.4, 0.8)) == pytest.approx([0.4, 0.8])
    request = server.requests[0]
    assert (request["max_tokens"], request["logprobs"], request["top_logprobs"]) == (1, True, 20)
    assert question(request).endswith("Answer with one word, yes or no.")


def test_aspects_are_parts_and_their_weighted_mean_the_score(serve: Serve) -> None:
    def graded(request: dict[str, Any], number: int) -> tuple[int, str]:
        return 200, "Red enough.\n9" if "colour of a car?" in question(request) else "One is missing.\n3"

    aspects = (
        Aspect(name="colour", question="The colour of {prompt}?", weight=3.0),
        Aspect(name="count", question="How many?"),
    )
    (score,) = reward(serve(graded).url, aspects=aspects).score(samples(0.5, prompt="a car"))
    assert isinstance(score, Composite)
    assert score == pytest.approx((3 * 0.9 + 0.3) / 4)
    assert score.parts == {"colour": 0.9, "count": 0.3}
    assert score.words == {"colour": "Red enough.\n9", "count": "One is missing.\n3"}


def test_an_edit_is_shown_with_what_it_was_made_of(serve: Serve, tmp_path: Path) -> None:
    paths = (tmp_path / "a.png", tmp_path / "b.png")
    for path, level in zip(paths, (51, 102), strict=True):
        Image.new("RGB", (4, 4), (level, level, level)).save(path)
    server = serve(bright)
    assert reward(server.url).score(samples(0.8, images=paths)) == pytest.approx([0.8])
    assert brightness(server.requests[0]) == [51, 102, 204]
    assert titles(server.requests[0]) == ["Given image 1:", "Given image 2:", "The image that was made of it:"]


def test_a_video_is_shown_as_frames(serve: Serve) -> None:
    server = serve(bright)
    video = torch.linspace(0, 1, 6)[:, None, None, None].expand(6, 3, 4, 4)
    reward(server.url, frames=3).score([Sample(Row("dawn"), video, 0, 0)])
    assert brightness(server.requests[0]) == pytest.approx([0, 102, 204])
    assert titles(server.requests[0]) == ["The video, as frames in order:"]


@pytest.mark.parametrize(
    ("reply", "number"),
    [
        ("8", 8.0),
        ("Fine.\n\n**7.5**", 7.5),
        ("Score: 8/10", 8.0),
        ("rating: 3 / 5.", 3.0),
        ("-0.5", -0.5),
        (".5", 0.5),
        ("8\nThat is all.", None),
        ("between 7 and 8", None),
        ("1e9", None),
        ("nan", None),
        ("", None),
    ],
)
def test_only_a_last_line_that_is_a_number_is_one(reply: str, number: float | None) -> None:
    assert last_number(reply) == number


@pytest.mark.parametrize("odd", ["who knows", "11", "-1", "ten"])
def test_a_sample_without_an_answer_has_no_score_and_too_many_are_a_failure(serve: Serve, odd: str) -> None:
    def sometimes(request: dict[str, Any], number: int) -> tuple[int, str]:
        return (200, odd) if brightness(request)[0] == 0 else bright(request, number)

    server = serve(sometimes)
    assert reward(server.url).score(samples(0.0, 0.2, 0.4, 0.6)) == pytest.approx([None, 0.2, 0.4, 0.6])
    with pytest.raises(ServerError, match=f"2 of 4 samples have no clear answer of judge; one was '{odd}'"):
        reward(server.url).score(samples(0.0, 0.0, 0.4, 0.6))


def test_an_answer_that_was_not_likely_is_less_likely_than_those_that_were() -> None:
    assert First({"No": 0.9, "Nope": 0.06}).of(("yes",), ("no",)) == pytest.approx(0.04)
    assert First({"No": 0.9, "Maybe": 0.01}).of(("yes",), ("no",)) == pytest.approx(0.01)
    assert First({"No": 1.0}).of(("yes",), ("no",)) == LEAST
    assert First({"Ye": 0.5, "y": 0.2, "No": 0.3}).of(("yes",), ("no",)) == pytest.approx(0.5)
    assert First({"<think>": 1.0}).of(("yes",), ("no",)) is None


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (lambda request, number: (500, ""), "answered 500"),
        (lambda request, number: (401, ""), "answered 401"),
        (lambda request, number: (200, None), "answered no text"),
        (lambda request, number: (200, {"7": 1.0}), "no clear answer"),
    ],
)
def test_a_broken_judge_is_a_failure_and_never_a_score(serve: Serve, reply: Reply, said: str) -> None:
    with pytest.raises(ServerError, match=said):
        reward(serve(reply).url, attempts=2).score(samples(0.1, 0.9))


@pytest.mark.parametrize("said", ["yes", {}, {"<think>": 1.0}])
def test_a_judge_without_probabilities_is_a_failure(serve: Serve, said: Any) -> None:
    with pytest.raises(ServerError, match=r"no log-probabilities of tokens|no clear answer"):
        reward(serve(lambda request, number: (200, said)).url, answer="yes").score(samples(0.1, 0.9))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hello",
        b"[]",
        b'{"choices": []}',
        b'{"choices": [{"message": null}]}',
        b"[" * 100_000,
        b'{"choices": [7]}',
    ],
)
@pytest.mark.parametrize("how", ["number", "yes"])
def test_other_answers_are_no_completions(body: bytes, how: Any) -> None:
    with pytest.raises(ServerError, match="answered no "):
        reward(Raw(answer(body)).url, attempts=1, answer=how).score(samples(0.1))


def test_a_busy_server_is_asked_again_and_what_cannot_succeed_is_not(serve: Serve) -> None:
    server = serve(lambda request, number: (503, "") if number < 3 else bright(request, number))
    assert reward(server.url, concurrency=1).score(samples(0.2, 0.4)) == pytest.approx([0.2, 0.4])
    assert len(server.requests) == 3 + 2
    refusing = serve(lambda request, number: (400, ""))
    with pytest.raises(ServerError, match="answered 400"):
        reward(refusing.url, concurrency=1).score(samples(*[0.5] * 8))
    assert len(refusing.requests) <= 2


def test_a_slow_judge_times_out_and_a_dead_one_is_told(serve: Serve) -> None:
    def slow(request: dict[str, Any], number: int) -> tuple[int, str]:
        time.sleep(0.4)
        return 200, "5"

    with pytest.raises(ServerError, match="Timeout"):
        reward(serve(slow).url, attempts=1, request_timeout=0.1).score(samples(0.1))
    server = serve(bright)
    made = reward(server.url, attempts=1)
    made.reach()  # it lists no models
    server.listing = 401
    with pytest.raises(ServerError, match=r"/v1/models answered 401"):
        made.reach()
    server.close()
    with pytest.raises(ServerError, match="ConnectError"):
        made.score(samples(0.1))


def test_questions_run_side_by_side(serve: Serve) -> None:
    def slow(request: dict[str, Any], number: int) -> tuple[int, str]:
        time.sleep(0.05)
        return 200, "5"

    server = serve(slow)
    reward(server.url, concurrency=4).score(samples(*[0.5] * 8))
    assert 2 <= server.busiest <= 4


def test_the_api_key_goes_where_its_owner_says(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(bright)
    monkeypatch.setenv("JUDGE_KEY", "s3cret")
    with pytest.raises(SecretError, match=r"JUDGE_KEY is not sent to .*: JUDGE_KEY_URL must hold that address"):
        reward(server.url, key_variable="JUDGE_KEY")
    monkeypatch.setenv("JUDGE_KEY_URL", server.url)
    reward(server.url, key_variable="JUDGE_KEY").score(samples(0.1))
    assert set(server.tokens) == {"Bearer s3cret"}
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(ServerError, match="JUDGE_KEY is not set"):
        reward(server.url, key_variable="JUDGE_KEY")


def test_a_failing_judge_drops_groups_and_alters_no_other_score(serve: Serve) -> None:
    def fails(request: dict[str, Any], number: int) -> tuple[int, str]:
        return (500, "") if brightness(request)[0] == 0 else bright(request, number)

    spec = JudgeSpec(url=serve(fails).url, model="judge", attempts=1)
    entry = RewardEntry(name="judge", label="judge", spec=spec, on_error="drop-group", max_dropped=0.5)
    ours = Rewards([entry], {"judge": Registry().target("rewards", "judge")}, {})
    ours.load(torch.device("cpu"), torch.float32)
    with ours.session({"": 2}, overlap=False) as session:
        session.submit(samples(0.2, 0.4))
        session.submit([Sample(s.row, s.media, 1, s.replica) for s in samples(0.0, 0.4)])
        scored = session.finish()
    assert scored.values["judge"][:2].tolist() == pytest.approx([0.2, 0.4])
    assert scored.failed["judge"].tolist() == [False, False, True, True]
    assert scored.words[0] == {"judge/judge": "It is so bright.\n2.00"}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("lowest = 5\nhighest = 5", "expected a number above `lowest`, which is 5, not 5"),
        ('aspects = [{name = "a", question = "?"}, {name = "a", question = "!"}]', "two aspects are called 'a'"),
        ('aspects = [{name = "a b", question = "?"}]', "name"),
    ],
)
def test_a_wrong_table_is_refused_at_its_line(tmp_path: Path, keys: str, said: str) -> None:
    example = (Path(__file__).parents[1] / "examples" / "judge.toml").read_text()
    table = f'[[reward]]\nname = "judge"\nurl = "http://localhost"\nmodel = "m"\n{keys}\n'
    (tmp_path / "judge.toml").write_text(example[: example.index("[[reward]]")] + table)
    (tmp_path / "prompts.txt").write_text("a\n" * 8)
    with pytest.raises(Exception, match=said):
        load_spec(tmp_path / "judge.toml", Registry())


def test_the_example_is_a_sound_spec() -> None:
    spec = load_spec(Path(__file__).parents[1] / "examples" / "judge.toml", Registry())
    own = spec.rewards[0].spec
    assert isinstance(own, JudgeSpec)
    assert [aspect.name for aspect in own.aspects] == ["prompt", "anatomy", "light"]


def keys(folder: Path) -> dict[str, Any]:
    return {"url": Chat(bright).url, "model": "judge", "pause": 0.0}


test_conformance = conformance("flowfactory-plugin-judge", keys={"judge": keys})
