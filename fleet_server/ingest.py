"""The door: what a vehicle's message has to be before it counts, and what is written when it is.

``judge`` is pure: a message, its topic and a view of the store in, a verdict out. ``Ingest`` runs a batch of
messages in one transaction; only after its commit may the broker be told to forget them.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256

from sqlalchemy import Connection

from fedfleet.codec import payload
from fedfleet.fleet_server import requests, store_rounds, store_updates, store_vehicles
from fedfleet.fleet_server.fold import check_update, example_weight
from fedfleet.fleet_server.requests import Outgoing, Party
from fedfleet.fleet_server.store import Store
from fedfleet.fleet_server.store_rounds import Round
from fedfleet.fleet_server.store_updates import Known, Quarantined, StoredUpdate
from fedfleet.link.port import Delivery
from fedfleet.protocol import chunks, envelope, messages, topics, update
from fedfleet.protocol.envelope import Kind
from fedfleet.protocol.errors import PeerError
from fedfleet.protocol.ids import UpdateId
from fedfleet.protocol.messages import Fate, Metrics, Receipt, Status
from fedfleet.protocol.signing import Keyring
from fedfleet.protocol.topics import Topic

__all__ = ["MESSAGE_LIMIT_BYTES", "Accepted", "Duplicate", "Ingest", "Limits", "View", "judge"]

MESSAGE_LIMIT_BYTES = 64_000
"""Largest sealed message of a vehicle that is no update, in bytes."""


@dataclass(frozen=True)
class Limits:
    """What bounds an update: sealed bytes, parameters of the model, examples that count."""

    update_bytes: int
    parameters: int
    example_cap: int
    quarantine_keep: int = 1000


@dataclass(frozen=True)
class View:
    """What `judge` may know: the keys, each vehicle's region, and what the store says of rounds and updates."""

    fleet: str
    task: str
    keyring: Keyring
    regions: Mapping[str, str]
    limits: Limits
    find_round: Callable[[int, str], Round | None]
    find_update: Callable[[UpdateId], Known | None]
    newest_round: int


@dataclass(frozen=True)
class Accepted:
    """The update is good. ``fate`` is set when it came too late to be folded."""

    update: StoredUpdate
    fate: Fate | None = None
    reason: str = ""


@dataclass(frozen=True)
class Duplicate:
    """The very same message is stored already; this is what is recorded of it."""

    known: Known


def judge(sealed: bytes, topic: Topic, view: View) -> Accepted | Duplicate:
    """Check an update message in the order size, header, digest, key, signature, manifest, freshness, payload.

    Raises PeerError, besides the reasons of envelope, manifest, payload and fold: wrong-kind, wrong-sender,
    wrong-topic, wrong-region, replayed-id, from-the-future, round-unknown, wrong-base.
    """
    opened = envelope.open_sealed(
        sealed, view.keyring, fleet=view.fleet, limit_bytes=view.limits.update_bytes
    )
    _expect(opened, Kind.UPDATE, topic)
    manifest, body = update.unpack(opened.body, sender=opened.sender)
    _check_place(manifest, topic, view)
    known = view.find_update(manifest.id)
    if known is not None:
        if known.sealed_sha256 != opened.digest:
            raise PeerError("replayed-id", f"update {manifest.id} is stored with other content")
        return Duplicate(known)
    state = _check_fresh(manifest, view)
    decoded = payload.decode(body, size=view.limits.parameters)
    weight = example_weight(decoded.examples, cap=view.limits.example_cap)
    check_update(manifest.id, decoded.delta, weight, size=view.limits.parameters)
    stored = StoredUpdate(manifest, body, decoded.steps, decoded.examples, opened.digest, len(sealed))
    return Accepted(stored) if state == "open" else Accepted(stored, "returned", "late")


def _expect(opened: envelope.Opened, kind: Kind, topic: Topic) -> None:
    if opened.kind is not kind:
        raise PeerError("wrong-kind", f"{opened.sender} sent {opened.kind.name} to a topic for {kind.name}")
    if opened.sender != topic.vehicle:
        raise PeerError("wrong-sender", f"{opened.sender} sent to a topic of {topic.vehicle}")


def _check_place(manifest: update.Manifest, topic: Topic, view: View) -> None:
    if (manifest.task, manifest.round) != (topic.task, topic.round) or manifest.task != view.task:
        told = f"{manifest.task} round {manifest.round} in a topic of {topic.task} round {topic.round}"
        raise PeerError("wrong-topic", f"update {manifest.id}: {told}, this server runs {view.task}")
    expected = view.regions[manifest.id.vehicle]
    if manifest.region != expected:
        raise PeerError("wrong-region", f"update {manifest.id} is for {manifest.region}, expected {expected}")


