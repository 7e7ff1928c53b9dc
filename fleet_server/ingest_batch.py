"""One batch of messages in one transaction: opened, judged, written, answered. `ingest` decides what comes in here."""

import logging
from collections import Counter
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256

import structlog
from sqlalchemy import Connection

from fedfleet.fleet_server import requests, store_quarantine, store_updates, store_vehicles, troubles
from fedfleet.fleet_server.admission import Accepted, Candidate, View, expect, judge, open_update
from fedfleet.fleet_server.ingest_door import Received
from fedfleet.fleet_server.ingest_pieces import collect, named_digest
from fedfleet.fleet_server.ingest_share import Shares
from fedfleet.fleet_server.pieces import Pieces
from fedfleet.fleet_server.requests import Outgoing, Party
from fedfleet.fleet_server.store_files import files_of
from fedfleet.fleet_server.store_quarantine import Quarantined
from fedfleet.fleet_server.store_updates import Known
from fedfleet.link.port import Delivery
from fedfleet.protocol import chunks, envelope, messages, topics
from fedfleet.protocol.envelope import Kind
from fedfleet.protocol.errors import PeerError
from fedfleet.protocol.messages import Metrics, Receipt, Status
from fedfleet.protocol.topics import Topic

__all__ = ["MESSAGE_LIMIT_BYTES", "Batch"]

log = structlog.get_logger()

CLOCK_AHEAD_S = 60.0
"""By so much may a vehicle's clock be ahead of the server's before the log tells of it."""
WAITING_LIMIT_BYTES = 4096
"""Largest status that is kept for a vehicle which is about to enrol."""
MESSAGE_LIMIT_BYTES = 64_000
"""Largest sealed message of a vehicle that is no update, in bytes."""
RUN_BYTES = 16_000_000
"""Opened updates that wait to be stored together, in bytes; one more may be above."""


@dataclass(frozen=True)
class Line:
    """A line for the log. ``matter`` names its reason where one such line a minute is enough for each vehicle."""

    write: Callable[[], object]
    vehicle: str = ""
    matter: str = ""


