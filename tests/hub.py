"""A hub on this machine: what huggingface_hub asks of a server to list and fetch the files of a dataset."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Commits = dict[str, Mapping[str, bytes]]
"""For each commit of the one dataset, its files."""


class Hub:
    """The dataset `owner/name`; `owner/closed` asks for consent. Its branches may be moved."""

    def __init__(self) -> None:
        self.commits: Commits = {}
        self.branches: dict[str, str] = {}
        self.asked: list[str] = []
        self.url = ""

    def commit(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        """A new commit, to which a branch points."""
        number = hashlib.sha1(repr((sorted(files.items()), len(self.commits))).encode()).hexdigest()
        self.commits[number], self.branches[branch] = dict(files), number
        return number

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body."""
        self.asked.append(path)
        parts = unquote(urlsplit(path).path).strip("/").removeprefix("api/").split("/")
        if parts[1:3] == ["owner", "closed"]:
            return 403, {"X-Error-Code": "GatedRepo"}, b"{}"
        if parts[:3] != ["datasets", "owner", "name"]:
            return 401, {"X-Error-Code": "RepoNotFound"}, b"{}"
        what, rest = (parts[3], "/".join(parts[4:])) if len(parts) > 4 else ("revision", "main")
        commit = next((c for name, c in [*self.branches.items(), *zip(self.commits, self.commits, strict=True)]
                       if rest == name or rest.startswith(f"{name}/")), None)  # fmt: skip
        if commit is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        files = self.commits[commit]
        if what == "resolve":
            data = files[rest.partition("/")[2]]
            return 200, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": commit}, data
        return 200, {}, json.dumps(_listed(files) if what == "tree" else _about(commit, files)).encode()


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
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
