"""The topics: one function builds each, one parses what arrives. ``broker_config/asyncapi.yaml`` and the ACLs follow.

All begin with ``fl/v1/{fleet}``. Ids are checked on the way in and out, so that no wildcard or slash slips through.
"""

from dataclasses import dataclass
from typing import Literal

from fedfleet.protocol.errors import PeerError
from fedfleet.protocol.ids import check_id, is_id, shard

__all__ = [
    "Topic",
    "blob",
    "command",
    "metrics",
    "model",
    "parse",
    "receipt",
    "region_all",
    "release",
    "request",
    "round_plan",
    "settlement",
    "settlements",
    "status",
    "update",
    "vehicles",
]

Kind = Literal[
    "round",
    "settlement",
    "model",
    "release",
    "blob",
    "status",
    "update",
    "metrics",
    "request",
    "receipt",
    "command",
]
_WORDS: dict[str, Kind] = {
    "status": "status",
    "metrics": "metrics",
    "req": "request",
    "receipt": "receipt",
    "cmd": "command",
}
_HEX = frozenset("0123456789abcdef")
_DIGEST_DIGITS = 64
_MAX_NUMBER_DIGITS = 10
_MAX_NUMBER = 2**32 - 1  # what a manifest can say of a round


@dataclass(frozen=True)
class Topic:
    """A topic taken apart. Fields that a kind does not have are empty, or -1 for the numbers."""

    kind: Kind
    fleet: str
    region: str = ""
    task: str = ""
    vehicle: str = ""
    digest: str = ""
    round: int = -1
    number: int = -1


def _root(fleet: str) -> str:
    return f"fl/v1/{check_id(fleet, 'fleet')}"


def _region(fleet: str, region: str) -> str:
    return f"{_root(fleet)}/r/{check_id(region, 'region')}"


def _vehicle(fleet: str, vehicle: str) -> str:
    return f"{_root(fleet)}/v/{shard(check_id(vehicle, 'vehicle'))}/{vehicle}"


def round_plan(fleet: str, region: str, task: str) -> str:
    """Topic of the retained, signed round plan of a region."""
    return f"{_region(fleet, region)}/round/{check_id(task, 'task')}"


def settlement(fleet: str, region: str, task: str, round_: int, *, page: int = 0) -> str:
    """Topic of the retained, signed settlement of one round of a region; further pages have topics below it."""
    topic = f"{_region(fleet, region)}/settlement/{check_id(task, 'task')}/{round_}"
    return f"{topic}/{page}" if page else topic


def settlements(fleet: str, region: str, task: str) -> str:
    """Filter for the settlements of a region, with all their pages."""
    return f"{_region(fleet, region)}/settlement/{check_id(task, 'task')}/#"


def model(fleet: str, region: str, task: str) -> str:
    """Topic of the retained, signed pointer to the published model (the training base)."""
    return f"{_region(fleet, region)}/model/{check_id(task, 'task')}"


def release(fleet: str, region: str, task: str) -> str:
    """Topic of the retained, signed release (what may drive)."""
    return f"{_region(fleet, region)}/release/{check_id(task, 'task')}"


def region_all(fleet: str, region: str, task: str) -> tuple[str, ...]:
    """Return the filters through which a vehicle follows one task in its region."""
    return (
        release(fleet, region, task),
        model(fleet, region, task),
        round_plan(fleet, region, task),
        settlements(fleet, region, task),
    )


def blob(fleet: str, digest: str, number: int) -> str:
    """Topic of one retained chunk of the blob with this SHA-256 (hex)."""
    return f"{_root(fleet)}/blob/{digest}/{number}"


def status(fleet: str, vehicle: str) -> str:
    """Topic of a vehicle's retained status, and of its will."""
    return f"{_vehicle(fleet, vehicle)}/status"


def update(fleet: str, vehicle: str, task: str, *, round_: int, number: int) -> str:
    """Topic of chunk ``number`` of a vehicle's update for a round."""
    return f"{_vehicle(fleet, vehicle)}/update/{check_id(task, 'task')}/{round_}/{number}"


