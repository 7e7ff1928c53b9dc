"""``fedfleet broker``: run the embedded broker in the foreground until Ctrl-C."""

import signal
from pathlib import Path
from threading import Event
from typing import Annotated

import typer

from fedfleet.cli.config import load
from fedfleet.cli.options import ConfigFile
from fedfleet.cli.terminal import Terminal
from fedfleet.link import embedded
from fedfleet.protocol.errors import UsageError

__all__ = ["broker"]


def broker(
    config: ConfigFile = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder for the broker's data and log.", show_default=False)
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="TCP port on loopback; 0 picks a free one.", show_default=False),
    ] = None,
) -> None:
    """Start Mosquitto (or the NATS server) on loopback with our access rules, and keep it until Ctrl-C."""
    settings = load(config)
    if settings.broker.embedded == "none":
        raise UsageError("broker.embedded is 'none': this configuration uses a broker that runs elsewhere")
    folder = data or settings.work_dir / "broker"
    chosen = settings.broker.port if port is None else port
    console = Terminal()
    ended = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with embedded.start(folder, kind=settings.broker.embedded, port=chosen) as running:
        console.say(
            f"{running.kind} listens on {running.host}:{running.port}, process {running.pid}, data in {folder}"
        )
        while not ended.wait(0.5):
            if not running.running():
                raise UsageError(f"{running.kind} ended by itself: see {running.log_file}")
    console.say("broker stopped")
