"""Rewards that a server computes; see `wire` for what is sent."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, ClassVar

import httpx
import torch
from flowfactory import GroupReward, Reward, Sample, Score, Shared, retried

from flowfactory_plugin_remote import RemoteSpec
from flowfactory_plugin_remote.wire import pack


class RemoteError(RuntimeError):
    """The server refuses, fails, or answers something that is not scores."""


class Unavailable(RemoteError):
    """The server may well answer the next time: a lost connection, a timeout, status 429, 502, 503 or 504."""


class Remote(Reward):
    """Scores each sample by asking a server."""

    reads: ClassVar[frozenset[str]] = frozenset({"media", "prompt"})
    spec: RemoteSpec
    server: Server

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

    def load(self, device: torch.device, dtype: torch.dtype, shared: Shared) -> None:
        self.server = Server(self.spec)
        self.server.check(group=True)

    def score(self, samples: Sequence[Sample]) -> Sequence[Score]:
        return self.server.score(samples)


class Server:
    """The server that `spec` names; safe to use from several threads."""

    def __init__(self, spec: RemoteSpec) -> None:
        self._spec = spec
        token = os.environ.get(spec.token_variable)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.Client(base_url=spec.url, headers=headers, timeout=spec.request_timeout)

    def check(self, group: bool) -> None:
        """See that the server is up and has the reward.

        Raises:
            RemoteError: it is not or has not, or the reward is of the other kind.
        """
        rewards = self._request("GET", "/health")["rewards"]
        name = self._spec.reward
        if name not in rewards:
            raise RemoteError(f"{self._spec.url} serves no reward {name!r}, but {', '.join(sorted(rewards))}")
        if rewards[name]["group"] != group:
            right = "remote-group" if rewards[name]["group"] else "remote"
            raise RemoteError(f'reward {name!r} of {self._spec.url} needs name = "{right}" in its table')

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """The scores the server gives.

        Raises:
            RemoteError: after the last attempt.
        """
        answer = self._request("POST", f"/score/{self._spec.reward}", pack(samples, self._spec.encoding))
        scores: list[Score] = answer["scores"]
        return scores

    def _request(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        return retried(
            lambda: self._once(method, path, body), self._spec.attempts - 1, self._spec.pause, (Unavailable,)
        )

    def _once(self, method: str, path: str, body: bytes | None) -> dict[str, Any]:
        address = self._spec.url + path
        try:
            response = self._client.request(method, path, content=body)
        except httpx.TransportError as error:
            raise Unavailable(f"{address}: {type(error).__name__}: {error}") from error
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if response.status_code != httpx.codes.OK:
            why = answer["error"] if isinstance(answer, dict) and "error" in answer else response.text[:200]
            kind = Unavailable if response.status_code in (429, 502, 503, 504) else RemoteError
            raise kind(f"{address} answered {response.status_code}: {why}")
        wanted, kind_wanted = ("rewards", dict) if body is None else ("scores", list)
        if not isinstance(answer, dict) or not isinstance(answer.get(wanted), kind_wanted):
            raise RemoteError(f"{address} answered {response.text[:200]!r}")
        return answer
