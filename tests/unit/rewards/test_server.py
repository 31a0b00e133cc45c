"""A request has an end and its answer a size, whatever the server does; a transient failure is asked again about."""

from __future__ import annotations

import gzip
import json
import re
import socket
import time

import pytest
from flowfactory.rewards.secrets import SecretError
from flowfactory.rewards.server import ANSWER, Server, ServerError, Unavailable
from servers import Raw, answer

BEGINNING = b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n"


def server(url: str, variable: str | None = None, seconds: float = 5.0, attempts: int = 1) -> Server:
    return Server(url, variable, seconds, attempts, 0.0, busy=(429, 503))


def test_what_is_answered_comes_back_as_it_is() -> None:
    raw = Raw(answer(b"\x00anything"))
    assert server(f"{raw.url}/").ask("GET", "/health") == b"\x00anything"
    assert raw.heard.startswith(b"GET /health HTTP/1.1\r\n")
    assert b"Accept-Encoding: identity\r\n" in raw.heard
    assert b"Authorization" not in raw.heard


@pytest.mark.parametrize(
    ("body", "sent"),
    [(b"\x01\x02", b"\x01\x02"), ({"a": "é"}, json.dumps({"a": "é"}).encode()), (b"", b""), ({}, b"{}")],
)
def test_a_body_is_sent_as_it_is_and_a_mapping_as_json(body: bytes | dict[str, str], sent: bytes) -> None:
    raw = Raw(answer(b"ok"))
    server(raw.url).ask("POST", "/score", body)
    head, _, rest = raw.heard.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /score ")
    assert (b"Content-Type: application/json" in head) == isinstance(body, dict)
    assert rest == sent


def test_other_statuses_may_be_no_failure() -> None:
    url = Raw(answer(b"no list", "404 No")).url
    assert server(url).ask("GET", "/models", also=(404, 405)) == b"no list"
    with pytest.raises(ServerError, match="answered 404: no list"):
        server(url).ask("GET", "/models", also=(405,))


def test_an_answer_may_be_as_large_as_is_allowed() -> None:
    assert len(server(Raw(answer(b" " * ANSWER)).url).ask("GET", "/")) == ANSWER


@pytest.mark.parametrize(
    "pieces", [[b"H"] * 99, [b"HTTP/1.1 200 OK\r\n", *[b"A: b\r\n"] * 99], [BEGINNING, *[b" "] * 99]]
)
def test_a_server_that_drips_is_given_up(pieces: list[bytes]) -> None:
    start = time.perf_counter()
    with pytest.raises(Unavailable, match=r"ReadTimeout: there was no whole answer within 0\.3 s"):
        server(Raw(*pieces, pause=0.1).url, seconds=0.3).ask("GET", "/")
    assert time.perf_counter() - start < 3


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (answer(b" " * (ANSWER + 1)), f"answered more than {ANSWER} bytes"),
        (answer(gzip.compress(b" " * (64 << 20)), "200 OK", "Content-Encoding: gzip"), "something packed"),
        (answer(b'{"error": {"a": 1}}', "500 Oops"), "answered 500: {'a': 1}"),
        (answer(b'{"detail": "no"}', "400 No"), 'answered 400: {"detail": "no"}'),
        (answer(b'["error"]', "400 No"), 'answered 400: ["error"]'),
        (answer(b"[" * 100_000, "400 No"), "answered 400: [[["),
        (answer(b"\xff\xfe", "400 No"), "answered 400: "),
        (answer(b"", "302 Found", "Location: http://127.0.0.1:1/"), "answered 302"),
        (b"nonsense\r\n\r\n", "RemoteProtocolError"),
    ],
)
def test_whatever_else_is_a_failure_in_few_words(said: bytes, why: str) -> None:
    with pytest.raises(ServerError, match=re.escape(why)) as raised:
        server(Raw(said).url).ask("GET", "/")
    assert len(str(raised.value)) < 300


def test_who_is_not_there_is_a_failure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(Unavailable, match="ConnectError"):
        server(url).ask("GET", "/")


def test_an_address_that_is_none_is_a_failure_before_anything_is_sent() -> None:
    with pytest.raises(ServerError, match="Invalid"):
        server("http://127.0.0.1:8399").ask("GET", "/a\x00b")


@pytest.mark.parametrize(("status", "times"), [("503 Busy", 3), ("429 Slower", 3), ("500 Oops", 1), ("401 No", 1)])
def test_only_what_may_pass_is_asked_again(status: str, times: int) -> None:
    raw = Raw(answer(b"no", status))
    with pytest.raises(ServerError, match=f"answered {status[:3]}: no"):
        server(raw.url, attempts=3).ask("GET", "/")
    assert raw.calls == times


def test_no_message_holds_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even one that is cut in the middle of it."""
    monkeypatch.setenv("FLOWFACTORY_TOKEN", "s3cret-of-mine")
    for said in (b'{"error": "not s3cret-of-mine"}', b"x" * 190 + b"s3cret-of-mine"):
        raw = Raw(answer(said, "401 No"))
        with pytest.raises(ServerError) as raised:
            server(raw.url, "FLOWFACTORY_TOKEN").ask("GET", "/")
        assert b"Authorization: Bearer s3cret-of-mine\r\n" in raw.heard
        assert "s3cr" not in str(raised.value)
    assert server(raw.url, "FLOWFACTORY_TOKEN").safe(b"hello s3cret-of-mine") == "hello (the secret)"


def test_a_secret_that_may_not_go_there_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURS", "s3cret")
    with pytest.raises(SecretError, match=r"OURS is not sent to http://127\.0\.0\.1:9"):
        server("http://127.0.0.1:9", "OURS")
