"""Keys of a configuration that somebody set and a command does not honour: each is noted, with the reason. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic import BaseModel

from fedfleet.cli.config import Settings
from fedfleet.link.config import is_this_machine
from fedfleet.protocol.errors import UsageError

__all__ = ["BROKER", "check_loopback", "notes", "of_demo", "of_load_run"]

BROKER: Final = ("host", "port", "username", "password_file", "ca_file", "cert_file", "key_file", "insecure")
"""What says where a broker is, and how to reach it."""
_TLS: Final = ("ca_file", "cert_file", "key_file")

_DEMO: Final[Mapping[str, str]] = {
    "work_dir": "the demo keeps everything under --out",
    "server.enrolment": "the demo makes and enrols its own vehicles",
    "server.rounds.total": "--rounds says how many",
    "agent.server_public_key": "the demo's server has a key of its own",
    **{f"broker.{name}": "the demo starts a broker of its own" for name in BROKER},
}
_LOAD_RUN: Final[Mapping[str, str]] = {
    "agent.server_public_key": "the key is that of the server on this machine",
    **{
        f"data.{name}": "--vehicles NUMBER deals the drives out evenly over the regions"
        for name in ("vehicles_per_region", "partition", "regions", "split_file")
    },
}


def notes(settings: Settings, reasons: Mapping[str, str]) -> tuple[str, ...]:
    """Name each key that is set and has no effect, with the reason: one line for all keys of one reason."""
    by_reason: dict[str, list[str]] = {}
    for key in _set(settings):
        parts = key.split(".")
        heads = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
        found = next((head for head in heads if head in reasons), None)
        if found is not None and found not in by_reason.setdefault(reasons[found], []):
            by_reason[reasons[found]].append(found)
    return tuple(f"{', '.join(keys)} had no effect: {reason}" for reason, keys in by_reason.items())


def of_demo(settings: Settings) -> tuple[str, ...]:
    """Return the notes of a demo."""
    return notes(settings, _DEMO)


def of_load_run(settings: Settings) -> tuple[str, ...]:
    """Return the notes of a fleet that is asked for by its number."""
    return notes(settings, _LOAD_RUN)


def check_loopback(settings: Settings) -> None:
    """Raise UsageError for a broker that others could not reach as configured: ours is on loopback, without TLS."""
    broker = settings.broker
    if not is_this_machine(broker.host):
        raise UsageError(
            f"broker.host is {broker.host}: the broker that this command starts listens on this machine alone; "
            "for one that others reach see `fedfleet broker --write`"
        )
    if asked := [name for name in _TLS if getattr(broker, name) is not None]:
        raise UsageError(
            f"broker.{asked[0]} is set: server and vehicles would speak TLS, which the broker on loopback does not; "
            "leave it out, or write a broker for production with `fedfleet broker --write`"
        )


def _set(model: BaseModel, before: str = "") -> Iterator[str]:
    """Give the keys that someone has set, in the order of the fields, down to single values."""
    for name in type(model).model_fields:
        if name not in model.model_fields_set:
            continue
        value: Any = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from _set(value, f"{before}{name}.")
        elif isinstance(value, Mapping) and value:
            yield from (f"{before}{name}.{key}" for key in value)
        else:
            yield f"{before}{name}"
