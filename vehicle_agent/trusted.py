"""What the vehicle believes: server messages opened with the pinned key, then checked for freshness. Pure.

After the model of python-tuf's ``TrustedMetadataSet``: a frozen value, the time as argument; a message that is not
acceptable raises PeerError and the trusted value stays as it was.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias, TypeVar

from fedfleet.protocol import messages as msg
from fedfleet.protocol.enrolment import open_enrolled
from fedfleet.protocol.envelope import Kind, open_sealed
from fedfleet.protocol.errors import PeerError
from fedfleet.protocol.ids import SERVER
from fedfleet.protocol.signing import Keyring
from fedfleet.protocol.topics import Topic
from fedfleet.vehicle_agent import events as ev

__all__ = ["FUTURE_S", "MESSAGE_BYTES", "AheadError", "Seen", "Trusted", "admit"]

FUTURE_S: Final = 300.0
"""How far a server's clock may run ahead of the vehicle's, in seconds."""
MESSAGE_BYTES: Final = 1_000_000
ServerEvent: TypeAlias = (
    ev.PlanCame
    | ev.PointerCame
    | ev.ReleaseCame
    | ev.SettlementCame
    | ev.ReceiptCame
    | ev.Assigned
    | ev.EnrolmentRefused
)
M = TypeVar("M", bound=msg.Message)
_KINDS: Final[Mapping[str, Kind]] = {
    "round": Kind.PLAN,
    "settlement": Kind.SETTLEMENT,
    "model": Kind.MODEL,
    "release": Kind.RELEASE,
    "receipt": Kind.RECEIPT,
    "command": Kind.COMMAND,
}


class AheadError(PeerError):
    """A message is dated ``ahead_s`` seconds ahead of the vehicle's clock: one of the two clocks is wrong."""

    def __init__(self, what: str, ahead_s: float) -> None:
        """Name the message."""
        told = f"{what} is dated {ahead_s:.0f} s ahead of this clock, limit {FUTURE_S:.0f} s"
        super().__init__("from-the-future", told)
        self.ahead_s = ahead_s


@dataclass(frozen=True)
class Seen:
    """The newest of each kind in one region, and what it was; a digest is empty where it is not known.

    ``files`` are the digests of the release's model files, by variant (empty: the release as it is).
    """

    round: int = -1
    revision: int = -1
    plan_sha256: str = ""
    version: int = -1
    onnx_sha256: str = ""
    release: int = -1
    files: Mapping[str, str] = field(default_factory=dict)

    def joined(self, other: "Seen") -> "Seen":
        """Return the newer of both in each kind; of equal ones what this knows stands, the other fills in."""
        plans = ((one.round, one.revision, one.plan_sha256) for one in (other, self))
        models = ((one.version, one.onnx_sha256) for one in (other, self))
        plan = max(plans, key=lambda told: (*told[:2], bool(told[2])))
        model = max(models, key=lambda told: (told[0], bool(told[1])))
        files: Mapping[str, str] = {}
        for one in (other, self):
            files = {**files, **one.files} if one.release == max(self.release, other.release) else files
        return Seen(*plan, *model, max(self.release, other.release), files)


@dataclass(frozen=True)
class Trusted:
    """Whose word counts, for whom, and what is the newest word."""

    fleet: str
    vehicle: str
    task: str
    server_key: bytes | None
    code: str | None = field(default=None, repr=False)
    nonce: str = ""
    region: str = ""
    seen: Mapping[str, Seen] = field(default_factory=dict)
    max_model_bytes: int = 64_000_000

    @property
    def newest(self) -> Seen:
        """Return what was seen last in the own region."""
        return self.seen.get(self.region, Seen())

    @property
    def version_floor(self) -> int:
        """The newest model version seen in any region: the server numbers them for all regions together."""
        return max((one.version for one in self.seen.values()), default=-1)

    @property
    def release_floor(self) -> int:
        """The newest release seen in any region."""
        return max((one.release for one in self.seen.values()), default=-1)

    def noting(self, seen: Seen) -> "Trusted":
        """Return the same with this as the newest of the own region."""
        return replace(self, seen={**self.seen, self.region: seen})


def admit(trusted: Trusted, topic: Topic, sealed: bytes, *, now_s: float) -> tuple[Trusted, ServerEvent]:
    """Return the trusted value after a message, and the event it is.

    Raises PeerError with the envelope's reasons, or: wrong-kind, wrong-topic, wrong-region, wrong-vehicle, wrong-task,
    malformed-message, from-the-future, stale, conflicting, too-large, unknown-server, replayed.
    """
    if topic.kind not in _KINDS or topic.fleet != trusted.fleet:
        raise PeerError("wrong-topic", f"a vehicle takes no {topic.kind} message of fleet {topic.fleet}")
    if topic.vehicle not in {"", trusted.vehicle}:
        raise PeerError("wrong-vehicle", f"{topic.kind} is for {topic.vehicle}, this is {trusted.vehicle}")
    if topic.kind == "command" and _awaits_enrolment(trusted):
        return _enrolled(trusted, sealed)
    if trusted.server_key is None:
        raise PeerError("unknown-server", f"{topic.kind} before this vehicle knows the server's key")
    keyring = Keyring({SERVER: trusted.server_key})
    opened = open_sealed(sealed, keyring, fleet=trusted.fleet, limit_bytes=MESSAGE_BYTES)
    if opened.kind is not _KINDS[topic.kind]:
        raise PeerError("wrong-kind", f"a {opened.kind.name.lower()} message on a {topic.kind} topic")
    return _READERS[topic.kind](trusted, topic, opened.body, opened.digest, now_s)


