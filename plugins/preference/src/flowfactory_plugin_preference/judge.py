"""An OpenAI-compatible chat server with a vision-language model: one question, some images, one reply."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from typing import Any

import httpx
from flowfactory import retried, to_image
from torch import Tensor

from flowfactory_plugin_preference import PreferenceSpec


class JudgeError(RuntimeError):
    """The server cannot be reached, refuses, or answers something that is not a chat completion."""


class Busy(JudgeError):
    """The server may well answer the next time: a lost connection, a timeout, status 408, 429 or 5xx."""


class ChatJudge:
    """Asks the server that `spec` names; safe to use from several threads.

    Raises:
        JudgeError: the environment variable of the API key is not set.
    """

    def __init__(self, spec: PreferenceSpec) -> None:
        headers = {}
        if spec.key_variable is not None:
            if spec.key_variable not in os.environ:
                raise JudgeError(f"the environment variable {spec.key_variable} is not set; it holds the API key")
            headers["Authorization"] = f"Bearer {os.environ[spec.key_variable]}"
        self._spec = spec
        limits = httpx.Limits(max_connections=spec.concurrency)
        self._client = httpx.Client(headers=headers, timeout=spec.request_timeout, limits=limits)

    def ask(self, question: str, images: Sequence[tuple[str, Sequence[str]]]) -> str:
        """The reply to a question about images.

        Args:
            images: for each, what it is introduced with and its frames as data URLs.

        Raises:
            JudgeError: after the last attempt.
        """
        content: list[dict[str, Any]] = []
        for title, frames in images:
            content.append({"type": "text", "text": title})
            content += [{"type": "image_url", "image_url": {"url": frame}} for frame in frames]
        content.append({"type": "text", "text": question})
        body = {
            "model": self._spec.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0.0,
            "max_tokens": self._spec.max_tokens,
        }
        return retried(lambda: self._post(body), self._spec.attempts - 1, self._spec.pause, (Busy,))

    def _post(self, body: dict[str, Any]) -> str:
        address = self._spec.url.rstrip("/") + "/chat/completions"
        try:
            response = self._client.post(address, json=body)
        except httpx.TransportError as error:
            raise Busy(f"{address}: {type(error).__name__}: {error}") from error
        if response.status_code != httpx.codes.OK:
            kind = Busy if response.status_code in (408, 429) or response.status_code >= 500 else JudgeError
            raise kind(f"{address} answered {response.status_code}: {response.text[:200]}")
        try:
            reply = response.json()["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError) as error:
            raise JudgeError(f"{address} answered no chat completion: {response.text[:200]}") from error
        if not isinstance(reply, str):
            raise JudgeError(f"{address} answered no text, but {reply!r}")
        return reply


def data_url(image: Tensor) -> str:
    """An image `(3, H, W)` in [0, 1] as a PNG within a `data:` address."""
    buffer = io.BytesIO()
    to_image(image).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
