"""What can happen to a vehicle: frozen values, already opened, checked and decoded. Pure.

``record`` and ``replay`` turn an event into a JSON line and back, so that a log of a run can be stepped through again.
"""

import json
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeAlias

from pydantic import TypeAdapter

from fedfleet.protocol.errors import PeerError
from fedfleet.protocol.messages import ModelPointer, Plan, Receipt, Release, Settlement

__all__ = [
    "Activated",
    "ActivationRefused",
    "Assigned",
    "BaseReady",
    "ConditionsRead",
    "EnrolmentRefused",
    "Event",
    "FetchFailed",
    "LinkDown",
    "LinkUp",
    "MessageRefused",
    "PlanCame",
    "PointerCame",
    "Purpose",
    "ReceiptCame",
    "ReleaseCame",
    "ReleaseFetched",
    "SettlementCame",
    "Tick",
    "TrainingDone",
    "TrainingFailed",
    "TrainingHeld",
    "TrainingProgress",
    "UpdateGivenUp",
    "UpdateJournaled",
    "record",
    "replay",
]

Purpose = Literal["base", "release"]


@dataclass(frozen=True)
class LinkUp:
    """The broker accepted the connection."""

    session_present: bool


@dataclass(frozen=True)
class LinkDown:
    """The connection ended, or could not be made."""

    reason: str


@dataclass(frozen=True)
class Assigned:
    """The server told this vehicle its region; ``enrolled`` when it answers an enrolment."""

    region: str
    enrolled: bool


@dataclass(frozen=True)
class EnrolmentRefused:
    """The server refuses this vehicle, for now."""

    reason: str


@dataclass(frozen=True)
class MessageRefused:
    """A delivery was dropped: not from the server, stale, malformed; or dated so far ahead of this clock."""

    reason: str
    ahead_s: float = 0.0


@dataclass(frozen=True)
class PlanCame:
    """A fresh round plan of the own region."""

    plan: Plan


@dataclass(frozen=True)
class PointerCame:
    """The published model of the own region, not older than the last one seen."""

    pointer: ModelPointer


@dataclass(frozen=True)
class ReleaseCame:
    """The release of the own region, not older than the last one seen."""

    release: Release


@dataclass(frozen=True)
class SettlementCame:
    """The fate of a round of the own region."""

    settlement: Settlement


@dataclass(frozen=True)
class ReceiptCame:
    """The server's word on one update of this vehicle."""

    receipt: Receipt


@dataclass(frozen=True)
class BaseReady:
    """The published model is on disk, verified: trainings may start from it; ``step`` as in ``Base``."""

    version: int
    onnx_sha256: str
    region: str = ""
    step: bool = False


@dataclass(frozen=True)
class ReleaseFetched:
    """A release's model and canary are here, verified against the release."""

    number: int


@dataclass(frozen=True)
class FetchFailed:
    """A model could not be had; ``lasting`` when asking again gives the same. ``variant_sha256``: of a variant only."""

    purpose: Purpose
    number: int
    reason: str
    lasting: bool
    variant_sha256: str = ""


@dataclass(frozen=True)
class Activated:
    """A release drives now, in the form of a ``variant`` or as it is."""

    number: int
    version: int
    onnx_sha256: str = ""
    variant: str = ""


@dataclass(frozen=True)
class ActivationRefused:
    """A release did not pass its canary or its form; the previous model drives on. ``onnx_sha256`` is the file's."""

    number: int
    reason: str
    onnx_sha256: str = ""


@dataclass(frozen=True)
class TrainingDone:
    """A fine-tuning ended; its delta waits in the shell."""

    round: int
    steps: int
    examples: int


@dataclass(frozen=True)
class TrainingFailed:
    """A fine-tuning ended without a result."""

    round: int
    reason: str


@dataclass(frozen=True)
class TrainingProgress:
    """A fine-tuning has made this many steps."""

    round: int
    steps: int


@dataclass(frozen=True)
class TrainingHeld:
    """A fine-tuning stood still for so long, because inference needed the machine."""

    round: int
    seconds: float


@dataclass(frozen=True)
class UpdateJournaled:
    """An update is on disk with its residual, ready to be sent."""

    sequence: int
    update: str
    sealed_sha256: str
    round: int


@dataclass(frozen=True)
class UpdateGivenUp:
    """A training's result could not be encoded or stored; nothing of it remains."""

    round: int
    reason: str


@dataclass(frozen=True)
class ConditionsRead:
    """The vehicle's signals as they are now."""

    signals: dict[str, bool | int | float | str]


@dataclass(frozen=True)
class Tick:
    """Time went on."""


Event: TypeAlias = (
    LinkUp
    | LinkDown
    | Assigned
    | EnrolmentRefused
    | MessageRefused
    | PlanCame
    | PointerCame
    | ReleaseCame
    | SettlementCame
    | ReceiptCame
    | BaseReady
    | ReleaseFetched
    | FetchFailed
    | Activated
    | ActivationRefused
    | TrainingDone
    | TrainingFailed
    | TrainingProgress
    | TrainingHeld
    | UpdateJournaled
    | UpdateGivenUp
    | ConditionsRead
    | Tick
)
_KINDS: dict[str, type] = {kind.__name__: kind for kind in Event.__args__}


@cache
def _adapter(kind: str) -> TypeAdapter[Any]:
    return TypeAdapter(_KINDS[kind])


def record(event: Event, now_s: float) -> str:
    """Return one JSON line (without its end) that ``replay`` reads back to an equal event and time."""
    kind = type(event).__name__
    return json.dumps({"now_s": now_s, "kind": kind, "event": _adapter(kind).dump_python(event, mode="json")})


def replay(line: str) -> tuple[Event, float]:
    """Read a recorded line; PeerError ``malformed-log`` when it is none."""
    try:
        told = json.loads(line)
        event: Event = _adapter(told["kind"]).validate_python(told["event"])
        return event, float(told["now_s"])
    except (ValueError, KeyError, TypeError) as error:
        raise PeerError("malformed-log", f"event log line {line[:80]!r}: {error}"[:300]) from error