def _check_fresh(manifest: update.Manifest, view: View) -> str:
    if manifest.round > view.newest_round:
        told = f"round {manifest.round}: update {manifest.id} came before it, newest is {view.newest_round}"
        raise PeerError("from-the-future", told)
    found = view.find_round(manifest.round, manifest.region)
    if found is None:
        raise PeerError("round-unknown", f"round {manifest.round} of {manifest.region} is not known")
    if manifest.base_version != found.plan.base_version:
        told = f"update {manifest.id} trained from version {manifest.base_version}"
        raise PeerError("wrong-base", f"round {manifest.round}: {told}, expected {found.plan.base_version}")
    return found.state


@dataclass
class Ingest:
    """Takes batches of messages into the store. ``stored`` counts the updates accepted since the start."""

    store: Store
    party: Party
    limits: Limits
    stored: int = 0
    _keyring: Keyring = field(default_factory=lambda: Keyring({}))
    _regions: Mapping[str, str] = field(default_factory=dict)
    _stamp: int = -1
    _waiting: dict[str, Delivery] = field(default_factory=dict)

    def receive(self, deliveries: Iterable[Delivery], now_s: float) -> list[Outgoing]:
        """Take a batch in one transaction; return what to publish after the broker was told to forget it.

        Raises StoreFailed, nothing applied: then nothing of the batch may be acknowledged.
        """
        self._refresh()
        with self.store.write() as connection:
            batch = _Batch(self, connection, now_s)
            outgoing = [one for delivery in deliveries for one in batch.take(delivery)]
        self.stored += batch.stored
        self._keyring, self._regions = batch.view.keyring, batch.view.regions
        return outgoing

    def _refresh(self) -> None:
        stamp = self.store.change_stamp()
        if stamp != self._stamp:
            with self.store.read() as connection:
                self._keyring = store_vehicles.keyring(connection)
                self._regions = store_vehicles.regions(connection)
            self._stamp = stamp

    def view(self, connection: Connection) -> View:
        """Return what `judge` may know, inside one transaction."""
        current = store_rounds.current(connection)
        return View(
            fleet=self.party.fleet,
            task=self.party.task,
            keyring=self._keyring,
            regions=self._regions,
            limits=self.limits,
            find_round=lambda number, region: store_rounds.find(connection, number=number, region=region),
            find_update=lambda update_id: store_updates.known(connection, update_id),
            newest_round=next((one.plan.round for one in current.values()), -1),
        )

    def wait_for_enrolment(self, vehicle: str, delivery: Delivery) -> None:
        """Keep the status of a vehicle that is about to enrol; there are at most as many as open codes."""
        self._waiting[vehicle] = delivery

    def waiting(self, vehicle: str) -> Delivery | None:
        """Take the status that a vehicle had sent before it enrolled."""
        return self._waiting.pop(vehicle, None)


