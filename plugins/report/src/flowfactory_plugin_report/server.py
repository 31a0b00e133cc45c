"""`flowfactory watch`: the page about a run, served to this machine while the run goes on.

It listens at the loopback address alone, answers only requests that name it, reads of the run's folder what the page
shows and nothing else, writes nothing, and does a bounded amount of work at a time.
"""

from __future__ import annotations

import functools
import io
import math
import re
import shutil
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO, ClassVar
from urllib.parse import parse_qs, urlsplit

import attrs
from flowfactory import History, RunError, Shot, read_runs

from flowfactory_plugin_report import tables
from flowfactory_plugin_report.curves import is_said_by_its_only_reward, sections
from flowfactory_plugin_report.gallery import FRAMES, Limits, Picture, encoded, galleries, shrunk
from flowfactory_plugin_report.numbers import number
from flowfactory_plugin_report.page import Live, page
from flowfactory_plugin_report.writing import Refused

LOOPBACK, PORT = "127.0.0.1", 8390
OF_A_RUN = "plan.json"
PNG = b"\x89PNG\r\n\x1a\n"
GLANCE = 0.2
"""Seconds between looks at whether a run has begun."""
AT_A_TIME = 8
"""Most requests that are answered at a time; others wait."""
CONNECTIONS = 64
"""Most connections; others are closed."""
SECONDS = 20
"""How long a client may take for a request."""
LIMITS = Limits(cards=32, epochs=40, size=1 << 40)
"""Of galleries whose pictures are fetched one by one."""
KEPT = 64 << 20
"""Most bytes of small pictures that are kept, about."""
RECENT = 10
"""Epochs by which the time that is left is judged."""
PICTURE = re.compile(r"/(samples|small)/((?:eval|epoch)-\d{1,9})/(\d{1,9})\.(png|mp4)", re.ASCII)
TYPES = {"png": "image/png", "jpeg": "image/jpeg", "mp4": "video/mp4"}


def listen(folder: Path, port: int | None, wait: float = 0) -> Server:
    """A server of the page about the run in a folder.

    Args:
        port: where; `PORT`, or a free one where that is taken, when absent. wait: seconds for the run to begin.

    Raises:
        RunError: it is not the folder of a run, or cannot be read; or the port is taken.
    """
    source, deadline = Source(folder.absolute()), time.monotonic() + wait
    while not (folder / OF_A_RUN).is_file() and time.monotonic() < deadline:
        time.sleep(GLANCE)
    source.history()
    try:
        return Server(source, PORT if port is None else port)
    except OSError as error:
        if port is None:
            return Server(source, 0)
        hint = "choose another --port, or 0 for a free one"
        raise Refused(f"cannot listen at {LOOPBACK}:{port}: {error.strerror or error}; {hint}") from error


