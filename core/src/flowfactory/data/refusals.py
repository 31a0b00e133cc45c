"""Why the hub does not give what it was asked for, in words, with what can be done. Its library comes when used."""

from __future__ import annotations

import json
import logging
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import attrs

log = logging.getLogger("flowfactory")

T = TypeVar("T")

_ASKED = re.compile(
    r"/(api/)?((?P<kind>datasets|models)/)?(?P<name>.+?)(/(?P<what>resolve|revision|tree|auth-check)\b/?(?P<rest>.*))?"
)
"""The path of a request: of which repository, and what of it."""

_NETWORK = ("httpx", "httpcore", "requests", "urllib3")
"""How the names of the modules begin that connections are made with."""

_AGAIN = "try again, what has come is kept; or name a folder that holds it"
_NOT_THE_HUB = "log in to the network if it asks for that, and see HF_ENDPOINT and HTTPS_PROXY; or name a folder"


def end_waiting() -> None:
    """Let the hub's library, and those that ask by it, wait for no answer longer than it waits for a file's head.

    It waits for ever for what a repository has, as where a firewall lets nothing through and says nothing. To be called
    before each question: its session is another one after a fork, or when it was closed.
    """
    from huggingface_hub import get_session

    asked = get_session().event_hooks["request"]
    if _limit not in asked:
        asked.append(_limit)


def _limit(request: Any) -> None:
    from huggingface_hub import constants

    limits = request.extensions.get("timeout", {})
    limits |= {step: constants.HF_HUB_ETAG_TIMEOUT for step, most in limits.items() if most is None}


def fetched(load: Callable[[], T], name: str, alone: bool = True) -> T:
    """What is loaded with the hub's help; where the hub cannot be asked, by what is on this disk, and that is said.

    Args:
        load: fails where a file is missing, as a download of whatever a repository has does not.
        name, alone: see `refusal`.

    Raises:
        Exception: what was raised at first, where this disk does not have all of it.
    """
    end_waiting()
    try:
        return load()
    except Exception as error:  # of whatever library the connection is made with
        if (refused := refusal(error, name, alone=alone)) is None or refused.final:
            raise
        with suppress(Exception), _offline():
            made = load()
            log.warning("%s: %s; what is on this disk is used", name, refused.why)
            return made
        raise


@contextmanager
def _offline() -> Iterator[None]:
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@attrs.frozen
class Refusal:
    """Why the hub did not give something.

    name: of what: a repository. why: to be said after it. hint: what can be done.
    final: whether the hub has answered, so that it will say the same again.
    """

    name: str
    why: str
    hint: str
    final: bool = True

    @property
    def what(self) -> str:
        """What is the matter, without what can be done."""
        return f"{self.name} {self.why}" if self.final else f"{self.name} is not on this disk, and {self.why}"

    def __str__(self) -> str:
        return f"{self.what}; {self.hint}"


def refusal(error: BaseException, name: str, revision: str | None = None, alone: bool = True) -> Refusal | None:
    """What the hub has to do with an error that its library, or one that asked it by that, has raised; or nothing.

    Args:
        name: what was asked for, where the error does not say which repository it is about.
        alone: whether nothing but the hub was asked; connections elsewhere are none of its business.
    """
    from huggingface_hub import constants, errors

    for each in _causes(error):
        if isinstance(each, errors.OfflineModeIsEnabled):
            return Refusal(name, "HF_HUB_OFFLINE forbids to ask the hub", "unset it, or name a folder", final=False)
        if isinstance(each, errors.HfHubHTTPError) and getattr(each, "response", None) is not None:
            return _answered(each, name, revision)
        lost = isinstance(each, ConnectionError | TimeoutError) or type(each).__name__ == "XetDownloadError"
        if (lost or type(each).__module__.startswith(_NETWORK)) and (alone or _at(each).startswith(constants.ENDPOINT)):
            told = " ".join(f"{type(each).__name__}: {each}".split())
            why = f"the connection to the hub at {constants.ENDPOINT} failed ({told[:200]})"
            return Refusal(name, why, _AGAIN, final=False)
        if isinstance(each, json.JSONDecodeError) and _through_the_network(each, alone):
            why = f"what answers at {constants.ENDPOINT} is not the hub: it sends a page where the hub sends JSON"
            return Refusal(name, why, _NOT_THE_HUB, final=False)
    if any(isinstance(each, errors.LocalEntryNotFoundError) for each in _causes(error)):
        return Refusal(name, "the hub cannot be asked", _AGAIN, final=False)
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came of, the first cause last."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _at(error: Any) -> str:
    """The address that was asked, where an error of a connection says it."""
    try:
        return str(error.request.url)
    except (AttributeError, RuntimeError):
        return ""


def _through_the_network(error: BaseException, alone: bool) -> bool:
    """Whether it was raised while an answer of the hub was read, not a file."""
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    of_the_hub = alone or any(module.startswith("huggingface_hub") for module in modules)
    return of_the_hub and any(module.startswith(_NETWORK) for module in modules)


def _answered(error: Any, name: str, revision: str | None) -> Refusal:
    from huggingface_hub import constants, errors

    page, status = f"{constants.ENDPOINT}/{name}", int(error.response.status_code)
    asked, file = urlsplit(str(error.response.request.url)), ""
    found = _ASKED.fullmatch(unquote(asked.path))
    if found and found["name"].count("/") < 2 and str(error.response.request.url).startswith(constants.ENDPOINT):
        name = found["name"]
        page = f"{constants.ENDPOINT}/{'datasets/' if found['kind'] == 'datasets' else ''}{name}"
        file = found["rest"].partition("/")[2] if found["what"] == "resolve" else ""
    login = "log in with `hf auth login`"
    match error:
        case errors.GatedRepoError():
            return Refusal(name, "is gated", f"accept its terms at {page} and {login}")
        case errors.RevisionNotFoundError():
            return Refusal(name, f"has no revision {revision!r} at {page}", "take one that is listed there")
        case errors.RepositoryNotFoundError():
            return Refusal(
                name, f"is not at {page}, or is private and you are not logged in", f"correct it, or {login}"
            )
        case errors.EntryNotFoundError():
            return Refusal(name, f"has no {file or 'such file'} at {page}", "see there what it has")
    if status == 429:
        return Refusal(name, "the hub was asked too often (429)", f"try again later, or {login}", final=False)
    if status >= 500:
        return Refusal(name, f"the hub fails ({status})", _AGAIN, final=False)
    why = f"is not given: the hub answers {status} at {page}"
    return Refusal(name, why, f"{login} again, or see whether your token may read it")
