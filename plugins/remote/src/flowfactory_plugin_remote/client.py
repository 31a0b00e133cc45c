"""Rewards that a server computes; see `wire` for what is sent.

The server may be slow, broken or hostile: a request has an end, an answer has a size, and both are checked.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any, ClassVar

import httpx
import torch
from flowfactory import Composite, GroupReward, Reward, Sample, Score, Shared, retried, secret
from flowfactory_scorer import PROTOCOL

from flowfactory_plugin_remote import RemoteSpec
from flowfactory_plugin_remote.wire import pack

ANSWER = 4 << 20
"""Most bytes of an answer."""
BUSY = (429, 502, 503, 504)


class RemoteError(RuntimeError):
    """The server refuses, fails, or answers something that is not scores."""


class Unavailable(RemoteError):
    """The server may well answer the next time: a lost connection, a timeout, status 429, 502, 503 or 504."""


class Remote(Reward):
    """Scores each sample by asking a server."""

    reads: ClassVar[frozenset[str]] = frozenset({"media", "prompt"})
    spec: RemoteSpec
    server: Server

    def reach(self) -> None:
        Server(self.spec).check(group=False)

    def load(self, device: torch.device, dtype: torch.dtype, shared: Shared) -> None:
        self.server = Server(self.spec)
        self.server.check(group=False)

    def score(self, samples: Sequence[Sample]) -> Sequence[Score]:
        return self.server.score(samples)


class RemoteGroup(GroupReward):
    """Scores the samples of one group against each other by asking a server."""

    reads: ClassVar[frozenset[str]] = frozenset({"media", "prompt"})
    spec: RemoteSpec
    server: Server

    def reach(self) -> None:
        Server(self.spec).check(group=True)

    def load(self, device: torch.device, dtype: torch.dtype, shared: Shared) -> None:
        self.server = Server(self.spec)
        self.server.check(group=True)

    def score(self, samples: Sequence[Sample]) -> Sequence[Score]:
        return self.server.score(samples)


class Server:
    """The server that `spec` names; safe to use from several threads.

    Args:
        token: of a server that this process has started; absent, the token of any other is where `spec` says.

    Raises:
        SecretError: the token may not go there, or is none.
    """

    def __init__(self, spec: RemoteSpec, token: str | None = None) -> None:
        self._spec, self._token = spec, token or secret(spec.token_variable, spec.url)
        self._own = token is not None
        self._tls = httpx.create_ssl_context()

    def check(self, group: bool) -> None:
        """See that the server is up and has the reward.

        Raises:
            RemoteError: it is not or has not, speaks otherwise, or the reward is of the other kind.
        """
        health = self._request("GET", "/health")
        if health.get("protocol") != PROTOCOL:
            spoken = f"speaks protocol {self._safe(health.get('protocol'))}, and this client protocol {PROTOCOL}"
            raise RemoteError(f"{self._spec.url} {spoken}; bring both to one version")
        rewards, name = health.get("rewards"), self._spec.reward
        if not isinstance(rewards, dict):
            raise RemoteError(f"{self._spec.url} does not say which rewards it serves")
        if name not in rewards:
            raise RemoteError(f"{self._spec.url} serves no reward {name!r}, but {', '.join(sorted(rewards))[:200]}")
        served = rewards[name]
        if not isinstance(served, dict) or not isinstance(served.get("group"), bool):
            raise RemoteError(f"{self._spec.url} does not say of which kind its reward {name!r} is")
        if served["group"] != group:
            right = "remote-group" if served["group"] else "remote"
            raise RemoteError(f'reward {name!r} of {self._spec.url} needs name = "{right}" in its table')

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """The scores the server gives.

        Raises:
            RemoteError: after the last attempt.
        """
        answer = self._request("POST", f"/score/{self._spec.reward}", pack(samples, self._spec.encoding))
        scores: Any = answer.get("scores")
        if not isinstance(scores, list) or len(scores) != len(samples):
            raise RemoteError(f"{self._spec.url} answered no list of {len(samples)} scores, but {str(scores)[:200]}")
        return [self._score(score) for score in scores]

    def _score(self, answer: Any) -> Score:
        """A score as rewards give it; what is none is found out where all rewards' are."""
        if not isinstance(answer, dict):
            return answer  # type: ignore[no-any-return]
        total: Any = answer.get("total")
        parts: Any = answer.get("parts")
        if len(answer) != 2 or type(total) not in (int, float) or not isinstance(parts, dict):
            said = self._safe(json.dumps(answer))
            raise RemoteError(f"{self._spec.url} answered {said}, not a number nor a total with parts")
        return Composite(total, parts)

    def _request(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        return retried(
            lambda: self._once(method, path, body), self._spec.attempts - 1, self._spec.pause, (Unavailable,)
        )

    def _once(self, method: str, path: str, body: bytes | None) -> dict[str, Any]:
        address, seconds = self._spec.url.rstrip("/") + path, self._spec.request_timeout
        try:
            status, content = asyncio.run(asyncio.wait_for(self._exchange(method, address, body), seconds))
        except TimeoutError as error:
            raise Unavailable(f"{address}: ReadTimeout: there was no whole answer within {seconds:g} s") from error
        except httpx.TransportError as error:
            raise Unavailable(f"{address}: {type(error).__name__}: {error}") from error
        except httpx.InvalidURL as error:
            raise RemoteError(f"{address}: {error}") from error
        answer = _parsed(content)
        if status != httpx.codes.OK:
            why = answer["error"] if "error" in answer else content[:200].decode("utf-8", "replace")
            raise (Unavailable if status in BUSY else RemoteError)(f"{address} answered {status}: {self._safe(why)}")
        if not answer:
            raise RemoteError(f"{address} answered {self._safe(content[:200].decode('utf-8', 'replace'))!r}")
        return answer

    async def _exchange(self, method: str, address: str, body: bytes | None) -> tuple[int, bytes]:
        """One request: the status and what was answered."""
        headers = {"Accept-Encoding": "identity"}  # a few packed bytes can be many
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        async with (
            httpx.AsyncClient(timeout=self._spec.request_timeout, verify=self._tls, trust_env=not self._own) as client,
            client.stream(method, address, headers=headers, content=body) as response,
        ):
            if response.headers.get("content-encoding", "identity") != "identity":
                raise RemoteError(f"{address} answered something packed, which it was not asked for")
            content = bytearray()
            async for chunk in response.aiter_raw():
                content += chunk
                if len(content) > ANSWER:
                    raise RemoteError(f"{address} answered more than {ANSWER} bytes")
            return response.status_code, bytes(content)

    def _safe(self, said: object) -> str:
        """What a server said, without the token it may have repeated."""
        text = str(said)
        return (text.replace(self._token, "(the token)") if self._token else text)[:200]


def _parsed(content: bytes) -> dict[str, Any]:
    """An answer, empty where it is no JSON object."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
