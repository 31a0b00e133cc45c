"""`flowfactory-scorer ./hps.py:score`: serve a function until it is stopped."""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
import signal
import socket
import sys
import threading

from flowfactory_scorer import DEVICE, TOKEN


def main(arguments: list[str] | None = None) -> int:
    """Load the function, then serve it; nothing is answered before it is loaded."""
    options = _parser().parse_args(arguments)
    token = os.environ.get(TOKEN) or None
    if token is not None and re.fullmatch(r"[\x21-\x7e]+", token) is None:
        return _refuse(f"the environment variable {TOKEN} holds a space or another character that no token has")
    if token is None and options.fd is None and not is_loopback(options.host):
        return _refuse(f"{options.host} can be reached from elsewhere: set {TOKEN} to a secret first")
    os.environ[DEVICE] = options.device
    if options.fd is not None:
        _end_with_stdin()
    from flowfactory_scorer.function import load, scorer
    from flowfactory_scorer.server import Served, Server

    listening = _listening(options)
    served = Served(scorer(load(options.function)), workers=options.workers, timeout=options.timeout)
    megabytes, megapixels = options.max_megabytes * 1_000_000, options.max_megapixels * 1_000_000
    server = Server(listening, {options.label: served}, token, megabytes, megapixels)
    address = f"http://{options.host}:{listening.getsockname()[1]}"
    print(f"serving {options.label} at {address}", file=sys.stderr, flush=True)
    server.serve_until_stopped()
    return 0


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 takes a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=128)


def _listening(options: argparse.Namespace) -> socket.socket:
    return listen(options.host, options.port) if options.fd is None else socket.socket(fileno=options.fd)


def _end_with_stdin() -> None:
    """End this process, and whatever it has started, as soon as nobody holds the other end of its stdin.

    Whoever started it, and made a session for it, is gone then, however it ended.
    """

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _refuse(why: str) -> int:
    print(why, file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("flowfactory-scorer", description="Serve a function that scores images.")
    parser.add_argument("function", help="./file.py:name or package.module:name, called with images, prompts and rows")
    parser.add_argument("--label", default="score", help="name of the reward (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8399, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--fd", type=int, help="a socket that listens already; ends when stdin does")
    parser.add_argument("--device", default="cpu", help="what device() says (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="calls at the same time (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=600, help="seconds to wait for one's turn (default: 600)")
    parser.add_argument("--max-megabytes", type=int, default=256, help="largest request (default: %(default)s)")
    parser.add_argument("--max-megapixels", type=int, default=128, help="most pixels of one (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
