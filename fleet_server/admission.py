"""What an update has to be before it counts. Pure: a message, its topic and a view of the store in, a verdict out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from math import inf, sqrt

import numpy as np
import numpy.typing as npt

from fedfleet.codec import payload
from fedfleet.codec.parts import Parts
from fedfleet.fleet_server.fold import check_update, example_weight
from fedfleet.fleet_server.norms import ABSURD_STATISTIC
from fedfleet.fleet_server.rules import length
from fedfleet.fleet_server.store_rounds import Round
from fedfleet.fleet_server.store_updates import Known, StoredUpdate
from fedfleet.protocol import envelope, update
from fedfleet.protocol.envelope import Kind
from fedfleet.protocol.errors import PeerError
from fedfleet.protocol.ids import UpdateId
from fedfleet.protocol.messages import Fate, Plan
from fedfleet.protocol.signing import Keyring
from fedfleet.protocol.topics import Topic

__all__ = [
    "Accepted",
    "Candidate",
    "Duplicate",
    "Limits",
    "View",
    "expect",
    "expect_round",
    "judge",
    "open_update",
]


@dataclass(frozen=True)
class Limits:
    """What bounds an update: sealed bytes, parameters of the model, examples that count; and what is kept of others.

    ``incomplete_bytes`` bounds what all vehicles' incomplete updates take on the disk, ``incomplete_age_s`` the
    seconds that they wait for their next piece.

    ``parts`` are how the model's layout divides an update; None: one sparse part. With ``control`` an update must
    carry a step of the vehicle's control variate (SCAFFOLD). ``norm_factor`` times the usual length of an update is
    the longest that is let in (``norms.py``).
    """

    update_bytes: int
    parameters: int
    example_cap: int
    quarantine_keep: int = 1000
    quarantine_bytes: int = 16_000_000
    incomplete_bytes: int = 500_000_000
    incomplete_age_s: float = 900.0
    parts: Parts | None = None
    control: bool = False
    norm_factor: float = 50.0


@dataclass(frozen=True)
class View:
    """What `judge` may know: the keys, each vehicle's region, and what the store says of rounds and updates.

    ``moved`` has the region where a vehicle was, and the last round of which its update still counts there;
    ``carries`` tells whether an update for a closed round with this plan may still be folded, ``find_update`` what is
    recorded under an id; ``coordinates`` are those that a plan names by its rule, None when it names none; ``longest``
    is the longest update (L2) for a plan that is let in.
    """

    fleet: str
    task: str
    keyring: Keyring
    regions: Mapping[str, str]
    limits: Limits
    find_round: Callable[[int, str], Round | None]
    newest_round: int
    late: Callable[[update.Manifest], tuple[Fate, str]] = lambda _: ("returned", "late")
    carries: Callable[[Plan], bool] = lambda _: False
    find_update: Callable[[UpdateId], Known | None] = lambda _: None
    coordinates: Callable[[Plan], npt.NDArray[np.int64] | None] = lambda _: None
    longest: Callable[[Plan], float] = lambda _: inf
    moved: Mapping[str, tuple[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Accepted:
    """The update is good. ``fate`` is set when it came after its round closed."""

    update: StoredUpdate
    fate: Fate | None = None
    reason: str = ""


@dataclass(frozen=True)
class Duplicate:
    """The very same message is stored already; this is what is recorded of it."""

    known: Known


@dataclass(frozen=True)
class Candidate:
    """An update whose sender is proven and that stands where it belongs; nothing in its payload is believed yet."""

    manifest: update.Manifest
    payload: memoryview
    digest: str
    sealed: bytes


def open_update(sealed: bytes, topic: Topic, view: View, *, digest: str = "") -> Candidate:
    """Check an update message in the order size, header, digest, key, signature, manifest, place.

    ``digest`` is the SHA-256 (hex) of the whole, where that is known already. Raises PeerError, besides the reasons of
    envelope and manifest: wrong-kind, wrong-sender, wrong-topic, wrong-region.
    """
    head = envelope.prove(sealed, view.keyring, fleet=view.fleet, limit_bytes=view.limits.update_bytes)
    expect(head, Kind.UPDATE, topic)
    manifest, body = update.unpack(memoryview(sealed)[head.body_start :], sender=head.sender)
    _check_place(manifest, topic, view)
    return Candidate(manifest, body, digest or sha256(sealed).hexdigest(), sealed)


def judge(one: Candidate, known: Known | None, view: View) -> Accepted | Duplicate:
    """Check freshness, then the payload, of an opened update; ``known`` is what is recorded under its id.

    Raises PeerError, besides the reasons of payload and fold: replayed-id, from-the-future, round-unknown,
    wrong-base, norm-too-large.
    """
    manifest = one.manifest
    if known is not None:
        if known.sealed_sha256 != one.digest:
            raise PeerError("replayed-id", f"update {manifest.id} is stored with other content")
        return Duplicate(known)
    found = _check_fresh(manifest, view)
    limits, named = view.limits, view.coordinates(found.plan)
    decoded = payload.check(
        one.payload, size=limits.parameters, parts=limits.parts, common=named, control=limits.control
    )
    weight = example_weight(decoded.examples, cap=view.limits.example_cap)
    check_update(manifest.id, decoded.delta, weight, size=view.limits.parameters)
    norm = _check_length(manifest, decoded.delta, view.longest(found.plan))
    stored = StoredUpdate(
        manifest,
        one.payload,
        decoded.steps,
        decoded.examples,
        one.digest,
        len(one.sealed),
        one.sealed,
        norm,
    )
    return Accepted(stored) if found.state == "open" else Accepted(stored, *view.late(manifest))


def expect(opened: envelope.Opened | envelope.Header, kind: Kind, topic: Topic) -> None:
    """Raise PeerError wrong-kind or wrong-sender unless the message belongs to its topic."""
    if opened.kind is not kind:
        raise PeerError("wrong-kind", f"{opened.sender} sent {opened.kind.name} to a topic for {kind.name}")
    if opened.sender != topic.vehicle:
        raise PeerError("wrong-sender", f"{opened.sender} sent to a topic of {topic.vehicle}")


def expect_round(topic: Topic, view: View) -> None:
    """Raise PeerError unless an update of this topic could still count: before anything is kept of it.

    Reasons: wrong-topic, from-the-future, round-unknown, late.
    """
    vehicle, number = topic.vehicle, topic.round
    if topic.task != view.task:
        raise PeerError("wrong-topic", f"update of {vehicle} for {topic.task}, this server runs {view.task}")
    if number > view.newest_round:
        told = f"round {number}: an update of {vehicle} came before it, newest is {view.newest_round}"
        raise PeerError("from-the-future", told)
    before, until_round = view.moved.get(vehicle, ("", -1))
    regions = [view.regions[vehicle], *([before] if before and number <= until_round else [])]
    known = [found for region in regions if (found := view.find_round(number, region)) is not None]
    if not known:
        raise PeerError("round-unknown", f"round {number} of {regions[0]} is not known")
    if not any(found.state == "open" or view.carries(found.plan) for found in known):
        raise PeerError("late", f"round {number}: an update of {vehicle} began after it was closed")


def _check_length(manifest: update.Manifest, delta: payload.Values, limit: float) -> float:
    """Return the length of what was learned; statistics of the data have a unit, and a bound, of their own."""
    norm, measured = length(delta.learned), length(delta.measured)
    for what, found, most in (
        ("length", norm, limit),
        ("statistics of length", measured, ABSURD_STATISTIC * sqrt(len(delta.measured))),
    ):
        if found > most:
            told = f"round {manifest.round}: update {manifest.id} has {what} {found:.3g}, limit {most:.3g}"
            raise PeerError("norm-too-large", told)
    return norm


def _check_place(manifest: update.Manifest, topic: Topic, view: View) -> None:
    if (manifest.task, manifest.round) != (topic.task, topic.round) or manifest.task != view.task:
        told = f"{manifest.task} round {manifest.round} in a topic of {topic.task} round {topic.round}"
        raise PeerError("wrong-topic", f"update {manifest.id}: {told}, this server runs {view.task}")
    expected = view.regions[manifest.id.vehicle]
    before, until_round = view.moved.get(manifest.id.vehicle, ("", -1))
    stayed = manifest.region == before and manifest.round <= until_round
    if manifest.region != expected and not stayed:
        raise PeerError("wrong-region", f"update {manifest.id} is for {manifest.region}, expected {expected}")


def _check_fresh(manifest: update.Manifest, view: View) -> Round:
    if manifest.round > view.newest_round:
        told = f"round {manifest.round}: update {manifest.id} came before it, newest is {view.newest_round}"
        raise PeerError("from-the-future", told)
    found = view.find_round(manifest.round, manifest.region)
    if found is None:
        raise PeerError("round-unknown", f"round {manifest.round} of {manifest.region} is not known")
    if manifest.base_version != found.plan.base_version:
        told = f"update {manifest.id} trained from version {manifest.base_version}"
        raise PeerError("wrong-base", f"round {manifest.round}: {told}, expected {found.plan.base_version}")
    return found
