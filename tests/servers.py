"""Servers that say what they are told to, over real sockets."""

from __future__ import annotations

import base64
import io
import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

Reply = Callable[[dict[str, Any], int], tuple[int, Any]]
"""`(request, number of the request) -> (status, text, or probabilities of the first token)`."""


class Chat:
    """Answers chat completions, as OpenAI's protocol has them.

    requests: their bodies. tokens: what they were authorised by. busiest: most that were answered at the same time.
    listing: the status of the list of models.
    """

    def __init__(self, reply: Reply) -> None:
        self.requests: list[dict[str, Any]] = []
        self.tokens: list[str | None] = []
        self.busy = self.busiest = 0
        self.listing = 501
        lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(outer.requests)
                    outer.requests.append(body)
                    outer.tokens.append(self.headers["Authorization"])
                    outer.busy += 1
                    outer.busiest = max(outer.busiest, outer.busy)
                status, said = reply(body, number)
                with lock:
                    outer.busy -= 1
                right = status == 200 and self.path == "/v1/chat/completions"
                sent = json.dumps({"choices": [choice(said)]} if right else {}).encode()
                with suppress(BrokenPipeError):
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(sent)))
                    self.end_headers()
                    self.wfile.write(sent)

            def do_GET(self) -> None:
                self.send_error(outer.listing)

            def log_message(self, *args: Any) -> None:
                """Keep the test's output clean."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def serving() -> Iterator[Callable[[Reply], Chat]]:
    """For a fixture: starts chat servers, which end with the test."""
    running: list[Chat] = []

    def start(reply: Reply) -> Chat:
        running.append(Chat(reply))
        return running[-1]

    yield start
    for server in running:
        server.close()


def choice(said: Any) -> dict[str, Any]:
    """One choice of a completion: a text; or the first token, as likely as a mapping says."""
    if not isinstance(said, Mapping):
        return {"message": {"role": "assistant", "content": said}}
    tops = [{"token": token, "logprob": math.log(p)} for token, p in said.items()]
    tokens = [{**tops[0], "top_logprobs": tops}] if tops else []
    return {"message": {"role": "assistant", "content": "?"}, "logprobs": {"content": tokens}}


def question(request: Mapping[str, Any]) -> str:
    """The last text of a request."""
    text: str = request["messages"][0]["content"][-1]["text"]
    return text


def titles(request: Mapping[str, Any]) -> list[str]:
    """The texts that introduce pictures."""
    return [part["text"] for part in request["messages"][0]["content"][:-1] if part["type"] == "text"]


def brightness(request: Mapping[str, Any]) -> list[float]:
    """How bright the pictures of a request are, in order, from 0 to 255."""
    urls = [part["image_url"]["url"] for part in request["messages"][0]["content"] if part["type"] == "image_url"]
    pictures = [Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))) for url in urls]
    return [float(np.asarray(picture).mean()) for picture in pictures]


class Raw:
    """A server that says the given bytes to everybody, piece by piece with a pause in between.

    heard: the last request, whole where it was sent at once. calls: how many there were.
    """

    def __init__(self, *pieces: bytes, pause: float = 0.0) -> None:
        self.heard, self.calls = b"", 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self.serve, args=(pieces, pause), daemon=True).start()

    def serve(self, pieces: Sequence[bytes], pause: float) -> None:
        while True:
            connection, _ = self.socket.accept()
            self.calls += 1
            self.heard = heard(connection)
            try:
                for piece in pieces:
                    connection.sendall(piece)
                    time.sleep(pause)
            except OSError:
                pass  # the client has gone
            connection.close()


def answer(content: bytes, status: str = "200 OK", *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", "Connection: close", *headers, "", ""]
    return "\r\n".join(head).encode() + content


def heard(connection: socket.socket) -> bytes:
    """A request, to the end of the body it announces."""
    whole = b""
    while piece := connection.recv(65536):
        whole += piece
        head, ended, rest = whole.partition(b"\r\n\r\n")
        lengths = [int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
        if ended and len(rest) >= sum(lengths):
            break
    return whole