class Batch:
    """One transaction of `Ingest`: what the messages in it see of each other.

    Updates that follow each other are opened first, looked up with one query and written with one statement. ``lines``
    are for the log once it is committed; then ``pieces`` may drop what was ``joined``. ``waiting`` are the statuses of
    vehicles that are about to enrol, at most as many as there are open codes.
    """

    def __init__(
        self,
        connection: Connection,
        view: View,
        *,
        party: Party,
        pieces: Pieces,
        waiting: MutableMapping[str, Delivery],
        now_s: float,
    ) -> None:
        self.connection, self.view, self.party, self.now_s = connection, view, party, now_s
        self.pieces, self.waiting = pieces, waiting
        self.stored = 0
        self.counts: Counter[str] = Counter()
        self.enrolled: list[str] = []
        self.joined: set[tuple[str, str]] = set()
        self.lines: list[Line] = []
        self._outgoing: list[Outgoing] = []
        self._run: list[tuple[Delivery, Topic, Candidate | PeerError]] = []
        self._run_bytes = 0
        self._refused: list[Quarantined] = []

    def take_all(self, received: Sequence[Received]) -> list[Outgoing]:
        """Write what the messages say and return the answers; refused ones go to the quarantine."""
        for delivery, topic in received:
            self._take(delivery, topic)
        self._finish_run()
        limits = self.view.limits
        store_quarantine.put_aside(
            self.connection, self._refused, keep=limits.quarantine_keep, keep_bytes=limits.quarantine_bytes
        )
        store_updates.count_all(self.connection, self.counts)
        return self._outgoing

    def put_aside(self, received: Received, error: PeerError) -> list[Outgoing]:
        """Refuse a message whose handling failed, without looking at it again."""
        delivery, topic = received
        self._refuse(delivery, error, topic if isinstance(topic, Topic) else None)
        return self.take_all([])

    def _take(self, delivery: Delivery, topic: Topic | PeerError) -> None:
        if not delivery.payload:
            return  # a retained topic was cleared
        if isinstance(topic, PeerError):
            self._refuse(delivery, topic)
            return
        try:
            self._handle(delivery, topic)
        except PeerError as error:
            self._refuse(delivery, error, topic)

    def _handle(self, delivery: Delivery, topic: Topic) -> None:
        if topic.kind == "update":
            self._update(delivery, topic)
            return
        self._finish_run()
        match topic.kind:
            case "status":
                self._status(delivery, topic)
            case "metrics":
                self._metrics(delivery, topic)
            case "request":
                self._request(delivery, topic)
            case _:
                raise PeerError("wrong-topic", f"{delivery.topic[:80]} is not for the server")

    def _refuse(self, delivery: Delivery, error: PeerError, topic: Topic | None = None) -> None:
        sealed, party = delivery.payload, self.party
        digest = sha256(sealed).hexdigest()
        vehicle = topic.vehicle if topic is not None else ""
        head = (self.now_s, error.reason, error.detail, vehicle, delivery.topic)
        self._refused.append(Quarantined(*head, digest, len(sealed), sealed))
        self.counts[f"refused:{error.reason}"] += 1
        about = self._about(topic) | {"reason": error.reason, "detail": error.detail}
        line = partial(log.warning, "message refused", **about, topic=delivery.topic[:100])
        self.lines.append(Line(line, vehicle, error.reason))
        if topic is not None and error.reason == "replayed-id":
            store_vehicles.note_shared(self.connection, vehicle, self.now_s)
            self._shared(topic, "a number of its updates was used for two")
        if topic is not None and topic.kind == "update":
            named = named_digest(sealed, topic, self.view)
            told = Receipt(vehicle=vehicle, sealed_sha256=named, outcome="refused", reason=error.reason)
            self._outgoing.append(party.receipt(told))
        if topic is not None and topic.kind == "request":
            self._outgoing.append(party.refusal(vehicle, error.reason))

    def _say(self, method: Callable[..., object], text: str, **values: object) -> None:
        self.lines.append(Line(partial(method, text, **values)))

    def _about(self, topic: Topic | None) -> dict[str, int | str]:
        """Return round, region and vehicle for a line of the log, as far as the topic and the store tell them."""
        if topic is None or not topic.vehicle:
            return {}
        round_: dict[str, int | str] = {"round": topic.round} if topic.round >= 0 else {}
        region = self.view.regions.get(topic.vehicle)
        return round_ | ({"region": region} if region else {}) | {"vehicle": topic.vehicle}

    def _update(self, delivery: Delivery, topic: Topic) -> None:
        digest = ""
        if chunks.is_chunk(delivery.payload):
            found = collect(
                delivery.payload, topic, self.view, self.pieces, joined=self.joined, now_s=self.now_s
            )
            if isinstance(found, Known):
                self.counts["duplicates"] += 1
                self._outgoing.append(self._receipt(found, topic.vehicle))
                return
            if isinstance(found, str):
                if found != "kept":
                    self.counts[f"ignored:{found}"] += 1
                return
            digest, whole = found
            files_of(self.connection).offer(digest, self.pieces.path(topic.vehicle, digest))
            delivery = replace(delivery, payload=whole)
        try:
            one: Candidate | PeerError = open_update(delivery.payload, topic, self.view, digest=digest)
        except PeerError as error:
            one = error
        self._run.append((delivery, topic, one))
        self._run_bytes += len(delivery.payload)
        if self._run_bytes > RUN_BYTES:
            self._finish_run()

    def _finish_run(self) -> None:
        """Judge the opened updates in order of arrival, store the good ones, answer all."""
        run, self._run, self._run_bytes = self._run, [], 0
        if not run:
            return
        opened = [one.manifest.id for _, _, one in run if isinstance(one, Candidate)]
        known = store_updates.known_of(self.connection, opened)
        shares = self._shares([one for _, _, one in run if isinstance(one, Candidate)])
        accepted: list[Accepted] = []
        is_debugging = log.is_enabled_for(logging.DEBUG)
        for delivery, topic, one in run:
            try:
                if isinstance(one, PeerError):
                    raise one
                verdict = judge(one, known.get(one.manifest.id), self.view)
                if isinstance(verdict, Accepted):
                    shares.take(one.manifest, verdict.update.sealed_bytes)
            except PeerError as error:
                self._refuse(delivery, error, topic)
                continue
            if isinstance(verdict, Accepted):
                accepted.append(verdict)
                name = str(one.manifest.id)
                if is_debugging:
                    about = self._about(topic)
                    self._say(log.debug, "update stored", **about, update=name, fate=verdict.fate)
                found = Known(name, one.digest, verdict.fate, verdict.reason)
                known[one.manifest.id] = found
            else:
                self.counts["duplicates"] += 1
                found = verdict.known
            self._outgoing.append(self._receipt(found, topic.vehicle))
        rows = [(one.update, one.fate, one.reason) for one in accepted]
        store_updates.add_updates(self.connection, rows, now_s=self.now_s)
        self.stored += len(rows)

    def _shares(self, candidates: Sequence[Candidate]) -> Shares:
        stored = store_updates.stored_of(self.connection, [one.manifest for one in candidates])
        return Shares(stored, update_bytes=self.view.limits.update_bytes)

    def _receipt(self, found: Known, vehicle: str) -> Outgoing:
        receipt = Receipt(
            vehicle=vehicle,
            sealed_sha256=found.sealed_sha256,
            update=found.update_id,
            outcome="stored",
            reason=found.reason,
            fate=found.fate,
        )
        return self.party.receipt(receipt)

    def _open(self, delivery: Delivery, topic: Topic, kind: Kind) -> bytes:
        view = self.view
        opened = envelope.open_sealed(
            delivery.payload, view.keyring, fleet=view.fleet, limit_bytes=MESSAGE_LIMIT_BYTES
        )
        expect(opened, kind, topic)
        return opened.body

    def _status(self, delivery: Delivery, topic: Topic) -> None:
        vehicle = topic.vehicle
        if vehicle not in self.view.keyring.keys and requests.has_code(
            self.connection, self.party, vehicle, self.now_s
        ):
            if len(delivery.payload) > WAITING_LIMIT_BYTES:
                told = f"status of {vehicle}, which is not enrolled, is {len(delivery.payload)} bytes"
                raise PeerError("too-large", f"{told}, limit {WAITING_LIMIT_BYTES}")
            self.waiting[vehicle] = delivery
            return
        status = messages.decode(Status, self._open(delivery, topic, Kind.STATUS), sender=vehicle)
        _check_told(status.vehicle, vehicle)
        about = self._about(topic)
        self._say(log.debug, "vehicle status", **about, state=status.state, reason=status.reason)
        self._check_clock(status.at_s, vehicle)
        saved = store_vehicles.save_status(self.connection, status, now_s=self.now_s)
        if saved == "ignored":
            self.counts["ignored:stale-status"] += 1
        if saved == "shared":
            self._shared(topic, "two processes use its id, and take each other's connection")

    def _shared(self, topic: Topic, what: str) -> None:
        """Say that a vehicle's id is used twice."""
        self.counts["shared-id"] += 1
        text = f"{what}: is there a copy of its folder?"
        line = partial(log.warning, "vehicle id used twice", **self._about(topic), what=text)
        self.lines.append(Line(line, topic.vehicle, "shared-id"))

    def _metrics(self, delivery: Delivery, topic: Topic) -> None:
        metrics = messages.decode(Metrics, self._open(delivery, topic, Kind.METRICS), sender=topic.vehicle)
        _check_told(metrics.vehicle, topic.vehicle)
        self._check_clock(metrics.at_s, topic.vehicle)
        before = store_vehicles.metrics_of(self.connection, topic.vehicle) if troubles.of(metrics) else None
        if not store_vehicles.save_metrics(self.connection, metrics, now_s=self.now_s):
            self.counts["ignored:stale-metrics"] += 1
            return
        for reason, times in troubles.risen(before, metrics).items():
            line = partial(
                log.warning, "vehicle reports trouble", **self._about(topic), reason=reason, times=times
            )
            self.lines.append(Line(line, topic.vehicle, f"reports {reason}"))

    def _check_clock(self, at_s: float, vehicle: str) -> None:
        """Tell of a vehicle whose clock is ahead; the time of its message counts as the server's."""
        ahead_s = at_s - self.now_s
        if ahead_s > CLOCK_AHEAD_S:
            self.counts["corrected:clock-ahead"] += 1
            told = {"vehicle": vehicle, "ahead_s": round(ahead_s)}
            line = partial(log.warning, "the clock of a vehicle is ahead: its times are not believed", **told)
            self.lines.append(Line(line, vehicle, "clock-ahead"))

    def _request(self, delivery: Delivery, topic: Topic) -> None:
        party, vehicle = self.party, topic.vehicle
        before = self.view.keyring.keys.get(vehicle)
        stamp = store_vehicles.stamp(self.connection)
        answer = requests.answer(
            self.connection,
            party,
            delivery.payload,
            vehicle=vehicle,
            keyring=self.view.keyring,
            now_s=self.now_s,
        )
        self._outgoing.append(answer)
        if store_vehicles.stamp(self.connection) == stamp:
            return
        keyring, regions = store_vehicles.keyring(self.connection), store_vehicles.regions(self.connection)
        self.view = replace(self.view, keyring=keyring, regions=regions)
        self.enrolled.append(vehicle)
        self._say(log.info, "vehicle enrolled", region=regions.get(vehicle), vehicle=vehicle)
        if before not in {None, keyring.keys[vehicle]}:
            self.counts["enrolled:new-key"] += 1
            self._say(log.warning, "vehicle has a new key, by its enrolment code", vehicle=vehicle)
        if waiting := self.waiting.get(vehicle):
            self._take(waiting, topics.parse(waiting.topic))


def _check_told(told: str, vehicle: str) -> None:
    if told != vehicle:
        raise PeerError("wrong-sender", f"{vehicle} sent a message that names {told}")
