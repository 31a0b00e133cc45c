"""Rewards over HTTP for flowfactory: what the spec may say, and where the rewards are. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import attrs
from flowfactory import Provides, hookimpl, key

TOKEN_VARIABLE = "FLOWFACTORY_TOKEN"


@attrs.frozen(kw_only=True)
class RemoteSpec:
    """A reward that another process computes, started by `flowfactory serve-reward`."""

    url: str = key("Address of the server, e.g. `http://127.0.0.1:8399`.", pattern=r"https?://\S+")
    reward: str = key("The reward's label on the server.", min_length=1)
    token_variable: str = key(
        "Environment variable that holds the server's token. Another one than the default is sent only to the "
        "addresses that a variable of the same name and `_URL` lists.",
        default=TOKEN_VARIABLE,
        pattern="[A-Za-z_][A-Za-z0-9_]*",
    )
    encoding: Literal["png", "float32"] = key(
        "How media are sent: as PNG, rounded to 8 bits, or exactly, in about ten times as many bytes.", default="png"
    )
    request_timeout: float = key("Seconds one request may take.", default=120.0, gt=0, le=3600)
    attempts: int = key("How often a request is made before it counts as failed.", default=4, ge=1, le=100)
    pause: float = key(
        "Seconds before the second attempt; doubled before each further one, up to a minute.", default=0.5, ge=0, le=600
    )


@hookimpl
def flowfactory_rewards() -> Iterable[Provides]:
    home = "flowfactory_plugin_remote.client"
    yield Provides("remote", RemoteSpec, f"{home}:Remote", "A reward served from another environment over HTTP.")
    yield Provides("remote-group", RemoteSpec, f"{home}:RemoteGroup", "A group reward served over HTTP.")
