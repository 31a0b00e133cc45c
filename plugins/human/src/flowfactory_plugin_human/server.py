"""The page's server, on this machine only: whoever knows its address, which nobody can guess, may answer.

Imports no torch.
"""

from __future__ import annotations

import json
import secrets
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

from flowfactory_plugin_human.desk import Desk, NoAnswer

PAGE = Path(__file__).parent / "page"
FILES = {
    "": ("index.html", "text/html; charset=utf-8"),
    "page.js": ("page.js", "text/javascript; charset=utf-8"),
    "page.css": ("page.css", "text/css; charset=utf-8"),
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
LONGEST = 10_000
"""Bytes of an answer."""
GLANCE = 10.0
"""Seconds that a page waits for a question before it asks again."""
IDLE = 60.0
"""Seconds without a word after which a connection ends."""


class Server:
    """Serves a desk.

    Raises:
        OSError: the port is taken.
    """

    def __init__(self, desk: Desk, port: int) -> None:
        self._token = secrets.token_urlsafe(18)
        self._server = _Server(("127.0.0.1", port), _handler(desk, self._token))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/{self._token}/"
        Thread(target=self._server.serve_forever, args=(0.1,), name="the page for people", daemon=True).start()

    def close(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    allow_reuse_address = True


def _handler(desk: Desk, token: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = IDLE

        def do_GET(self) -> None:
            place = self._place()
            if place is None:
                return self._say(404, {"error": "there is nothing here"})
            path, query = place
            if path in FILES:
                name, kind = FILES[path]
                return self._send(200, (PAGE / name).read_bytes(), kind)
            if path == "task":
                task, waiting = desk.next(query.get("page", [""])[0][:64], GLANCE)
                return self._say(200, {"task": None if task is None else task.as_json(), "waiting": waiting})
            picture = _picture(desk, path)
            if picture is None:
                return self._say(404, {"error": "this question is answered already"})
            return self._send(200, picture, "image/png")

        def do_POST(self) -> None:
            place, length = self._place(), self.headers.get("Content-Length", "")
            if place is None or place[0] != "answer" or not self._from_the_page():
                return self._say(404, {"error": "there is nothing here"})
            if not length.isdecimal() or int(length) > LONGEST:
                return self._say(413, {"error": "an answer is short"})
            try:
                said = json.loads(self.rfile.read(int(length)))
                taken = desk.answer(str(said["name"]), said["answer"])
            except (NoAnswer, ValueError, LookupError, TypeError, RecursionError) as error:
                return self._say(400, {"error": str(error)})
            return self._say(200, {"taken": taken})

        def _place(self) -> tuple[str, dict[str, list[str]]] | None:
            """What is asked for; none unless by the right address, as no page elsewhere can know it."""
            parts = urlsplit(self.path)
            _, given, *rest = parts.path.split("/", 2) if parts.path.count("/") >= 2 else ("", "", "")
            host = self.headers.get("Host", "").rpartition(":")[0]
            right = secrets.compare_digest(given.encode(), token.encode())
            return (rest[0], parse_qs(parts.query)) if right and host in ("127.0.0.1", "localhost") else None

        def _from_the_page(self) -> bool:
            return self.headers.get("Content-Type") == "application/json"

        def _say(self, status: int, what: Any) -> None:
            self._send(status, json.dumps(what).encode(), "application/json")

        def _send(self, status: int, content: bytes, kind: str) -> None:
            self.send_response(status)
            head = {"Content-Type": kind, "Content-Length": str(len(content)), "Content-Security-Policy": POLICY}
            head |= {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}
            for name, value in head.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            """Nobody wants to read of requests."""

    return Handler


def _picture(desk: Desk, path: str) -> bytes | None:
    """`NAME/given/0`, `NAME/shown/2`"""
    name, _, rest = path.partition("/")
    side, _, number = rest.partition("/")
    task = desk.find(name)
    if task is None or side not in ("given", "shown") or not number.isdecimal():
        return None
    pictures = task.given if side == "given" else task.shown
    return pictures[int(number)] if int(number) < len(pictures) else None
