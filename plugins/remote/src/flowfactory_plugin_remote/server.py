"""The server side: rewards of this environment over HTTP.

    GET  /health          {"rewards": {label: {"group": bool}}}
    POST /score/{label}   samples as `wire` packs them, answered with {"scores": [number or null, …]}

Errors are {"error": …}, with status 400 (malformed), 401 (token), 404 (no such reward), 408 (too slow), 413 (too
large), 500 (the reward failed) or 503 (busy). A connection is closed after its answer.
"""

from __future__ import annotations

import asyncio
import hmac
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from threading import Thread
from typing import Any, TypeVar

import attrs
from flowfactory import Asked, RewardError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from flowfactory_plugin_remote.wire import PIXELS, WireError, unpack

T = TypeVar("T")

HEADERS = 10.0
"""Seconds in which a connection must have said what it wants."""
BODY = 120.0
"""Seconds in which all of a body must have come."""
CONNECTIONS = 256
"""Most connections at once."""
WAITING = 64
"""Most requests at once that wait for one reward."""
BODIES = 2
"""How many bodies of the largest size may be in memory at once."""
CLOSE = {"Connection": "close"}


@attrs.define(eq=False)
class Served:
    """A reward, and who waits for it."""

    asked: Asked
    places: asyncio.Semaphore
    waiting: int = 0


class RewardServer:
    """Loaded rewards as an ASGI application.

    Args:
        rewards: what is served, by their labels; each is asked `workers` times at once at most.
        token: what clients must send as a bearer token; nothing when `None`.
        max_bytes: largest body of a request. max_pixels: most pixels of all its images and frames together.
    """

    def __init__(self, rewards: Sequence[Asked], token: str | None, max_bytes: int, max_pixels: int = PIXELS) -> None:
        self._rewards = {a.entry.label: Served(a, asyncio.Semaphore(a.entry.workers)) for a in rewards}
        self._token, self._max_bytes, self._max_pixels, self._held = token, max_bytes, max_pixels, 0
        routes = [Route("/health", self._health), Route("/score/{label}", self._score, methods=["POST"])]
        self.app = Starlette(routes=routes, exception_handlers={HTTPException: _refused})

    async def _health(self, request: Request) -> Response:
        self._authorise(request)
        kinds = {label: {"group": served.asked.is_group} for label, served in self._rewards.items()}
        return JSONResponse({"rewards": kinds}, headers=CLOSE)

    async def _score(self, request: Request) -> Response:
        self._authorise(request)
        label = request.path_params["label"]
        if label not in self._rewards:
            raise HTTPException(404, f"there is no reward {label!r}")
        served, body = self._rewards[label], bytearray()
        try:
            await self._read(request, body)
            async with self._place(served):
                if await request.is_disconnected():
                    raise HTTPException(503, "nobody waits for the scores any more")
                scores = await _in_thread(lambda: _scores(served.asked, bytes(body), self._max_pixels))
        finally:
            self._held -= len(body)
        return JSONResponse({"scores": [None if math.isnan(score) else score for score in scores]}, headers=CLOSE)

    def _authorise(self, request: Request) -> None:
        given = request.headers.get("authorization", "")
        if self._token is not None and not hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
            raise HTTPException(401, "the token is missing or wrong")

    @asynccontextmanager
    async def _place(self, served: Served) -> AsyncIterator[None]:
        """One of a reward's places; another reward's requests wait elsewhere."""
        if served.waiting >= WAITING:
            raise HTTPException(503, f"{WAITING} requests wait for this reward already")
        served.waiting += 1
        try:
            await asyncio.wait_for(served.places.acquire(), served.asked.entry.timeout)
        except TimeoutError:
            raise HTTPException(503, "the reward is busy") from None
        finally:
            served.waiting -= 1
        try:
            yield
        finally:
            served.places.release()

    async def _read(self, request: Request, body: bytearray) -> None:
        """Add what comes to `body`, and give up as soon as it is too large, too slow, or too much with all others."""
        limit = self._max_bytes
        stated = request.headers.get("content-length", "0")
        if stated.isdecimal() and int(stated) > limit:
            raise HTTPException(413, f"the body has {stated} bytes; {limit} are allowed")
        try:
            async with asyncio.timeout(BODY):
                async for chunk in request.stream():
                    body += chunk
                    self._held += len(chunk)
                    if len(body) > limit:
                        raise HTTPException(413, f"the body has more than {limit} bytes")
                    if self._held > BODIES * limit:
                        raise HTTPException(503, "too many bytes of requests are in memory already")
        except TimeoutError:
            raise HTTPException(408, f"the body did not come within {BODY:g} s") from None


class Patient(H11Protocol):
    """HTTP to somebody who must say within `HEADERS` seconds what they want."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(HEADERS, self._give_up)

    def _give_up(self) -> None:
        if self.cycle is None:
            self.transport.close()


async def _in_thread(call: Callable[[], T]) -> T:
    """What `call` returns, made in a thread that keeps nobody from leaving and that no other request waits for."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def work() -> None:
        result: Any = None
        error: BaseException | None = None
        try:
            result = call()
        except Exception as raised:
            error = raised
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, error)

    Thread(target=work, daemon=True).start()
    return await future


def _scores(asked: Asked, body: bytes, max_pixels: int) -> list[float]:
    try:
        samples = unpack(body, max_pixels)
    except WireError as error:
        raise HTTPException(400, str(error)) from error
    if asked.is_group and len({sample.slot for sample in samples}) > 1:
        raise HTTPException(400, "a group reward is asked about one group at a time")
    try:
        return [score for part in asked.parts(samples) for score in asked.call(part)]
    except RewardError as error:
        raise HTTPException(500, str(error)) from error


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, headers=CLOSE)
