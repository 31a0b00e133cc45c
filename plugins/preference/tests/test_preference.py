"""The reward against a real HTTP server that speaks the chat completions protocol."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flowfactory.contracts.types import Row, Sample
from flowfactory.discovery.registry import Registry
from flowfactory.rewards.secrets import SecretError
from flowfactory.rewards.server import ServerError
from flowfactory.spec.structure import load_spec
from flowfactory.testing import conformance
from flowfactory_plugin_preference import PreferenceSpec
from flowfactory_plugin_preference.preference import Preference
from servers import Chat, Reply, brightness, serving

serve = pytest.fixture(serving)


def brighter(request: dict[str, Any], number: int) -> tuple[int, str]:
    first, second = brightness(request)
    verdict = "tie" if first == second else "first" if first > second else "second"
    return 200, f"I compared them.\n{verdict}"


def group(*levels: float, prompt: str = "a bright room") -> list[Sample]:
    return [Sample(Row(prompt), torch.full((3, 8, 8), level), 0, i) for i, level in enumerate(levels)]


def reward(server: Chat, **keys: Any) -> Preference:
    made = Preference(PreferenceSpec(url=server.url, model="judge", **{"pause": 0.0, **keys}))
    made.load(torch.device("cpu"), torch.float32, lambda key, factory: factory())
    return made


def test_the_brighter_wins_more_often(serve: Callable[[Reply], Chat]) -> None:
    server = serve(brighter)
    assert reward(server).score(group(0.2, 0.8, 0.5, 0.5)) == [0.0, 1.0, 0.5, 0.5]
    assert len(server.requests) == 4 * 3


def test_each_pair_is_asked_in_both_orders_about_its_prompt(serve: Callable[[Reply], Chat]) -> None:
    server = serve(brighter)
    reward(server, max_tokens=77).score(group(0.2, 0.8, prompt="a lamp {here}"))
    assert sorted(brightness(request) for request in server.requests) == [[51.0, 204.0], [204.0, 51.0]]
    request = server.requests[0]
    assert (request["model"], request["max_tokens"], request["temperature"]) == ("judge", 77, 0.0)
    assert "a lamp {here}" in request["messages"][0]["content"][-1]["text"]


def test_a_judge_that_likes_the_first_place_prefers_nobody(serve: Callable[[Reply], Chat]) -> None:
    assert reward(serve(lambda request, number: (200, "first"))).score(group(0.1, 0.9, 0.4)) == [0.5] * 3


def test_a_busy_server_is_asked_again(serve: Callable[[Reply], Chat]) -> None:
    server = serve(lambda request, number: (503, "") if number < 3 else brighter(request, number))
    assert reward(server, concurrency=1, attempts=4).score(group(0.1, 0.9)) == [0.0, 1.0]
    assert len(server.requests) == 3 + 2


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (lambda request, number: (500, ""), "answered 500"),
        (lambda request, number: (401, ""), "answered 401"),
        (lambda request, number: (200, None), "answered no text"),
        (lambda request, number: (200, "who knows"), "2 of 2 replies of judge named no winner"),
    ],
)
def test_a_broken_judge_is_a_failure_and_never_a_score(serve: Callable[[Reply], Chat], reply: Reply, said: str) -> None:
    with pytest.raises(ServerError, match=said):
        reward(serve(reply), attempts=2).score(group(0.1, 0.9))


def test_what_cannot_succeed_is_not_tried_again(serve: Callable[[Reply], Chat]) -> None:
    server = serve(lambda request, number: (400, ""))
    with pytest.raises(ServerError, match="answered 400"):
        reward(server, concurrency=1).score(group(0.1, 0.9))
    assert len(server.requests) <= 2


def test_a_slow_judge_times_out(serve: Callable[[Reply], Chat]) -> None:
    def slow(request: dict[str, Any], number: int) -> tuple[int, str]:
        time.sleep(0.5)
        return 200, "tie"

    with pytest.raises(ServerError, match="Timeout"):
        reward(serve(slow), attempts=1, request_timeout=0.1).score(group(0.1, 0.9))


def test_a_dead_server_is_a_failure(serve: Callable[[Reply], Chat]) -> None:
    server = serve(brighter)
    made = reward(server, attempts=2)
    server.close()
    with pytest.raises(ServerError, match="ConnectError"):
        made.score(group(0.1, 0.9))


def test_the_judge_is_reached_before_it_is_asked(
    serve: Callable[[Reply], Chat], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(brighter)
    reward(server).reach()  # it lists no models
    server.listing = 401
    with pytest.raises(ServerError, match=r"/v1/models answered 401"):
        reward(server).reach()
    server.close()
    with pytest.raises(ServerError, match="ConnectError"):
        reward(server, attempts=2).reach()


def test_comparisons_run_side_by_side(serve: Callable[[Reply], Chat]) -> None:
    def slow(request: dict[str, Any], number: int) -> tuple[int, str]:
        time.sleep(0.05)
        return 200, "tie"

    server = serve(slow)
    reward(server, concurrency=4).score(group(0.1, 0.2, 0.3))
    assert 2 <= server.busiest <= 4


def test_few_unclear_replies_count_as_ties(serve: Callable[[Reply], Chat]) -> None:
    def sometimes(request: dict[str, Any], number: int) -> tuple[int, str]:
        return (200, "hm") if number == 0 else brighter(request, number)

    first, second = reward(serve(sometimes), concurrency=1).score(group(0.1, 0.9))
    assert (first, second) == (0.25, 0.75)


def test_a_video_is_shown_as_frames(serve: Callable[[Reply], Chat]) -> None:
    server = serve(lambda request, number: (200, "tie"))
    video = torch.linspace(0, 1, 6)[:, None, None, None].expand(6, 3, 4, 4)
    reward(server, frames=3).score([Sample(Row("dawn"), video, 0, i) for i in range(2)])
    assert brightness(server.requests[0]) == pytest.approx([0, 102, 204] * 2)


def test_the_api_key_comes_from_the_environment(
    serve: Callable[[Reply], Chat], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(brighter)
    monkeypatch.setenv("JUDGE_KEY", "s3cret")
    with pytest.raises(SecretError, match=r"JUDGE_KEY is not sent to .*: JUDGE_KEY_URL must hold that address"):
        reward(server, key_variable="JUDGE_KEY")
    monkeypatch.setenv("JUDGE_KEY_URL", server.url)
    reward(server, key_variable="JUDGE_KEY").score(group(0.1, 0.9))
    assert set(server.tokens) == {"Bearer s3cret"}
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(ServerError, match="JUDGE_KEY is not set"):
        reward(server, key_variable="JUDGE_KEY")


def test_the_example_is_a_sound_spec() -> None:
    spec = load_spec(Path(__file__).parents[1] / "examples" / "preference.toml", Registry())
    assert isinstance(spec.rewards[0].spec, PreferenceSpec)


def judge_keys(folder: Path) -> dict[str, Any]:
    return {"url": Chat(brighter).url, "model": "judge", "pause": 0.0}


test_conformance = conformance("flowfactory-plugin-preference", keys={"preference": judge_keys})
