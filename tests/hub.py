"""A hub on this machine: what huggingface_hub asks of a server to list and fetch the files of a repository."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import attrs

Commits = dict[str, Mapping[str, bytes]]
"""For each commit of the one repository, its files."""


@attrs.frozen
class Trouble:
    """What becomes of an answer.

    status: another one, with the hub's own code for it. after: the connection ends with so many bytes of the body sent,
    with -1 before a word. page: what is sent for any answer, as where a network asks who one is.
    """

    status: int = 0
    code: str = ""
    after: int | None = None
    page: bytes = b""


class Hub:
    """The model and dataset `owner/name`; `owner/closed` asks for consent. Its branches may be moved.

    troubles: by what a request's path has in it. asked: paths. sent: bytes of files, by their names.
    """

    def __init__(self) -> None:
        self.commits: Commits = {}
        self.branches: dict[str, str] = {}
        self.troubles: dict[str, Trouble] = {}
        self.asked: list[str] = []
        self.sent: dict[str, int] = {}
        self.url = ""

    def commit(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        """A new commit, to which a branch points."""
        number = hashlib.sha1(repr((sorted(files.items()), len(self.commits))).encode()).hexdigest()
        self.commits[number], self.branches[branch] = dict(files), number
        return number

    def commit_folder(self, folder: Path) -> str:
        """A new commit of the files in a folder."""
        return self.commit({str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()})

    def trouble(self, path: str) -> Trouble:
        """What becomes of the answer to this request."""
        return next((trouble for part, trouble in self.troubles.items() if part in unquote(path)), Trouble())

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body."""
        self.asked.append(path)
        if status := (trouble := self.trouble(path)).status:
            return status, {"X-Error-Code": trouble.code} if trouble.code else {}, b"{}"
        if trouble.page:
            return 200, {"Content-Type": "text/html"}, trouble.page
        parts = unquote(urlsplit(path).path).strip("/").removeprefix("api/").split("/")
        parts = parts[1:] if parts[0] in ("datasets", "models") else parts
        if parts[:2] == ["owner", "closed"]:
            return 403, {"X-Error-Code": "GatedRepo"}, b"{}"
        if parts[:2] != ["owner", "name"]:
            return 401, {"X-Error-Code": "RepoNotFound"}, b"{}"
        what, rest = (parts[2], "/".join(parts[3:])) if len(parts) > 3 else ("revision", "main")
        commit = next((c for name, c in [*self.branches.items(), *zip(self.commits, self.commits, strict=True)]
                       if rest == name or rest.startswith(f"{name}/")), None)  # fmt: skip
        if commit is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        files = self.commits[commit]
        if what == "auth-check":
            return 200, {}, b"{}"
        if what != "resolve":
            return 200, {}, json.dumps(_listed(files) if what == "tree" else _about(commit, files)).encode()
        data = files.get(rest.partition("/")[2])
        if data is None:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b"{}"
        return 200, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": commit}, data


def _about(commit: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    return {"id": "owner/name", "sha": commit, "siblings": [{"rfilename": name} for name in files], "tags": []}


def _listed(files: Mapping[str, bytes]) -> list[dict[str, Any]]:
    return [
        {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        for name, data in files.items()
    ]


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = hub.answer(self.path)
            after, whole = hub.trouble(self.path).after, body
            if after == -1:
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            if status == 200 and (asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))):
                begin, end = int(asked[1]), min(int(asked[2] or len(body)), len(body) - 1)
                status, body = 206, body[begin : end + 1]
                headers["Content-Range"] = f"bytes {begin}-{end}/{len(whole)}"
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[:after])
                self.close_connection = True
                if "/resolve/" in self.path and status in (200, 206):
                    name = unquote(self.path).partition("/resolve/")[2].partition("/")[2]
                    hub.sent[name] = hub.sent.get(name, 0) + len(body[:after])

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