class Source:
    """What is served of one run's folder: the page, made anew when its files change, and pictures."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._made: dict[bool, tuple[str, str]] = {}
        self._small: OrderedDict[tuple[Path, int], tuple[str, bytes]] = OrderedDict()

    def history(self) -> History:
        """The run as it is now; samples of epochs that are over."""
        (found,) = read_runs([self.folder])
        return found

    def version(self) -> str:
        """Another whenever an epoch ends, the run ends or goes on; the same otherwise."""
        run = self.history()
        return f"{max(run.metrics, default=0)}-{len(run.metrics)}-{tables.state(run)}"

    def page(self, code: bool) -> str:
        """The whole page, with or without the library that draws."""
        with self._lock:
            version = self.version()
            if code not in self._made or self._made[code][0] != version:
                self._made[code] = (version, self._page(version, code))
            return self._made[code][1]

    def _page(self, version: str, code: bool) -> str:
        run = self.history()
        pictures = galleries([run], self._picture, LIMITS)
        pictures.sort(key=lambda gallery: gallery.title.startswith("Held-out"))
        return page([run], sections([run]), pictures, self.folder, _live(run, version), code)

    def _picture(self, shot: Shot) -> Picture:
        """A sample's picture by its address; its size is read, the rest is when it is asked for."""
        with shot.file.open("rb") as file:
            head = file.read(24)
        # One that is damaged is shown in grey, as a square.
        width, height = struct.unpack(">II", head[16:24]) if head.startswith(PNG) and len(head) == 24 else (1, 1)
        frames = shot.frames if width % shot.frames == 0 and width and height else 1
        address = f"small/{shot.file.parent.name}/{shot.file.name}"
        return Picture(address, max(1, width // frames), max(1, height), min(frames, FRAMES))

    def small(self, epoch: str, name: str) -> tuple[str, bytes] | None:
        """A sample's picture as the page shows it: format and content."""
        kind, _, digits = epoch.partition("-")
        run = self.history()
        if int(digits) not in run.kept(kind):
            return None
        shots = {shot.file.name: shot for shot in run.shots(kind, int(digits), LIMITS.cards)}
        if name not in shots:
            return None
        file = shots[name].file
        key = file, file.stat().st_mtime_ns
        with self._lock:
            if key not in self._small:
                self._small[key] = encoded(shrunk(shots[name])[0])
                while sum(len(content) for _, content in self._small.values()) > KEPT:
                    self._small.popitem(last=False)
            self._small.move_to_end(key)
            return self._small[key]

    def file(self, epoch: str, name: str) -> Path | None:
        """A kept sample's own file, if no link leads out of the run's folder."""
        file = self.folder / "samples" / epoch / name
        inside = file.is_file() and file.resolve().is_relative_to(self.folder.resolve())
        return file if inside else None


def _live(run: History, version: str) -> Live:
    epochs = int(run.plan["spec"]["run"]["epochs"])
    epoch, state = max(run.metrics, default=0), tables.state(run)
    left = time_left(run, epochs - epoch) if state == "running" else ""
    return Live(version, epoch, epochs, state, left, ", ".join(_newest(run)))


def _newest(run: History) -> Iterator[str]:
    """The last score of each kind, totals first, and when it was if not just now."""
    last = max(run.metrics, default=0)
    for name in sorted(run.names(), key=lambda name: not name.endswith("/score")):
        total = name in ("reward/score", "eval/score") and not is_said_by_its_only_reward([run], name)
        if total or re.fullmatch("(reward|eval)/[^/]+/mean", name):
            known = [(epoch, value) for epoch, value in run.series(name) if math.isfinite(value)]
            title = name.removesuffix("/mean").replace("eval/", "held-out ").replace("reward/", "training ")
            for epoch, value in known[-1:]:
                yield f"{title} {number(value)}{'' if epoch == last else f' (epoch {epoch})'}"


def time_left(run: History, epochs: int) -> str:
    """About how long that many more epochs take, by the last ones; empty where nobody knows."""
    past = [line for epoch, line in run.metrics.items() if epoch > 0][-RECENT:]
    took = [sum(value for name, value in line.items() if name.startswith("time/")) for line in past]
    seconds = math.fsum(took) / len(took) * epochs if took else math.nan
    if not math.isfinite(seconds) or epochs < 1:
        return ""
    minutes = max(1, round(seconds / 60))
    return f"about {f'{minutes // 60} h ' if minutes >= 60 else ''}{minutes % 60} min left"


@attrs.frozen
class Answer:
    """What is sent back: its content, or that of a file."""

    status: HTTPStatus
    content: bytes | Path = b""
    type: str = "text/plain; charset=utf-8"


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    server: Server
    server_version, sys_version = "flowfactory", ""
    protocol_version = "HTTP/1.1"
    timeout = SECONDS
    HEADERS: ClassVar[dict[str, str]] = {
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
    }

    def do_GET(self) -> None:
        self._answer(with_content=True)

    def do_HEAD(self) -> None:
        self._answer(with_content=False)

    def _answer(self, with_content: bool) -> None:
        with self.server.places:
            try:
                answer = self._found()
            except (RunError, OSError) as error:
                answer = Answer(HTTPStatus.SERVICE_UNAVAILABLE, f"{error}\n".encode())
        self.send_response(answer.status)
        for name, value in {**self.HEADERS, "Content-Type": answer.type}.items():
            self.send_header(name, value)
        with _opened(answer.content) as content:
            length = content.seek(0, io.SEEK_END)
            content.seek(0)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if with_content:
                shutil.copyfileobj(content, self.wfile)

    def _found(self) -> Answer:
        if self.headers.get("Host") not in self.server.names:
            return Answer(HTTPStatus.MISDIRECTED_REQUEST, b"this server has another name\n")
        address, source = urlsplit(self.path), self.server.source
        if address.path == "/":
            return _html(source.page(code=True))
        if address.path == "/now":
            known = parse_qs(address.query).get("version", [""])[0] == source.version()
            return Answer(HTTPStatus.NO_CONTENT) if known else _html(source.page(code=False))
        if (asked := PICTURE.fullmatch(address.path)) is not None:
            return _sample(source, *asked.groups())
        return Answer(HTTPStatus.NOT_FOUND, b"there is nothing here\n")

    def log_message(self, *_: Any) -> None:
        """Nobody reads a line for every picture."""


def _opened(content: bytes | Path) -> BinaryIO:
    return content.open("rb") if isinstance(content, Path) else io.BytesIO(content)


def _html(text: str) -> Answer:
    return Answer(HTTPStatus.OK, text.encode(), "text/html; charset=utf-8")


def _sample(source: Source, size: str, epoch: str, stem: str, form: str) -> Answer:
    if size == "small" and form == "png":
        found = source.small(epoch, f"{stem}.png")
        if found is not None:
            return Answer(HTTPStatus.OK, found[1], TYPES[found[0]])
    elif size == "samples" and (file := source.file(epoch, f"{stem}.{form}")) is not None:
        return Answer(HTTPStatus.OK, file, TYPES[form])
    return Answer(HTTPStatus.NOT_FOUND, b"there is no such sample\n")


class Server(ThreadingHTTPServer):
    """Listens at the loopback address.

    names: what a request may call it, so that no page from elsewhere reaches it by another name.
    """

    daemon_threads = True
    request_queue_size = 32

    def __init__(self, source: Source, port: int) -> None:
        super().__init__((LOOPBACK, port), Handler)
        self.source = source
        self.places = threading.BoundedSemaphore(AT_A_TIME)
        self.connections = threading.BoundedSemaphore(CONNECTIONS)
        self.names = {f"{name}:{self.server_port}" for name in (LOOPBACK, "localhost")}

    @functools.cached_property
    def address(self) -> str:
        """Where it is."""
        return f"http://{LOOPBACK}:{self.server_port}/"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own, if there are not too many."""
        if self.connections.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """The thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle is no news."""
