"""Scores over HTTP. The documentation's page Protocol says what is sent and answered.

    GET  /health          {"protocol": 1, "rewards": {label: {"group": bool}}}
    POST /score/{label}   samples as `wire` reads them, answered with {"scores": [score, …]}

Errors are {"error": …}, with status 400 (malformed), 401 (token), 404 (no such reward), 408 (too slow), 411 (without
a length), 413 (too large), 500 (the reward failed) or 503 (busy). A connection is closed after its answer.
"""

from __future__ import annotations

import hmac
import io
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from socketserver import BaseServer, ThreadingTCPServer
from typing import Any, Callable, Union

from flowfactory_scorer import PROTOCOL
from flowfactory_scorer.incoming import Incoming
from flowfactory_scorer.wire import PIXELS, Record, WireError, read

Score = Union[float, Mapping[str, Any], None]
"""A finite number; a mapping of such a `total` and its `parts` by name; or `None` where the reward does not apply."""
HEADERS = 10.0
"""Seconds in which a connection must have said what it wants."""
BODY = 120.0
"""Seconds in which all of a body must have come, or all of an answer be taken."""
CONNECTIONS = 256
"""Most connections at once."""
WAITING = 64
"""Most requests at once that wait for one reward."""
BODIES = 2
"""How many bodies of the largest size may be in memory at once."""
PIECE = 1 << 20
"""Most bytes of a body that are read at a time."""
LINGER = 1.0
"""Seconds for which who is refused may go on sending."""
GRACE = 3.0
"""Seconds that requests have to end in when the server is stopped."""


