"""Asking a server that a spec names, over HTTP.

It may be slow, broken or hostile: a request has an end, an answer has a size and is not packed, and no message holds
the secret that was sent.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Container, Mapping
from typing import Any

import httpx

from flowfactory.rewards.retry import retried
from flowfactory.rewards.secrets import secret

ANSWER = 4 << 20
"""Most bytes of an answer."""
SHOWN = 200
"""Most characters of an answer in a message."""


class ServerError(RuntimeError):
    """A server cannot be reached, refuses, fails, or gives an unexpected answer."""


class Unavailable(ServerError):
    """The next attempt may succeed."""


class Server:
    """A server, and the secret that is sent to it as a bearer token; safe to use from several threads.

    Args:
        url: its address, before the path of a request. variable: see `secret`.
        seconds: how long one request may take, from its start to the end of the answer.
        attempts: how often it is made if no complete answer comes, or a status of `busy`.
        pause: seconds before the second attempt; doubled before each further one, up to a minute.
        token: of a server that this process has started, instead of the variable's; then no proxy is used.

    Raises:
        SecretError: the secret may not be sent there, or is not a possible token.
    """

    def __init__(
        self,
        url: str,
        variable: str | None,
        seconds: float,
        attempts: int,
        pause: float,
        busy: Container[int],
        token: str | None = None,
    ) -> None:
        self.url, self._secret, self._own = url.rstrip("/"), token or secret(variable, url), token is not None
        self._seconds, self._attempts, self._pause, self._busy = seconds, attempts, pause, busy
        self._tls = httpx.create_ssl_context()

    def ask(
        self, method: str, path: str, body: bytes | Mapping[str, Any] | None = None, also: Container[int] = ()
    ) -> bytes:
        """The answer to a request, with status 200 or one of `also`; a mapping is sent as JSON.

        Raises:
            ServerError: after the last attempt.
        """

        def once() -> bytes:
            return self._once(method, self.url + path, body, also)

        return retried(once, self._attempts - 1, self._pause, (Unavailable,))

    def safe(self, said: object, most: int = SHOWN) -> str:
        """The beginning of a server's reply, without the secret if it repeats that."""
        text = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
        return (text.replace(self._secret, "(the secret)") if self._secret else text)[:most]

    def _once(self, method: str, address: str, body: bytes | Mapping[str, Any] | None, also: Container[int]) -> bytes:
        try:
            request = self._exchange(method, address, body)
            status, content = asyncio.run(asyncio.wait_for(request, self._seconds))
        except TimeoutError as error:
            why = f"ReadTimeout: there was no whole answer within {self._seconds:g} s"
            raise Unavailable(f"{address}: {why}") from error
        except httpx.TransportError as error:
            raise Unavailable(f"{address}: {type(error).__name__}: {error}") from error
        except httpx.InvalidURL as error:
            raise ServerError(f"{address}: {error}") from error
        if status != httpx.codes.OK and status not in also:
            kind = Unavailable if status in self._busy else ServerError
            raise kind(f"{address} answered {status}: {self.safe(_reason(content))}")
        return content

    async def _exchange(self, method: str, address: str, body: bytes | Mapping[str, Any] | None) -> tuple[int, bytes]:
        """One request: the status and what was answered."""
        headers = {"Accept-Encoding": "identity"}  # a few packed bytes can be many
        if self._secret:
            headers["Authorization"] = f"Bearer {self._secret}"
        if isinstance(body, Mapping):
            headers["Content-Type"], body = "application/json", json.dumps(body).encode()
        async with (
            httpx.AsyncClient(timeout=self._seconds, verify=self._tls, trust_env=not self._own) as client,
            client.stream(method, address, headers=headers, content=body) as response,
        ):
            if response.headers.get("content-encoding", "identity") != "identity":
                raise ServerError(f"{address} answered something packed, which it was not asked for")
            content = bytearray()
            async for chunk in response.aiter_raw():
                content += chunk
                if len(content) > ANSWER:
                    raise ServerError(f"{address} answered more than {ANSWER} bytes")
            return response.status_code, bytes(content)


def _reason(content: bytes) -> object:
    """Why a server refuses: what it has as `error`, or all it said."""
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        return content
    return answer["error"] if isinstance(answer, dict) and "error" in answer else content
