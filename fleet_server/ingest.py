"""The door: messages of vehicles into the store, a batch in one transaction.

Only after its commit may the broker be told to forget them, and the vehicles hear of it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from hashlib import sha256

import structlog
from sqlalchemy import Connection

from fedfleet.fleet_server import requests, store_rounds, store_updates, store_vehicles
from fedfleet.fleet_server.admission import Duplicate, Limits, View, expect, judge
from fedfleet.fleet_server.requests import Outgoing, Party
from fedfleet.fleet_server.store import Store
from fedfleet.fleet_server.store_updates import Known, Quarantined
from fedfleet.link.port import Delivery
from fedfleet.protocol import chunks, envelope, messages, topics
from fedfleet.protocol.envelope import Kind
from fedfleet.protocol.errors import PeerError
from fedfleet.protocol.messages import Metrics, Receipt, Status
from fedfleet.protocol.signing import Keyring
from fedfleet.protocol.topics import Topic

__all__ = ["MESSAGE_LIMIT_BYTES", "Ingest"]

log = structlog.get_logger()

MESSAGE_LIMIT_BYTES = 64_000
"""Largest sealed message of a vehicle that is no update, in bytes."""


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
            find_round=cache(
                lambda number, region: store_rounds.find(connection, number=number, region=region)
            ),
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
        try:
            topic = topics.parse(delivery.topic)
        except PeerError as error:
            return self._refuse(delivery, error)
        try:
            return self._handle(delivery, topic)
        except PeerError as error:
            return self._refuse(delivery, error, topic)

    def _handle(self, delivery: Delivery, topic: Topic) -> list[Outgoing]:
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

    def _refuse(self, delivery: Delivery, error: PeerError, topic: Topic | None = None) -> list[Outgoing]:
        ingest, sealed = self.ingest, delivery.payload
        digest = sha256(sealed).hexdigest()
        vehicle = topic.vehicle if topic is not None else ""
        head = (self.now_s, error.reason, error.detail, vehicle, delivery.topic)
        one = Quarantined(*head, digest, len(sealed), sealed)
        store_updates.put_aside(self.connection, one, keep=ingest.limits.quarantine_keep)
        log.warning("message refused", reason=error.reason, detail=error.detail, topic=delivery.topic[:100])
        if topic is not None and topic.kind == "update":
            told = Receipt(
                vehicle=topic.vehicle, sealed_sha256=digest, outcome="refused", reason=error.reason
            )
            return [ingest.party.receipt(told)]
        if topic is not None and topic.kind == "request":
            return [ingest.party.refusal(topic.vehicle, error.reason)]
        return []

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
        if (
            store_updates.count_chunks(self.connection, vehicle=topic.vehicle, digest=piece.digest)
            < piece.count
        ):
            return []
        pieces = store_updates.chunks(self.connection, vehicle=topic.vehicle, digest=piece.digest)
        store_updates.drop_chunks(self.connection, vehicle=topic.vehicle, digest=piece.digest)
        sealed = chunks.join(pieces)
        try:
            return self._sealed_update(sealed, topic)
        except PeerError as error:
            return self._refuse(replace(delivery, payload=sealed), error, topic)

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
        expect(opened, kind, topic)
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