class _Batch:
    """One transaction of `Ingest`: what the messages in it see of each other."""

    def __init__(self, ingest: Ingest, connection: Connection, now_s: float) -> None:
        self.ingest, self.connection, self.now_s = ingest, connection, now_s
        self.view = ingest.view(connection)
        self.stored = 0

    def take(self, delivery: Delivery) -> list[Outgoing]:
        """Write what a message says and return the answers; a refused one goes to the quarantine."""
        if not delivery.payload:
            return []  # a retained topic was cleared
        digest = sha256(delivery.payload).hexdigest()
        vehicle = ""
        try:
            topic = topics.parse(delivery.topic)
            vehicle = topic.vehicle
            match topic.kind:
                case "update":
                    return self._update(delivery, topic)
                case "status":
                    return self._status(delivery, topic)
                case "metrics":
                    return self._metrics(delivery, topic)
                case "request":
                    return self._request(delivery, topic)
                case _:
                    raise PeerError("wrong-topic", f"{delivery.topic[:80]} is not for the server")
        except PeerError as error:
            return self._refuse(delivery, error, vehicle=vehicle, digest=digest)

    def _refuse(self, delivery: Delivery, error: PeerError, *, vehicle: str, digest: str) -> list[Outgoing]:
        one = Quarantined(
            self.now_s,
            error.reason,
            error.detail,
            delivery.topic,
            digest,
            len(delivery.payload),
            delivery.payload,
        )
        store_updates.put_aside(self.connection, one, keep=self.ingest.limits.quarantine_keep)
        party = self.ingest.party
        if not vehicle:
            return []
        kind = topics.parse(delivery.topic).kind
        if kind == "update":
            told = Receipt(vehicle=vehicle, sealed_sha256=digest, outcome="refused", reason=error.reason)
            return [party.receipt(told)]
        return [party.refusal(vehicle, error.reason)] if kind == "request" else []

    def _update(self, delivery: Delivery, topic: Topic) -> list[Outgoing]:
        if not chunks.is_chunk(delivery.payload):
            return self._sealed_update(delivery.payload, topic)
        if topic.vehicle not in self.view.keyring.keys:
            raise PeerError("unknown-sender", f"{topic.vehicle} is not enrolled in fleet {self.view.fleet}")
        limit = self.ingest.limits.update_bytes
        piece = chunks.read_chunk(delivery.payload, number=topic.number, limit_bytes=limit)
        store_updates.add_chunk(
            self.connection, piece, vehicle=topic.vehicle, round_=topic.round, now_s=self.now_s
        )
        pieces = store_updates.chunks(self.connection, vehicle=topic.vehicle)
        if len(pieces) < piece.count:
            return []
        store_updates.drop_chunks(self.connection, vehicle=topic.vehicle)
        return self._joined(delivery, topic, pieces)

    def _joined(self, delivery: Delivery, topic: Topic, pieces: list[chunks.Chunk]) -> list[Outgoing]:
        try:
            sealed = chunks.join(pieces)
        except PeerError as error:
            return self._refuse(delivery, error, vehicle=topic.vehicle, digest=pieces[0].digest)
        try:
            return self._sealed_update(sealed, topic)
        except PeerError as error:
            whole = replace(delivery, payload=sealed)
            return self._refuse(whole, error, vehicle=topic.vehicle, digest=pieces[0].digest)

    def _sealed_update(self, sealed: bytes, topic: Topic) -> list[Outgoing]:
        verdict = judge(sealed, topic, self.view)
        if isinstance(verdict, Duplicate):
            store_updates.count(self.connection, "duplicates")
            known = verdict.known
        else:
            one = verdict.update
            store_updates.add_update(
                self.connection, one, now_s=self.now_s, fate=verdict.fate, reason=verdict.reason
            )
            self.stored += 1
            known = Known(str(one.manifest.id), one.sealed_sha256, verdict.fate, verdict.reason)
        receipt = Receipt(
            vehicle=topic.vehicle,
            sealed_sha256=known.sealed_sha256,
            update=known.update_id,
            outcome="stored",
            reason=known.reason,
            fate=known.fate,
        )
        return [self.ingest.party.receipt(receipt)]

    def _open(self, delivery: Delivery, topic: Topic, kind: Kind) -> bytes:
        view = self.view
        opened = envelope.open_sealed(
            delivery.payload, view.keyring, fleet=view.fleet, limit_bytes=MESSAGE_LIMIT_BYTES
        )
        _expect(opened, kind, topic)
        return opened.body

    def _status(self, delivery: Delivery, topic: Topic) -> list[Outgoing]:
        vehicle = topic.vehicle
        if vehicle not in self.view.keyring.keys and requests.has_code(
            self.connection, self.ingest.party, vehicle
        ):
            self.ingest.wait_for_enrolment(vehicle, delivery)
            return []
        status = messages.decode(Status, self._open(delivery, topic, Kind.STATUS), sender=vehicle)
        _check_told(status.vehicle, vehicle)
        if not store_vehicles.save_status(self.connection, status):
            store_updates.count(self.connection, "ignored:stale-status")
        return []

    def _metrics(self, delivery: Delivery, topic: Topic) -> list[Outgoing]:
        metrics = messages.decode(Metrics, self._open(delivery, topic, Kind.METRICS), sender=topic.vehicle)
        _check_told(metrics.vehicle, topic.vehicle)
        if not store_vehicles.save_metrics(self.connection, metrics):
            store_updates.count(self.connection, "ignored:stale-metrics")
        return []

    def _request(self, delivery: Delivery, topic: Topic) -> list[Outgoing]:
        party, vehicle = self.ingest.party, topic.vehicle
        answer = requests.answer(
            self.connection,
            party,
            delivery.payload,
            vehicle=vehicle,
            keyring=self.view.keyring,
            now_s=self.now_s,
        )
        if vehicle in self.view.keyring.keys:
            return [answer]
        keyring, regions = store_vehicles.keyring(self.connection), store_vehicles.regions(self.connection)
        self.view = replace(self.view, keyring=keyring, regions=regions)
        before = self.ingest.waiting(vehicle)
        return [answer, *(self.take(before) if before else [])]


def _check_told(told: str, vehicle: str) -> None:
    if told != vehicle:
        raise PeerError("wrong-sender", f"{vehicle} sent a message that names {told}")
