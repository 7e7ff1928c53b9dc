"""``fedfleet status``: what the fleet does now, read from the server's store."""

import json
import time
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from fedfleet.cli import live
from fedfleet.cli.config import load
from fedfleet.cli.launch import server_dir
from fedfleet.cli.options import ConfigFile, Json
from fedfleet.fleet_server.status import snapshot

__all__ = ["status"]


def status(
    config: ConfigFile = None,
    as_json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep showing it until Ctrl-C.")] = False,
    interval_s: Annotated[
        float, typer.Option("--interval", min=0.1, help="Seconds between two looks, with --watch.")
    ] = 1.0,
) -> None:
    """Show the fleet as the server knows it: rounds, vehicles, error now and of the baseline, bytes, latency."""
    settings = load(config)
    folder = server_dir(settings)
    console = Console()
    if as_json:
        typer.echo(json.dumps(snapshot(folder, time.time())))
        return
    if not watch:
        console.print(live.table(snapshot(folder, time.time())))
        return
    if not console.is_terminal:
        while True:
            console.print(live.line(snapshot(folder, time.time())), soft_wrap=True)
            time.sleep(interval_s)
    with Live(live.table(snapshot(folder, time.time())), console=console, auto_refresh=False) as view:
        while True:
            time.sleep(interval_s)
            view.update(live.table(snapshot(folder, time.time())), refresh=True)
