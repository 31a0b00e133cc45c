"""An OpenAI-compatible chat server with a vision-language model: one question, some images, one reply."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Sequence
from typing import Any

import httpx
from flowfactory import retried, secret, to_image
from torch import Tensor

from flowfactory_plugin_preference import PreferenceSpec

ANSWER = 4 << 20
"""Most bytes of an answer."""

NO_LIST = (404, 405, 501)
"""What a server answers that does not list its models."""


class JudgeError(RuntimeError):
    """The server cannot be reached, refuses, or answers something that is not a chat completion."""


class Busy(JudgeError):
    """The server may well answer the next time: a lost connection, a timeout, status 408, 429 or 5xx."""


class ChatJudge:
    """Asks the server that `spec` names; safe to use from several threads.

    Raises:
        JudgeError: the environment variable of the API key is not set.
        SecretError: the key may not go there, or is none.
    """

    def __init__(self, spec: PreferenceSpec) -> None:
        self._spec, self._key = spec, secret(spec.key_variable, spec.url)
        self._tls = httpx.create_ssl_context()
        if spec.key_variable is not None and self._key is None:
            raise JudgeError(f"the environment variable {spec.key_variable} is not set; it holds the API key")

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

    def reach(self) -> None:
        """See that the server answers and takes the key. Not every server says which models it has.

        Raises:
            JudgeError: after the last attempt.
        """
        attempts, pause = self._spec.attempts, self._spec.pause
        retried(lambda: self._once("GET", "/models", None, (200, *NO_LIST)), attempts - 1, pause, (Busy,))

    def _post(self, body: dict[str, Any]) -> str:
        address, content = self._once("POST", "/chat/completions", body, (200,))
        said = self._safe(content.decode("utf-8", "replace"))
        try:
            reply = json.loads(content)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise JudgeError(f"{address} answered no chat completion: {said}") from error
        if not isinstance(reply, str):
            raise JudgeError(f"{address} answered no text, but {self._safe(repr(reply))}")
        return reply

    def _once(self, method: str, path: str, body: Any, good: Sequence[int]) -> tuple[str, bytes]:
        """What was asked, and the answer of a status among the `good` ones."""
        address, seconds = self._spec.url.rstrip("/") + path, self._spec.request_timeout
        try:
            status, content = asyncio.run(asyncio.wait_for(self._exchange(method, address, body), seconds))
        except TimeoutError as error:
            raise Busy(f"{address}: ReadTimeout: there was no whole answer within {seconds:g} s") from error
        except httpx.TransportError as error:
            raise Busy(f"{address}: {type(error).__name__}: {error}") from error
        except httpx.InvalidURL as error:
            raise JudgeError(f"{address}: {error}") from error
        if status not in good:
            kind = Busy if status in (408, 429) or status >= 500 else JudgeError
            raise kind(f"{address} answered {status}: {self._safe(content.decode('utf-8', 'replace'))}")
        return address, content

    async def _exchange(self, method: str, address: str, body: Any) -> tuple[int, bytes]:
        """One request: the status and what was answered, which is neither packed nor without an end."""
        headers = {"Accept-Encoding": "identity"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        async with (
            httpx.AsyncClient(timeout=self._spec.request_timeout, verify=self._tls) as client,
            client.stream(method, address, headers=headers, json=body) as response,
        ):
            if response.headers.get("content-encoding", "identity") != "identity":
                raise JudgeError(f"{address} answered something packed, which it was not asked for")
            content = bytearray()
            async for chunk in response.aiter_raw():
                content += chunk
                if len(content) > ANSWER:
                    raise JudgeError(f"{address} answered more than {ANSWER} bytes")
            return response.status_code, bytes(content)

    def _safe(self, said: str) -> str:
        """What the server said, without the key it may have repeated."""
        return (said.replace(self._key, "(the key)") if self._key else said)[:200]


def data_url(image: Tensor) -> str:
    """An image `(3, H, W)` in [0, 1] as a PNG within a `data:` address."""
    buffer = io.BytesIO()
    to_image(image).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
