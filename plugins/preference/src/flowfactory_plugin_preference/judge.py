"""An OpenAI-compatible chat server with a vision-language model: one question, some images, one reply."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from typing import Any

from flowfactory import Server, ServerError, secret, to_image
from torch import Tensor

from flowfactory_plugin_preference import PreferenceSpec

BUSY = (408, 429, *range(500, 600))
"""What is answered by a server that may well reply the next time."""
NO_LIST = (404, 405, 501)
"""What a server answers that does not list its models."""


class ChatJudge:
    """Asks the server that `spec` names; safe to use from several threads.

    Raises:
        ServerError: the environment variable of the API key is not set.
        SecretError: the key may not go there, or is none.
    """

    def __init__(self, spec: PreferenceSpec) -> None:
        if spec.key_variable is not None and secret(spec.key_variable, spec.url) is None:
            raise ServerError(f"the environment variable {spec.key_variable} is not set; it holds the API key")
        self._spec = spec
        self._server = Server(spec.url, spec.key_variable, spec.request_timeout, spec.attempts, spec.pause, BUSY)

    def ask(self, question: str, images: Sequence[tuple[str, Sequence[str]]]) -> str:
        """The reply to a question about images.

        Args:
            images: for each, what it is introduced with and its frames as data URLs.

        Raises:
            ServerError: after the last attempt.
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
        return self._reply(self._server.ask("POST", "/chat/completions", body))

    def reach(self) -> None:
        """See that the server answers and takes the key. Not every server says which models it has.

        Raises:
            ServerError: after the last attempt.
        """
        self._server.ask("GET", "/models", also=NO_LIST)

    def _reply(self, content: bytes) -> str:
        """The text of a chat completion."""
        try:
            reply = json.loads(content)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            said = self._server.safe(content)
            raise ServerError(f"{self._spec.url} answered no chat completion: {said}") from error
        if not isinstance(reply, str):
            raise ServerError(f"{self._spec.url} answered no text, but {self._server.safe(repr(reply))}")
        return reply


def data_url(image: Tensor) -> str:
    """An image `(3, H, W)` in [0, 1] as a PNG within a `data:` address."""
    buffer = io.BytesIO()
    to_image(image).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