class Refused(Exception):
    """A request gets an error; `status` is that of HTTP."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass(eq=False)
class Served:
    """A reward, and who waits for it.

    score: from samples to a score each, in order. It raises `Refused`, or anything: that is 500.
    group: whether all samples of a request must be of one group.
    workers: how often it is asked at once. timeout: seconds that a request waits for its turn.
    """

    score: Callable[[Sequence[Record]], Sequence[Score]]
    group: bool = False
    workers: int = 1
    timeout: float = 600.0
    waiting: int = 0
    places: threading.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self.places = threading.Semaphore(self.workers)


class Server(ThreadingTCPServer):
    """Serves rewards at a socket that listens already.

    Args:
        rewards: by their labels. token: what clients must send as a bearer token; nothing when `None`.
        max_bytes: largest body of a request. max_pixels: most pixels of all its images and frames together.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(
        self,
        listening: socket.socket,
        rewards: Mapping[str, Served],
        token: str | None,
        max_bytes: int,
        max_pixels: int = PIXELS,
    ) -> None:
        BaseServer.__init__(self, listening.getsockname(), Handler)
        self.socket, self.rewards, self.token = listening, rewards, token
        self.max_bytes, self.max_pixels = max_bytes, max_pixels
        self.held, self.connected, self.changed = 0, 0, threading.Condition()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Begin a connection, or close it where there are too many."""
        with self.changed:
            full = self.connected >= CONNECTIONS
            self.connected += not full
        if full:
            return self.shutdown_request(request)
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # there can be no further thread
            self._left()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """One connection, from its beginning to its end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._left()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are no news."""

    def _left(self) -> None:
        with self.changed:
            self.connected -= 1
            self.changed.notify_all()

    def serve_until_stopped(self) -> None:
        """Serve until SIGTERM or SIGINT; what is under way then has `GRACE` seconds left."""

        def stop(number: int, frame: Any) -> None:
            threading.Thread(target=self.shutdown, daemon=True).start()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        self.serve_forever(0.1)
        self.socket.close()
        with self.changed:
            self.changed.wait_for(lambda: self.connected == 0, GRACE)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "flowfactory", ""

    def setup(self) -> None:
        super().setup()
        self.incoming = Incoming(self.connection, time.monotonic() + HEADERS)
        self.rfile: io.BufferedReader = io.BufferedReader(self.incoming)

    def do_GET(self) -> None:
        """`/health`"""
        self._answer(self._health)

    def do_POST(self) -> None:
        """`/score/{label}`"""
        self._answer(self._score)

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads which requests there were."""

    def _answer(self, make: Callable[[], Mapping[str, Any]]) -> None:
        self.close_connection = True
        try:
            self._authorise()
            status, said = 200, make()
        except Refused as refused:
            status, said = refused.status, {"error": str(refused)}
        content = json.dumps(said, allow_nan=False).encode()
        self.connection.settimeout(BODY)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)
        if status != 200:
            self._let_finish()

    def _let_finish(self) -> None:
        """Read on for a moment: a client that is still sending would lose the answer if the connection ended now."""
        self.connection.shutdown(socket.SHUT_WR)
        self.incoming.deadline = time.monotonic() + LINGER
        try:
            while self.rfile.read1(PIECE):
                pass
        except (TimeoutError, socket.timeout):
            pass

    def _authorise(self) -> None:
        token, given = self.server.token, self.headers.get("Authorization", "")
        expected = f"Bearer {token}".encode()
        if token is not None and not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), expected):
            raise Refused(401, "the token is missing or wrong")

    def _health(self) -> Mapping[str, Any]:
        if self.path != "/health":
            raise Refused(404, "there is nothing here; ask /health which rewards are served")
        kinds = {label: {"group": served.group} for label, served in self.server.rewards.items()}
        return {"protocol": PROTOCOL, "rewards": kinds}

    def _score(self) -> Mapping[str, Any]:
        prefix, _, label = self.path.rpartition("/")
        if prefix != "/score" or label not in self.server.rewards:
            raise Refused(404, f"there is no reward {label!r}")
        served, body = self.server.rewards[label], bytearray()
        try:
            self._read(body)
            with self._place(served):
                if self._gone():
                    raise Refused(503, "nobody waits for the scores any more")
                return {"scores": self._scores(served, body)}
        finally:
            with self.server.changed:
                self.server.held -= len(body)

    def _scores(self, served: Served, body: bytearray) -> list[Score]:
        try:
            records = read(bytes(body), self.server.max_pixels)
        except WireError as error:
            raise Refused(400, str(error)) from error
        if served.group and len({record.slot for record in records}) > 1:
            raise Refused(400, "a group reward is asked about one group at a time")
        try:
            return list(served.score(records))
        except Refused:
            raise
        except BaseException as error:  # in a thread nobody but the function ends anything
            raise Refused(500, f"{type(error).__name__}: {error}") from error

    @contextmanager
    def _place(self, served: Served) -> Iterator[None]:
        """One of a reward's places; another reward's requests wait elsewhere."""
        with self.server.changed:
            if served.waiting >= WAITING:
                raise Refused(503, f"{WAITING} requests wait for this reward already")
            served.waiting += 1
        taken = served.places.acquire(timeout=served.timeout)
        with self.server.changed:
            served.waiting -= 1
        if not taken:
            raise Refused(503, "the reward is busy")
        try:
            yield
        finally:
            served.places.release()

    def _read(self, body: bytearray) -> None:
        """Add what comes to `body`, and give up as soon as it is too large, too slow, or too much with all others."""
        limit, stated = self.server.max_bytes, self.headers.get("Content-Length", "")
        if not stated.isdecimal() or "Transfer-Encoding" in self.headers:
            raise Refused(411, "the request does not say how long its body is")
        if int(stated) > limit:
            raise Refused(413, f"the body has {stated} bytes; {limit} are allowed")
        self.incoming.deadline = time.monotonic() + BODY
        while missing := int(stated) - len(body):
            try:
                piece = self.rfile.read(min(missing, PIECE))
            except (TimeoutError, socket.timeout):
                raise Refused(408, f"the body did not come within {BODY:g} s") from None
            if not piece:
                raise Refused(400, "the body ended too early")
            body += piece
            with self.server.changed:
                self.server.held += len(piece)
                if self.server.held > BODIES * limit:
                    raise Refused(503, "too many bytes of requests are in memory already")

    def _gone(self) -> bool:
        """Whether the client has closed its end."""
        self.connection.setblocking(False)
        try:
            return not self.connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
