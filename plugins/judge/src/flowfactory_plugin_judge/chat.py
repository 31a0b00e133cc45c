"""An OpenAI-compatible chat server with a vision-language model: pictures and a question, one reply."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import attrs
from flowfactory import Sample, Server, ServerError, secret, some_frames, to_image
from PIL import Image, ImageOps
from torch import Tensor

from flowfactory_plugin_judge import EndpointSpec

T = TypeVar("T")
R = TypeVar("R")

BUSY = (408, 429, *range(500, 600))
"""What is answered by a server that may well reply the next time."""
NO_LIST = (404, 405, 501)
"""What a server answers that does not list its models."""
TOKENS = 20
"""Most likely tokens that are asked for: the protocol's largest number."""
LEAST = 1e-6
"""The probability of an answer that is not among them is taken for no less."""

Shown = Sequence[tuple[str, Sequence[str]]]
"""Pictures: what each is introduced with, and its frames as `data:` addresses."""


@attrs.frozen
class First:
    """The first token of a reply: how likely each of the most likely ones was."""

    probabilities: Mapping[str, float]

    def of(self, wanted: Collection[str], others: Collection[str] | None = None) -> float | None:
        """How likely one of the wanted answers was, in whatever case.

        A token counts that is an answer, or its beginning. Where none of them is among the tokens, it was less likely
        than the last of these, and not more than what they leave.

        Args:
            others: what else may be answered; any word when absent. Where nothing of it is among the tokens, the reply
                was to begin with something else than an answer, and there is no score.
        """
        found = [p for token, p in self.probabilities.items() if _begins(token, wanted)]
        if found:
            return min(1.0, math.fsum(found))
        if not any(
            token.strip().isalpha() if others is None else _begins(token, others) for token in self.probabilities
        ):
            return None
        left = 1 - math.fsum(self.probabilities.values())
        return max(LEAST, min(left, *self.probabilities.values()))

    def told(self) -> str:
        """The most likely ones in words."""
        most = sorted(self.probabilities.items(), key=lambda pair: -pair[1])[:3]
        return ", ".join(f"{token!r} {p:.3f}" for token, p in most)


def _begins(token: str, answers: Collection[str]) -> bool:
    own = token.strip().casefold()
    return own in answers or (len(own) > 1 and any(answer.startswith(own) for answer in answers))


class Chat:
    """Asks the server that `spec` names; safe to use from several threads.

    Raises:
        ServerError: the environment variable of the API key is not set.
        SecretError: the key may not go there, or is none.
    """

    def __init__(self, spec: EndpointSpec) -> None:
        if spec.key_variable is not None and secret(spec.key_variable, spec.url) is None:
            raise ServerError(f"the environment variable {spec.key_variable} is not set; it holds the API key")
        self._spec = spec
        self._server = Server(spec.url, spec.key_variable, spec.request_timeout, spec.attempts, spec.pause, BUSY)

    def ask(self, question: str, shown: Shown) -> str:
        """The reply to a question about pictures.

        Raises:
            ServerError: after the last attempt.
        """
        choice = self._choice(question, shown, {"max_tokens": self._spec.max_tokens})
        try:
            reply = choice["message"]["content"]
        except (LookupError, TypeError) as error:
            raise self._nonsense("no chat completion", choice) from error
        if not isinstance(reply, str):
            raise self._nonsense("no text", reply)
        return self._server.safe(reply, len(reply))

    def ask_first(self, question: str, shown: Shown) -> First:
        """The first token of the reply: what it might have been, and how likely.

        Raises:
            ServerError: after the last attempt, or the server tells no log-probabilities.
        """
        options = {"max_tokens": 1, "logprobs": True, "top_logprobs": TOKENS}
        choice = self._choice(question, shown, options)
        try:
            tokens = choice["logprobs"]["content"][0]["top_logprobs"]
            pairs = [(token["token"], math.exp(token["logprob"])) for token in tokens]
            if not pairs or not all(isinstance(text, str) and 0 <= p <= 1 + 1e-6 for text, p in pairs):
                raise ValueError("no probabilities")
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            raise self._nonsense("no log-probabilities of tokens (`top_logprobs`)", choice) from error
        found: dict[str, float] = {}
        for text, p in pairs:
            found[text] = found.get(text, 0.0) + p
        return First(found)

    def reach(self) -> None:
        """See that the server answers and takes the key. Not every server says which models it has.

        Raises:
            ServerError: after the last attempt.
        """
        self._server.ask("GET", "/models", also=NO_LIST)

    def all(self, asked: Callable[[T], R], them: Iterable[T]) -> list[R]:
        """What is answered to each, so many at a time as the spec allows; nothing more is asked after an error."""
        errors: list[BaseException] = []

        def once(one: T) -> list[R]:
            if errors:
                return []
            try:
                return [asked(one)]
            except BaseException as error:
                errors.append(error)
                return []

        with ThreadPoolExecutor(self._spec.concurrency) as pool:
            found = [answer for answers in pool.map(once, them) for answer in answers]
        if errors:
            raise errors[0]
        return found

    def _choice(self, question: str, shown: Shown, options: Mapping[str, Any]) -> Any:
        content: list[dict[str, Any]] = []
        for title, frames in shown:
            content.append({"type": "text", "text": title})
            content += [{"type": "image_url", "image_url": {"url": frame}} for frame in frames]
        content.append({"type": "text", "text": question})
        messages = [{"role": "user", "content": content}]
        body = {"model": self._spec.model, "messages": messages, "temperature": 0.0, **options}
        answer = self._server.ask("POST", "/chat/completions", body)
        try:
            return json.loads(answer)["choices"][0]
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise self._nonsense("no chat completion", answer) from error

    def _nonsense(self, what: str, said: Any) -> ServerError:
        text = said if isinstance(said, bytes) else repr(said)
        return ServerError(f"{self._spec.url} answered {what}, but {self._server.safe(text)}")


def data_url(image: Tensor) -> str:
    """An image `(3, H, W)` in [0, 1] as a PNG within a `data:` address."""
    return _png(to_image(image))


def frames_of(sample: Sample, count: int) -> list[str]:
    """An image, or so many frames of a video."""
    return [data_url(frame) for frame in some_frames(sample.media, count)]


def shown_of(sample: Sample, count: int) -> Shown:
    """A sample as it is shown by itself: of an edit, what was given comes first."""
    made = frames_of(sample, count)
    kind = "image" if sample.media.dim() == 3 else "video, as frames in order"
    given = sample.row.images
    if not given:
        return [(f"The {kind}:", made)]
    before = [(f"Given image{f' {n}' if len(given) > 1 else ''}:", [_file(path)]) for n, path in enumerate(given, 1)]
    return [*before, (f"The {kind} that was made of it:", made)]


def _file(path: Path) -> str:
    with Image.open(path) as picture:
        return _png(ImageOps.exif_transpose(picture).convert("RGB"))


def _png(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
