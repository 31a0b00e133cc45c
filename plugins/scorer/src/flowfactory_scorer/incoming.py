"""What comes in on a connection, read until a deadline however slowly it comes."""

from __future__ import annotations

import io
import socket
import time
from typing import Any


class Incoming(io.RawIOBase):
    """What comes in on a connection, until a deadline."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self.connection, self.deadline = connection, deadline

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Wait for bytes.

        Raises:
            TimeoutError: the deadline has passed.
        """
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise socket.timeout("timed out")
        self.connection.settimeout(left)
        return self.connection.recv_into(buffer)
