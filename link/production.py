"""Configurations of a broker for production, written for one fleet: from the templates in ``broker_config``.

In a template FLEET stands for the fleet's name. No fleet can have that name, so a template that was not filled in
lets nobody do anything.
"""

import secrets
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Literal

from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.ids import SERVER, check_id

__all__ = ["FILES", "Brand", "rules", "write"]

Brand = Literal["mosquitto", "nats", "emqx"]
FILES: dict[Brand, tuple[str, ...]] = {
    "mosquitto": ("mosquitto-production.conf", "mosquitto-production.acl"),
    "nats": ("nats-production.conf",),
    "emqx": ("emqx.conf", "emqx-acl.conf"),
}
"""The templates of each broker, and the names of the files that are written."""


def rules(template: str, *, fleet: str, vehicles: Sequence[str] = ()) -> str:
    """Return a template for this fleet, for every client, or with ``vehicles`` for these alone.

    Raises UsageError for a fleet or vehicle that is not an id, and for the server's name among the vehicles.
    """
    check_id(fleet, "fleet")
    for vehicle in vehicles:
        if check_id(vehicle, "vehicle") == SERVER:
            raise UsageError(f"vehicle id {vehicle!r} is the server's own name")
    names, text, entry = sorted(set(vehicles)), _read(template), _read("nats-vehicle.conf")
    text = text.replace("    # VEHICLES\n", "".join(entry.replace("VEHICLE", name) for name in names))
    if names:
        text = _named(text, names)
    return text.replace("NODE-COOKIE", secrets.token_hex(32)).replace("FLEET", fleet)


def _named(text: str, vehicles: Sequence[str]) -> str:
    """Return rules for these vehicles instead of for every client (Mosquitto's and EMQX's; others as they are)."""
    kept: list[str] = []
    shared: list[str] = []
    at = 0
    for line in text.splitlines():
        if line.startswith(("pattern ", "{allow, all,")):
            shared, at = [*shared, line], at or len(kept)
        else:
            kept.append(line)
    named = [line for vehicle in vehicles for line in _own(shared, vehicle)]
    return "\n".join([*kept[:at], *named, *kept[at:]]) + "\n"


def _own(shared: Sequence[str], vehicle: str) -> list[str]:
    """Return rules for every client as those of one."""
    own = [rule.replace("%u", vehicle).replace("${clientid}", vehicle) for rule in shared]
    if own and own[0].startswith("pattern "):
        return [f"user {vehicle}", *(rule.replace("pattern ", "topic ", 1) for rule in own)]
    return [rule.replace("{allow, all,", f'{{allow, {{user, "{vehicle}"}},', 1) for rule in own]


def write(brand: Brand, folder: Path, *, fleet: str, vehicles: Sequence[str] = ()) -> list[Path]:
    """Write the files of a broker into ``folder`` and return their paths.

    Raises UsageError when they cannot be written, and for NATS, whose rules name each vehicle, without vehicles.
    """
    if brand == "nats" and not vehicles:
        raise UsageError("the rules of NATS name each vehicle: expected --vehicles v01,v02,… as well")
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES[brand]:
            path = folder / name
            path.touch(mode=0o600)
            path.write_text(rules(name, fleet=fleet, vehicles=vehicles), encoding="utf-8")
            written.append(path)
    except OSError as error:
        raise UsageError(f"{error.filename or folder}: cannot be written: {error.strerror}") from error
    return written


def _read(name: str) -> str:
    return resources.files("fedfleet.broker_config").joinpath(name).read_text("utf-8")
