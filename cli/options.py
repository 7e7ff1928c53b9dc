"""Options that several commands share, worded once."""

from pathlib import Path
from typing import Annotated

import typer

from fedfleet.cli.terminal import Terminal
from fedfleet.protocol.errors import UsageError

__all__ = ["ConfigFile", "Json", "ScenariosDir", "TaskName", "Wait", "pack_dir", "unused"]


def _config(context: typer.Context, value: Path | None) -> Path | None:
    """Return the file that this command was given, or the one that was named before it on the line."""
    before: Path | None = context.obj
    if value is None or context.resilient_parsing:
        return before
    if before is not None and before != value:
        raise UsageError(f"--config {value}: the configuration was named before: {before}")
    context.obj = value
    return value


ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        callback=_config,
        help="Configuration (TOML). Without it: fedfleet.toml in this folder when there is one.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
ScenariosDir = Annotated[
    Path | None,
    typer.Option(
        "--scenarios",
        "-s",
        help="Folder of recordings. Without it: the configured one, else the shipped pack.",
        show_default=False,
    ),
]
TaskName = Annotated[
    str | None,
    typer.Option("--task", help="Learning task; without it the configured one.", show_default=False),
]
Wait = Annotated[
    bool,
    typer.Option(
        "--wait",
        help="Start although the broker does not answer, and keep trying: for services and vehicles that are offline.",
    ),
]


def unused(config: Path | None, command: str) -> None:
    """Note on stderr that a command has no use for the configuration that it was given."""
    if config is not None:
        Terminal(stderr=True).say(f"note: {command} takes nothing from a configuration: {config} is not read")


def pack_dir() -> Path:
    """Return the folder of the shipped scenario pack."""
    import fedfleet.scenarios

    return Path(fedfleet.scenarios.__path__[0]) / "packs" / "sumo"
