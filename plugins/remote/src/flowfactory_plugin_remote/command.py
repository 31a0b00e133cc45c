"""`flowfactory serve-reward SPEC`. Imports torch only to serve."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import click
from flowfactory import Display, Precision, SecretError, secret

from flowfactory_plugin_remote import TOKEN_VARIABLE

GRACE = 3
"""Seconds that requests have to end in when the server is stopped."""


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8399, show_default=True, help="Port; 0 takes a free one."
)
@click.option("--device", default="cpu", show_default=True, help="Where rewards compute that name no device.")
@click.option("--dtype", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32", show_default=True)
@click.option("--max-megabytes", type=click.IntRange(1), default=256, show_default=True, help="Largest request.")
@click.option(
    "--max-megapixels", type=click.IntRange(1), default=128, show_default=True, help="Most pixels of one request."
)
@click.pass_obj
def serve_reward(
    ui: Display,
    spec: Path,
    host: str,
    port: int,
    device: str,
    dtype: Precision,
    max_megabytes: int,
    max_megapixels: int,
) -> None:
    """Serve the [[reward]] tables of SPEC over HTTP, for rewards that cannot live in the training environment.

    Clients must send the token that the environment variable FLOWFACTORY_TOKEN holds; without one, only this machine
    can be served.
    """
    try:
        token = secret(TOKEN_VARIABLE)
    except SecretError as error:
        raise click.UsageError(str(error)) from error
    if not token and not is_loopback(host):
        raise click.UsageError(f"{host} can be reached from elsewhere: set {TOKEN_VARIABLE} to a secret first")
    import uvicorn
    from flowfactory import open_rewards

    from flowfactory_plugin_remote.server import CONNECTIONS, Patient, RewardServer

    with ui.phase("loading the rewards"):
        rewards = open_rewards(spec, device, dtype)
    app = RewardServer(rewards, token, max_megabytes * 1_000_000, max_megapixels * 1_000_000).app
    config = uvicorn.Config(
        app, host, port, log_level="warning", http=Patient, ws="none", lifespan="off",
        limit_concurrency=CONNECTIONS, timeout_graceful_shutdown=GRACE,
    )  # fmt: skip
    server = uvicorn.Server(config)
    labels = ", ".join(asked.entry.label for asked in rewards)
    with server.config.bind_socket() as listening:
        ui.say(f"serving {labels} at http://{host}:{listening.getsockname()[1]}")
        server.run([listening])


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
