"""``fedfleet server code``: one-time codes with which vehicles enrol."""

import re
import secrets
import time
from datetime import UTC, datetime
from typing import Annotated

import typer

from fedfleet.cli.config import load
from fedfleet.cli.launch import server_place
from fedfleet.cli.options import ConfigFile
from fedfleet.cli.terminal import Terminal
from fedfleet.protocol.enrolment import make_code, secret_of
from fedfleet.protocol.errors import UsageError

__all__ = ["code", "seconds"]

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
MOST_S = 366 * 86_400


def code(
    vehicle: Annotated[str, typer.Argument(help="Id of the vehicle: a-z, 0-9 and '-'.", show_default=False)],
    region: Annotated[
        str | None,
        typer.Option(help="Region to put the vehicle in; its own when it is enrolled.", show_default=False),
    ] = None,
    ttl: Annotated[str, typer.Option(help="How long it is good for: 90s, 30m, 24h, 7d.")] = "24h",
    config: ConfigFile = None,
) -> None:
    """Make a one-time code with which a vehicle enrols, or enrols again with a new key; it is shown once."""
    from fedfleet.fleet_server import registry

    settings, now_s = load(config), time.time()
    made, until_s = make_code(secrets.token_bytes), now_s + seconds(ttl)
    where = registry.make_code(
        server_place(settings),
        vehicle,
        region=region,
        secret=secret_of(made),
        now_s=now_s,
        expires_at_s=until_s,
    )
    until = datetime.fromtimestamp(until_s, tz=UTC).strftime("%Y-%m-%d %H:%M UTC")
    console = Terminal()
    console.say(f"{vehicle} may enrol in region {where}, once, until {until}:")
    console.say(f"  fedfleet agent {vehicle} --code {made}")
    console.say("The code is not kept and not shown again; a new one makes it void.")


def seconds(text: str) -> float:
    """Return a time such as 90s, 30m, 24h or 7d in seconds; UsageError for another, none or above a year."""
    found = re.fullmatch(r"([0-9]{1,9})([smhd])", text.strip())
    time_s = int(found[1]) * UNITS_S[found[2]] if found else 0
    if not 0 < time_s <= MOST_S:
        raise UsageError(f"--ttl: expected a time up to 366d, such as 90s, 30m, 24h or 7d, got {text[:40]!r}")
    return float(time_s)