def _awaits_enrolment(trusted: Trusted) -> bool:
    return trusted.code is not None


def _enrolled(trusted: Trusted, sealed: bytes) -> tuple[Trusted, ServerEvent]:
    if trusted.code is None or not trusted.nonce:
        raise PeerError("replayed", f"an enrolment of {trusted.vehicle} that it has not asked for")
    if trusted.server_key is not None:
        # Signed by the key that is already known: a refusal can be believed.
        keyring = Keyring({SERVER: trusted.server_key})
        opened = open_sealed(sealed, keyring, fleet=trusted.fleet, limit_bytes=MESSAGE_BYTES)
        command = msg.decode(msg.Command, opened.body, sender=SERVER)
        if opened.kind is Kind.COMMAND and command.kind != "enrolled":
            return _obey(trusted, command)
    command = open_enrolled(
        sealed, trusted.code, fleet=trusted.fleet, vehicle=trusted.vehicle, nonce=trusted.nonce
    )
    key = bytes.fromhex(command.server_key)
    if trusted.server_key not in {None, key}:
        raise PeerError(
            "unknown-server", f"enrolment by {command.server_key[:12]}…, which is not the known server key"
        )
    if not command.region:
        raise PeerError("malformed-message", f"enrolment of {trusted.vehicle} without a region")
    after = replace(trusted, server_key=key, region=command.region, code=None)
    return after, ev.Assigned(command.region, enrolled=True)


def _command(
    trusted: Trusted, topic: Topic, body: bytes, digest: str, now_s: float
) -> tuple[Trusted, ServerEvent]:
    del topic, digest, now_s
    return _obey(trusted, msg.decode(msg.Command, body, sender=SERVER))


def _obey(trusted: Trusted, command: msg.Command) -> tuple[Trusted, ServerEvent]:
    if command.vehicle != trusted.vehicle:
        raise PeerError("wrong-vehicle", f"command is for {command.vehicle}, this is {trusted.vehicle}")
    # A server that could not open our request cannot know its nonce: a refusal changes nothing, so it may lack it.
    if not trusted.nonce or (command.nonce != trusted.nonce and command.kind != "refused"):
        raise PeerError("replayed", f"command {command.kind} answers no open request of {trusted.vehicle}")
    if command.kind == "refused":
        return trusted, ev.EnrolmentRefused(command.reason or "no reason given")
    if not command.region:
        raise PeerError("malformed-message", f"command {command.kind} for {trusted.vehicle} without a region")
    after = replace(trusted, region=command.region, code=None)
    return after, ev.Assigned(command.region, enrolled=True)


def _plan(
    trusted: Trusted, topic: Topic, body: bytes, digest: str, now_s: float
) -> tuple[Trusted, ServerEvent]:
    plan = _regional(msg.Plan, trusted, topic, body)
    _not_from_the_future(f"plan of round {plan.round}", plan.opened_at_s, now_s)
    seen = trusted.newest
    told, known = (plan.round, plan.revision), (seen.round, seen.revision)
    if told < known:
        raise PeerError(
            "stale", f"plan {told[0]}.{told[1]} after {known[0]}.{known[1]} in region {plan.region}"
        )
    if told == known and seen.plan_sha256 not in {"", digest}:
        raise PeerError(
            "conflicting", f"plan {told[0]}.{told[1]} of region {plan.region} came with other content before"
        )
    noted = replace(seen, round=plan.round, revision=plan.revision, plan_sha256=digest)
    return trusted.noting(noted), ev.PlanCame(plan)


def _model(
    trusted: Trusted, topic: Topic, body: bytes, digest: str, now_s: float
) -> tuple[Trusted, ServerEvent]:
    del digest, now_s
    pointer = _regional(msg.ModelPointer, trusted, topic, body)
    _check_model(trusted, pointer)
    seen = trusted.newest
    if pointer.version < trusted.version_floor:
        told = f"model version {pointer.version} of region {pointer.region} after {trusted.version_floor}"
        raise PeerError("stale", told)
    if pointer.version == seen.version and seen.onnx_sha256 not in {"", pointer.onnx_sha256}:
        raise PeerError("conflicting", f"model version {pointer.version} came with other content before")
    noted = replace(seen, version=pointer.version, onnx_sha256=pointer.onnx_sha256)
    return trusted.noting(noted), ev.PointerCame(pointer)


