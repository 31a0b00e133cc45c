"""`flowfactory serve-reward SPEC`. Imports torch only to serve."""

from __future__ import annotations

from pathlib import Path

import click
from flowfactory import Display, Precision, SecretError, secret
from flowfactory_scorer.__main__ import is_loopback, listen

from flowfactory_plugin_remote import TOKEN_VARIABLE


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
    from flowfactory import open_rewards
    from flowfactory_scorer.server import Server

    from flowfactory_plugin_remote.server import served

    with ui.phase("loading the rewards"):
        rewards = served(open_rewards(spec, device, dtype))
    with listen(host, port) as listening:
        server = Server(listening, rewards, token, max_megabytes * 1_000_000, max_megapixels * 1_000_000)
        ui.say(f"serving {', '.join(rewards)} at http://{host}:{listening.getsockname()[1]}")
        server.serve_until_stopped()
