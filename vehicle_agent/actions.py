"""What ``agent.step`` wants done: frozen values that the shell performs. Pure."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from fedfleet.protocol.messages import Lease, ModelPointer, Plan, Release, Variant

__all__ = [
    "Action",
    "Activate",
    "BeginEpoch",
    "Count",
    "FetchBase",
    "FetchRelease",
    "HurryFetch",
    "PublishStatus",
    "Report",
    "Send",
    "SendRequest",
    "Settle",
    "StartTraining",
    "StopTraining",
    "SubmitUpdate",
    "Subscribe",
    "Unsubscribe",
]


@dataclass(frozen=True)
class Subscribe:
    """Follow these filters."""

    filters: tuple[str, ...]


@dataclass(frozen=True)
class Unsubscribe:
    """Follow these filters no longer."""

    filters: tuple[str, ...]


@dataclass(frozen=True)
class PublishStatus:
    """Publish the retained status."""

    eligible: bool
    reason: str
    active_version: int
    lease: Lease | None


@dataclass(frozen=True)
class SendRequest:
    """Ask the server who we are to it; the shell draws the nonce."""

    kind: Literal["hello", "enrol"]


@dataclass(frozen=True)
class FetchBase:
    """Fetch, verify and keep the published model."""

    pointer: ModelPointer


@dataclass(frozen=True)
class FetchRelease:
    """Fetch and verify a release's model and canary, or those of its ``variant``."""

    release: Release
    variant: Variant | None = None


@dataclass(frozen=True)
class HurryFetch:
    """Give the download under way up soon when a piece of it does not come: something newer is wanted."""


@dataclass(frozen=True)
class Activate:
    """Try the fetched release against its canary, keep it, and drive with it."""

    release: Release


@dataclass(frozen=True)
class StartTraining:
    """Fine-tune from the held base; the seed follows from task, round and vehicle."""

    plan: Plan
    seed: int


@dataclass(frozen=True)
class StopTraining:
    """Give a training up."""

    round: int


@dataclass(frozen=True)
class SubmitUpdate:
    """Encode a training's result with the residual, seal it and put it in the outbox, in one transaction."""

    plan: Plan
    steps: int
    examples: int


@dataclass(frozen=True)
class Send:
    """Publish an update of the outbox; ``attempt`` counts from 1."""

    sequence: int
    attempt: int


@dataclass(frozen=True)
class Settle:
    """Take an update out of the outbox; ``returned`` re-enters the residual, once, unless the gate refused it."""

    sequence: int
    fate: Literal["folded", "dropped", "returned"]
    reason: str


@dataclass(frozen=True)
class BeginEpoch:
    """Number updates under a new epoch, unless the one of this update was left already."""

    update: str


@dataclass(frozen=True)
class Count:
    """Count a refusal under its reason."""

    reason: str


@dataclass(frozen=True)
class Report:
    """Tell the person who runs this one line."""

    text: str


Action: TypeAlias = (
    Subscribe
    | Unsubscribe
    | PublishStatus
    | SendRequest
    | FetchBase
    | FetchRelease
    | HurryFetch
    | Activate
    | StartTraining
    | StopTraining
    | SubmitUpdate
    | Send
    | Settle
    | BeginEpoch
    | Count
    | Report
)
