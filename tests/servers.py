"""Servers that say what they are told to, over real sockets."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence


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
