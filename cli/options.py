"""Options that several commands share, worded once."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["ConfigFile", "Json", "ScenariosDir", "TaskName", "Wait", "pack_dir"]

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
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


def pack_dir() -> Path:
    """Return the folder of the shipped scenario pack."""
    import fedfleet.scenarios

    return Path(fedfleet.scenarios.__path__[0]) / "packs" / "sumo"
