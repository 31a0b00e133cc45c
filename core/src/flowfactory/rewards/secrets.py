"""Secrets for servers: a spec names an environment variable, and whoever set it says where it may go. Imports no torch.

A spec can come from anybody, so its `url` alone does not decide who is sent what. `NAME` goes only to the addresses
that `NAME_URL` lists. `FLOWFACTORY_TOKEN` is made for the reward servers of specs and for nothing else; it goes
wherever they are, unless `FLOWFACTORY_TOKEN_URL` is set.
"""

from __future__ import annotations

import os
import re
from urllib.parse import SplitResult, urlsplit

TOKEN_VARIABLE = "FLOWFACTORY_TOKEN"

_PORTS = {"http": 80, "https": 443}


class SecretError(ValueError):
    """A secret cannot be used, or may not be sent where a spec sends it. The message never contains it."""


def secret(variable: str | None, url: str | None = None) -> str | None:
    """The secret in an environment variable; none if it is not set, or no variable is given.

    Args:
        url: the server that a spec sends it to; absent where it stays in this process.

    Raises:
        SecretError: that address was not allowed for it, it is not a possible token, or the address is not valid.
    """
    address = origin(url) if url is not None else None
    found = os.environ.get(variable) if variable else None
    if not found:
        return None
    bound = variable != TOKEN_VARIABLE or f"{variable}_URL" in os.environ
    if address and bound and address not in map(origin, os.environ.get(f"{variable}_URL", "").split()):
        what = f"the environment variable {variable} is not sent to {address}: {variable}_URL must hold that address"
        raise SecretError(f"{what}, set by whoever set {variable}")
    if re.fullmatch(r"[\x21-\x7e]+", found) is None:
        what = f"the environment variable {variable} holds a space, a line end or another character that no token has"
        raise SecretError(f"{what}; set it anew without")
    return found


def origin(url: str) -> str:
    """Scheme, host and port of an address.

    Raises:
        SecretError: it is none, or holds a user's name or password, which would be shown with it.
    """
    parts = _split(url)
    port = parts.port or _PORTS.get(parts.scheme)
    if not parts.hostname or port is None:
        raise SecretError("a server's address must look like http://host:port")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}:{port}"


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises
    except ValueError:
        raise SecretError("a server's address must look like http://host:port") from None
    if "@" in parts.netloc:
        raise SecretError("a server's address must hold no name and no password; use an environment variable")
    return parts
