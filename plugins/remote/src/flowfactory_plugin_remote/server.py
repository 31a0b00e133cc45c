"""The server side: rewards of this environment over HTTP.

    GET  /health          {"rewards": {label: {"group": bool}}}
    POST /score/{label}   samples as `wire` packs them, answered with {"scores": [number or null, …]}

Errors are {"error": …}, with status 400 (malformed), 401 (token), 404 (no such reward), 413 (too large) or 500 (the
reward failed).
"""

from __future__ import annotations

import hmac
import math
from collections.abc import Sequence

from flowfactory import Asked, RewardError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from flowfactory_plugin_remote.wire import WireError, unpack


class RewardServer:
    """Loaded rewards as an ASGI application.

    Args:
        rewards: what is served, by their labels; each is asked `workers` times at once at most.
        token: what clients must send as a bearer token; nothing when `None`.
        max_bytes: largest body of a request.
    """

    def __init__(self, rewards: Sequence[Asked], token: str | None, max_bytes: int) -> None:
        self._rewards = {asked.entry.label: asked for asked in rewards}
        self._token, self._max_bytes = token, max_bytes
        routes = [Route("/health", self._health), Route("/score/{label}", self._score, methods=["POST"])]
        self.app = Starlette(routes=routes, exception_handlers={HTTPException: _refused})

    async def _health(self, request: Request) -> Response:
        self._authorise(request)
        return JSONResponse({"rewards": {label: {"group": a.is_group} for label, a in self._rewards.items()}})

    async def _score(self, request: Request) -> Response:
        self._authorise(request)
        label = request.path_params["label"]
        if label not in self._rewards:
            raise HTTPException(404, f"there is no reward {label!r}")
        body = await self._body(request)
        scores = await run_in_threadpool(_scores, self._rewards[label], body)
        return JSONResponse({"scores": [None if math.isnan(score) else score for score in scores]})

    def _authorise(self, request: Request) -> None:
        given = request.headers.get("authorization", "")
        if self._token is not None and not hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
            raise HTTPException(401, "the token is missing or wrong")

    async def _body(self, request: Request) -> bytes:
        """The body, given up as soon as it is too large."""
        limit, body = self._max_bytes, bytearray()
        stated = request.headers.get("content-length", "0")
        if stated.isdigit() and int(stated) > limit:
            raise HTTPException(413, f"the body has {stated} bytes; {limit} are allowed")
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise HTTPException(413, f"the body has more than {limit} bytes")
        return bytes(body)


def _scores(asked: Asked, body: bytes) -> list[float]:
    try:
        samples = unpack(body)
    except WireError as error:
        raise HTTPException(400, str(error)) from error
    if asked.is_group and len({sample.slot for sample in samples}) > 1:
        raise HTTPException(400, "a group reward is asked about one group at a time")
    try:
        return asked.call(samples)
    except RewardError as error:
        raise HTTPException(500, str(error)) from error


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code)
