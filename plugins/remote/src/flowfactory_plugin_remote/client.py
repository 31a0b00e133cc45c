"""Rewards that a server computes; see `wire` for what is sent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from flowfactory import Composite, GroupReward, Reward, Sample, Score, Server, ServerError, Shared
from flowfactory_scorer import PROTOCOL

from flowfactory_plugin_remote import RemoteSpec
from flowfactory_plugin_remote.wire import pack

BUSY = (429, 502, 503, 504)
"""What is answered by a server that may well have scores the next time; 500 is a reward that fails."""
WORDS = 2000
"""Most characters of each text beside a score."""


class Remote(Reward):
    """Scores each sample by asking a server."""

    reads: ClassVar[frozenset[str]] = frozenset({"media", "prompt", "images"})
    spec: RemoteSpec
    server: RewardClient

    def reach(self) -> None:
        RewardClient(self.spec).check(group=False)

    def load(self, device: torch.device, dtype: torch.dtype, shared: Shared) -> None:
        self.server = RewardClient(self.spec)
        self.server.check(group=False)

    def score(self, samples: Sequence[Sample]) -> Sequence[Score]:
        return self.server.score(samples)


class RemoteGroup(GroupReward):
    """Scores the samples of one group against each other by asking a server."""

    reads: ClassVar[frozenset[str]] = frozenset({"media", "prompt", "images"})
    spec: RemoteSpec
    server: RewardClient

    def reach(self) -> None:
        RewardClient(self.spec).check(group=True)

    def load(self, device: torch.device, dtype: torch.dtype, shared: Shared) -> None:
        self.server = RewardClient(self.spec)
        self.server.check(group=True)

    def score(self, samples: Sequence[Sample]) -> Sequence[Score]:
        return self.server.score(samples)


class RewardClient:
    """The server that `spec` names; safe to use from several threads.

    Args:
        token: of a server that this process has started; absent, the token of any other is where `spec` says.

    Raises:
        SecretError: the token may not go there, or is none.
    """

    def __init__(self, spec: RemoteSpec, token: str | None = None) -> None:
        self._spec, variable = spec, spec.token_variable
        self._server = Server(spec.url, variable, spec.request_timeout, spec.attempts, spec.pause, BUSY, token)

    def check(self, group: bool) -> None:
        """See that the server is up and has the reward.

        Raises:
            ServerError: it is not or has not, speaks otherwise, or the reward is of the other kind.
        """
        health = self._ask("GET", "/health")
        if health.get("protocol") != PROTOCOL:
            spoken = f"speaks protocol {self._server.safe(health.get('protocol'))}, and this client protocol {PROTOCOL}"
            raise ServerError(f"{self._spec.url} {spoken}; bring both to one version")
        rewards, name = health.get("rewards"), self._spec.reward
        if not isinstance(rewards, dict):
            raise ServerError(f"{self._spec.url} does not say which rewards it serves")
        if name not in rewards:
            raise ServerError(f"{self._spec.url} serves no reward {name!r}, but {', '.join(sorted(rewards))[:200]}")
        served = rewards[name]
        if not isinstance(served, dict) or not isinstance(served.get("group"), bool):
            raise ServerError(f"{self._spec.url} does not say of which kind its reward {name!r} is")
        if served["group"] != group:
            right = "remote-group" if served["group"] else "remote"
            raise ServerError(f'reward {name!r} of {self._spec.url} needs name = "{right}" in its table')

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """The scores the server gives.

        Raises:
            ServerError: after the last attempt.
        """
        answer = self._ask("POST", f"/score/{self._spec.reward}", pack(samples, self._spec.encoding))
        scores: Any = answer.get("scores")
        if not isinstance(scores, list) or len(scores) != len(samples):
            raise ServerError(f"{self._spec.url} answered no list of {len(samples)} scores, but {str(scores)[:200]}")
        return [self._score(score) for score in scores]

    def _score(self, answer: Any) -> Score:
        """A score as rewards give it; what is none is found out where all rewards' are."""
        if not isinstance(answer, dict):
            return answer  # type: ignore[no-any-return]
        total: Any = answer.get("total")
        parts: Any = answer.get("parts")
        words: Any = answer.get("words", {})
        known = answer.keys() <= {"total", "parts", "words"} and type(total) in (int, float) and isinstance(parts, dict)
        if not known or not isinstance(words, dict) or not all(isinstance(text, str) for text in words.values()):
            said = self._server.safe(json.dumps(answer))
            raise ServerError(f"{self._spec.url} answered {said}, not a number nor a total with parts")
        return Composite(total, parts, {name: self._server.safe(text, WORDS) for name, text in words.items()})

    def _ask(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        """The JSON object that is answered."""
        content = self._server.ask(method, path, body)
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict) or not answer:
            raise ServerError(f"{self._spec.url}{path} answered {self._server.safe(content)!r}")
        return answer
