"""A spec cannot send an environment variable to whom its owner has not named, and no message holds it."""

from __future__ import annotations

import pytest
from flowfactory.contracts.secrets import SecretError, secret

HERE = "http://127.0.0.1:8399"


@pytest.mark.parametrize(
    ("allowed", "url"),
    [
        (HERE, HERE),
        (f"{HERE}/", f"{HERE}/v1"),
        (f"https://a.example {HERE}", HERE),
        ("https://a.example", "https://A.example:443/v1"),
        ("http://[::1]:80", "http://[::1]"),
    ],
)
def test_a_variable_goes_where_its_owner_says(monkeypatch: pytest.MonkeyPatch, allowed: str, url: str) -> None:
    monkeypatch.setenv("OURS", "s3cret")
    monkeypatch.setenv("OURS_URL", allowed)
    assert secret("OURS", url) == "s3cret"


@pytest.mark.parametrize(
    ("allowed", "url"),
    [
        (None, HERE),
        ("", HERE),
        (HERE, "http://127.0.0.1:8398"),
        (HERE, "https://127.0.0.1:8399"),
        (HERE, f"http://evil.example/{HERE}"),
        ("https://a.example", "https://a.example.evil"),
        ("https://a.example", "https://evil/a.example"),
        ("https://a.example", "https://a.example\\@evil"),
        ("https://a.example", "https://a.example:444"),
        ("a.example", "https://a.example"),
    ],
)
def test_and_nowhere_else(monkeypatch: pytest.MonkeyPatch, allowed: str | None, url: str) -> None:
    monkeypatch.setenv("OURS", "s3cret")
    monkeypatch.delenv("OURS_URL", raising=False)
    if allowed is not None:
        monkeypatch.setenv("OURS_URL", allowed)
    with pytest.raises(SecretError) as raised:
        secret("OURS", url)
    assert "s3cret" not in str(raised.value)


def test_the_token_of_flowfactory_goes_to_reward_servers_unless_it_is_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLOWFACTORY_TOKEN_URL", raising=False)
    monkeypatch.setenv("FLOWFACTORY_TOKEN", "s3cret")
    assert secret("FLOWFACTORY_TOKEN", "http://gpu:8399") == "s3cret"
    monkeypatch.setenv("FLOWFACTORY_TOKEN_URL", HERE)
    assert secret("FLOWFACTORY_TOKEN", HERE) == secret("FLOWFACTORY_TOKEN") == "s3cret"
    with pytest.raises(
        SecretError, match="FLOWFACTORY_TOKEN is not sent to http://gpu:8399: FLOWFACTORY_TOKEN_URL must"
    ):
        secret("FLOWFACTORY_TOKEN", "http://gpu:8399")


@pytest.mark.parametrize("found", ["s3cret\n", "s3 cret", "s3crét", "\x1bs3cret"])
def test_what_no_header_can_hold_is_refused(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    monkeypatch.setenv("FLOWFACTORY_TOKEN", found)
    with pytest.raises(SecretError, match="FLOWFACTORY_TOKEN holds a space, a line end") as raised:
        secret("FLOWFACTORY_TOKEN")
    assert "cret" not in str(raised.value)


def test_what_is_not_set_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OURS", raising=False)
    assert secret("OURS", HERE) is None
    assert secret(None, HERE) is None


@pytest.mark.parametrize("url", ["http://me:s3cret@host", "http://s3cret@host:1", "http://s3cret@[::1"])
def test_an_address_holds_no_password(url: str) -> None:
    with pytest.raises(SecretError) as raised:
        secret(None, url)
    assert "s3cret" not in str(raised.value)
