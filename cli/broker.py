"""``fedfleet broker``: run the embedded broker until Ctrl-C, or write the files of one for production."""

import signal
from pathlib import Path
from threading import Event
from typing import Annotated

import typer

from fedfleet.cli.config import load
from fedfleet.cli.options import ConfigFile
from fedfleet.cli.terminal import Terminal
from fedfleet.cli.unheeded import check_loopback
from fedfleet.link import embedded, production
from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.ids import check_id

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
    write: Annotated[
        production.Brand | None,
        typer.Option(help="Start nothing: write the production files of this broker.", show_default=False),
    ] = None,
    to: Annotated[Path, typer.Option(help="With --write: the folder to write them to.")] = Path("broker"),
    vehicles: Annotated[
        str | None,
        typer.Option(
            help="With --write: let in these vehicles only, as v01,v02. NATS needs the list.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Start Mosquitto (or the NATS server) on loopback with the access rules of the fleet, and keep it until Ctrl-C.

    With --write: write the configuration and the access rules of a broker for production instead.
    """
    settings, console = load(config), Terminal()
    if write is not None:
        names = [check_id(name.strip(), "vehicle") for name in vehicles.split(",")] if vehicles else []
        for path in production.write(write, to, fleet=settings.fleet, vehicles=names):
            console.say(str(path))
        return
    if vehicles is not None:
        raise UsageError("--vehicles without --write: the broker on loopback lets in every vehicle")
    if settings.broker.embedded == "none":
        raise UsageError("broker.embedded is 'none': this configuration uses a broker that runs elsewhere")
    check_loopback(settings)
    folder = data or settings.work_dir / "broker"
    chosen = settings.broker.port if port is None else port
    ended = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with embedded.start(folder, kind=settings.broker.embedded, port=chosen, fleet=settings.fleet) as running:
        console.say(
            f"{running.kind} listens on {running.host}:{running.port}, process {running.pid}, data in {folder}"
        )
        while not ended.wait(0.5):
            if not running.running():
                raise UsageError(f"{running.kind} ended by itself: see {running.log_file}")
    console.say("broker stopped")