def metrics(fleet: str, vehicle: str) -> str:
    """Topic of a vehicle's metrics."""
    return f"{_vehicle(fleet, vehicle)}/metrics"


def request(fleet: str, vehicle: str) -> str:
    """Topic of a vehicle's requests: enrolment, hello."""
    return f"{_vehicle(fleet, vehicle)}/req"


def receipt(fleet: str, vehicle: str) -> str:
    """Topic of the server's receipts to a vehicle."""
    return f"{_vehicle(fleet, vehicle)}/receipt"


def command(fleet: str, vehicle: str) -> str:
    """Topic of the server's commands to a vehicle."""
    return f"{_vehicle(fleet, vehicle)}/cmd"


def vehicles(fleet: str) -> tuple[str, ...]:
    """Return the filters through which the server hears all vehicles of the fleet."""
    root = f"{_root(fleet)}/v/+/+"
    return (f"{root}/status", f"{root}/update/+/+/+", f"{root}/metrics", f"{root}/req")


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > _MAX_NUMBER_DIGITS or str(int(text)) != text:
        raise PeerError("malformed-topic", f"number {text[:20]!r} in a topic: expected a plain decimal")
    if int(text) > _MAX_NUMBER:
        raise PeerError("malformed-topic", f"number {text} in a topic: expected at most {_MAX_NUMBER}")
    return int(text)


def _ids(*texts: str) -> None:
    for text in texts:
        if not is_id(text):
            raise PeerError("malformed-topic", f"{text[:40]!r} in a topic is not an id")


def parse(topic: str) -> Topic:
    """Take a topic apart; PeerError ``malformed-topic`` when it is none of ours or holds a bad id or number."""
    parts = topic.split("/")
    match parts:
        case ["fl", "v1", fleet, "r", region, word, task] if word in {"round", "model", "release"}:
            _ids(fleet, region, task)
            kind: Kind = "round" if word == "round" else "model" if word == "model" else "release"
            return Topic(kind, fleet, region=region, task=task)
        case ["fl", "v1", fleet, "r", region, "settlement", task, number]:
            _ids(fleet, region, task)
            return Topic("settlement", fleet, region=region, task=task, round=_number(number), number=0)
        case ["fl", "v1", fleet, "r", region, "settlement", task, number, page] if page != "0":
            _ids(fleet, region, task)
            return Topic(
                "settlement", fleet, region=region, task=task, round=_number(number), number=_number(page)
            )
        case ["fl", "v1", fleet, "blob", digest, number]:
            _ids(fleet)
            if len(digest) != _DIGEST_DIGITS or not _HEX.issuperset(digest):
                raise PeerError("malformed-topic", f"{digest[:20]!r} in a topic is not a SHA-256")
            return Topic("blob", fleet, digest=digest, number=_number(number))
        case ["fl", "v1", fleet, "v", part, vehicle, *rest]:
            _ids(fleet, vehicle)
            if part != shard(vehicle):
                raise PeerError(
                    "malformed-topic", f"vehicle {vehicle} is in shard {shard(vehicle)}, not {part[:8]}"
                )
            return _vehicle_topic(fleet, vehicle, rest)
        case _:
            raise PeerError("malformed-topic", f"{topic[:80]!r} is not a topic of this protocol")


def _vehicle_topic(fleet: str, vehicle: str, rest: list[str]) -> Topic:
    match rest:
        case [word] if word in _WORDS:
            return Topic(_WORDS[word], fleet, vehicle=vehicle)
        case ["update", task, round_, number]:
            _ids(task)
            return Topic(
                "update", fleet, vehicle=vehicle, task=task, round=_number(round_), number=_number(number)
            )
        case _:
            raise PeerError(
                "malformed-topic", f"{'/'.join(rest)[:60]!r} of vehicle {vehicle} is not a topic of ours"
            )