def _release(
    trusted: Trusted, topic: Topic, body: bytes, digest: str, now_s: float
) -> tuple[Trusted, ServerEvent]:
    del digest
    release = _regional(msg.Release, trusted, topic, body)
    if (release.model.task, release.model.region) != (release.task, release.region):
        raise PeerError(
            "malformed-message", f"release {release.number} names a model of another task or region"
        )
    _not_from_the_future(f"release {release.number}", release.released_at_s, now_s)
    _check_model(trusted, release.model)
    for ref in filter(None, (release.canary, release.canary_inputs)):
        _check_size(trusted, "canary", ref.size_bytes)
    for each in release.variants:
        sizes = [ref.size_bytes for ref in (each.file, each.canary, each.canary_inputs) if ref is not None]
        for size_bytes in (each.size_bytes, *sizes):
            _check_size(trusted, f"variant {each.kind} of release {release.number}", size_bytes)
    seen = trusted.newest
    if release.number < trusted.release_floor:
        told = f"release {release.number} of region {release.region} after {trusted.release_floor}"
        raise PeerError("stale", told)
    files = {"": release.model.onnx_sha256, **{each.kind: each.onnx_sha256 for each in release.variants}}
    if release.number == seen.release:
        for kind, digest in files.items():
            if seen.files.get(kind, digest) != digest:
                what = f"release {release.number} of region {release.region}"
                raise PeerError(
                    "conflicting", f"{what} came with another model before{kind and f' ({kind})'}"
                )
        files = {**seen.files, **files}
    return trusted.noting(replace(seen, release=release.number, files=files)), ev.ReleaseCame(release)


def _settlement(
    trusted: Trusted, topic: Topic, body: bytes, digest: str, now_s: float
) -> tuple[Trusted, ServerEvent]:
    del digest
    told = _regional(msg.Settlement, trusted, topic, body)
    if (told.round, told.page) != (topic.round, topic.number):
        where = f"round {topic.round}, page {topic.number}"
        raise PeerError(
            "wrong-topic", f"settlement of round {told.round}, page {told.page} on the topic of {where}"
        )
    _not_from_the_future(f"settlement of round {told.round}", told.closed_at_s, now_s)
    return trusted, ev.SettlementCame(told)


def _receipt(
    trusted: Trusted, topic: Topic, body: bytes, digest: str, now_s: float
) -> tuple[Trusted, ServerEvent]:
    del topic, digest, now_s
    receipt = msg.decode(msg.Receipt, body, sender=SERVER)
    if receipt.vehicle != trusted.vehicle:
        raise PeerError("wrong-vehicle", f"receipt is for {receipt.vehicle}, this is {trusted.vehicle}")
    return trusted, ev.ReceiptCame(receipt)


R = TypeVar("R", msg.Plan, msg.ModelPointer, msg.Release, msg.Settlement)


def _regional(kind: type[R], trusted: Trusted, topic: Topic, body: bytes) -> R:
    message = msg.decode(kind, body, sender=SERVER)
    what = kind.__name__
    if not message.region == topic.region == trusted.region:
        told = f"{what} of region {message.region} on the topic of {topic.region}"
        raise PeerError("wrong-region", f"{told}, {trusted.vehicle} is in {trusted.region or 'none'}")
    if not message.task == topic.task == trusted.task:
        raise PeerError(
            "wrong-task",
            f"{what} of task {message.task} on the topic of {topic.task}, expected {trusted.task}",
        )
    return message


def _not_from_the_future(what: str, told_s: float, now_s: float) -> None:
    if told_s > now_s + FUTURE_S:
        raise AheadError(what, told_s - now_s)


def _check_model(trusted: Trusted, model: msg.ModelPointer) -> None:
    if sum(segment.size for segment in model.segments) != model.parameters:
        raise PeerError(
            "malformed-message", f"segments of model version {model.version} do not cover its parameters"
        )
    _check_size(trusted, f"model version {model.version}", model.parameters * 4)
    hops: tuple[msg.DeltaRef | msg.PackRef, ...] = (*model.deltas, *model.packs)
    for ref in (model.graph, model.full, *(hop.blob for hop in hops)):
        _check_size(trusted, f"a blob of model version {model.version}", ref.size_bytes)


def _check_size(trusted: Trusted, what: str, size_bytes: int) -> None:
    if size_bytes > trusted.max_model_bytes:
        raise PeerError("too-large", f"{what} is {size_bytes} bytes, limit {trusted.max_model_bytes}")


_READERS: Final[Mapping[str, Callable[[Trusted, Topic, bytes, str, float], tuple[Trusted, ServerEvent]]]] = {
    "round": _plan,
    "model": _model,
    "release": _release,
    "settlement": _settlement,
    "receipt": _receipt,
    "command": _command,
}
