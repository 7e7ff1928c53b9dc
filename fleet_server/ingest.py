"""The door: messages of vehicles into the store, a batch in one transaction.

Only after its commit may the broker be told to forget them, and the vehicles hear of it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial

import structlog
from sqlalchemy import Connection

from fedfleet.codec.parts import Parts
from fedfleet.fleet_server import store_codes, store_rounds, store_updates, store_vehicles
from fedfleet.fleet_server.admission import Limits, View
from fedfleet.fleet_server.config_rounds import RoundsConfig
from fedfleet.fleet_server.coordinates import Coordinates
from fedfleet.fleet_server.ingest_batch import Batch
from fedfleet.fleet_server.ingest_door import Door, Received, party_of
from fedfleet.fleet_server.ingest_share import LARGEST_PER_ROUND
from fedfleet.fleet_server.pieces import Pieces, Room
from fedfleet.fleet_server.rate import Limiter, Rate
from fedfleet.fleet_server.requests import Outgoing, Party
from fedfleet.fleet_server.store import Store, StoreFailed
from fedfleet.fleet_server.store_norms import Norms
from fedfleet.fleet_server.store_waiting import Late
from fedfleet.link.port import Delivery
from fedfleet.protocol.errors import PeerError
from fedfleet.protocol.signing import Keyring

__all__ = ["INTERNAL_ERROR", "Ingest"]

log = structlog.get_logger()

DEFAULT_RATE = Rate(per_s=100.0, burst=1000)
INTERNAL_ERROR = "internal-error"
"""Reason for a message whose handling failed by a mistake of ours."""
PIECES_FOLDER = "incomplete"


@dataclass
class Ingest:
    """Takes batches of messages into the store. ``stored`` counts the updates accepted since the start."""

    store: Store
    party: Party
    limits: Limits
    limiter: Limiter = field(default_factory=lambda: Limiter(DEFAULT_RATE))
    rounds: RoundsConfig = field(default_factory=RoundsConfig)
    stored: int = 0
    _keyring: Keyring = field(default_factory=lambda: Keyring({}))
    _regions: Mapping[str, str] = field(default_factory=dict)
    _moved: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    _stamp: int = -1
    _known: frozenset[str] = frozenset()
    _waiting: dict[str, Delivery] = field(default_factory=dict)
    _told_s: float = 0.0

    def __post_init__(self) -> None:
        """Name coordinates as the model is divided, and take over what an earlier process has of incomplete updates."""
        limits = self.limits
        self._norms = Norms(factor=self.limits.norm_factor, parameters=self.limits.parameters)
        self._coordinates = Coordinates(limits.parts or Parts.whole(limits.parameters))
        most = LARGEST_PER_ROUND * limits.update_bytes
        room = Room(most, max(most, limits.incomplete_bytes), limits.incomplete_age_s)
        self._pieces = Pieces(self.store.folder / PIECES_FOLDER, room)
        self._door = Door(self.limiter)
        with self.store.read() as connection:
            self._refresh(connection)

    def receive(self, deliveries: Iterable[Delivery], now_s: float) -> list[Outgoing]:
        """Take a batch in one transaction; return what to publish after the broker was told to forget it.

        What comes at QoS 0 or above its vehicle's rate is dropped before anything in it is looked at, and counted: no
        answer, no quarantine; an honest vehicle sends again later. A message whose handling raises costs itself only:
        it is refused as internal-error, the others are taken without it. Raises StoreFailed: then nothing of the
        batch may be acknowledged; it is given again when the store can be written.
        """
        admitted = self._door.admit(deliveries, self._known, now_s)
        try:
            outgoing = self._take(admitted, now_s) if admitted else []
        except StoreFailed:
            self._door.refund(admitted, self._known)
            raise
        self.tell_rest(now_s)
        return outgoing

    def turned_away(self, messages: Mapping[tuple[str, str], int], now_s: float) -> None:
        """Count messages that were dropped before they came here, by the vehicle in their topic and the reason."""
        for (vehicle, reason), number in messages.items():
            self._door.turn_away(vehicle if vehicle in self._known else "", reason, number, now_s=now_s)

    def tell_rest(self, now_s: float) -> None:
        """Tell the log of what repeated itself in minutes that are over; looked at once a second."""
        if not 0 <= now_s - self._told_s < 1:
            self._told_s = now_s
            self._door.tell_rest(now_s)

    def _take(self, received: Sequence[Received], now_s: float) -> list[Outgoing]:
        """Take messages in one transaction, or in two halves, until the one is found that cannot be handled."""
        try:
            return self._transact(lambda batch: batch.take_all(received), now_s)
        except StoreFailed:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not stop the server
            if len(received) > 1:
                half = len(received) // 2
                return self._take(received[:half], now_s) + self._take(received[half:], now_s)
            return self._put_aside(received[0], error, now_s)

    def _put_aside(self, received: Received, error: Exception, now_s: float) -> list[Outgoing]:
        who = party_of(received[1], self._known)
        told = f"{type(error).__name__}: {error}"[:300]
        if self._door.lines.admits((who, "handling-failed"), now_s):
            topic = received[0].topic[:100]
            log.error("a message could not be handled", vehicle=who, topic=topic, error=told, exc_info=error)
        refusal = PeerError(INTERNAL_ERROR, told)
        try:
            outgoing = self._transact(lambda batch: batch.put_aside(received, refusal), now_s)
        except StoreFailed:
            raise
        except Exception as second:
            raise StoreFailed(f"store {self.store.name}: {type(second).__name__}: {second}") from second
        self._door.charge(who, now_s)
        return outgoing

    def _transact(self, act: Callable[[Batch], list[Outgoing]], now_s: float) -> list[Outgoing]:
        dropped = self._door.dropped
        with self.store.write() as connection:
            self._refresh(connection)
            batch = Batch(
                connection,
                self.view(connection),
                party=self.party,
                pieces=self._pieces,
                waiting=self._waiting,
                now_s=now_s,
            )
            batch.counts.update(dropped)
            outgoing = act(batch)
        dropped.clear()
        self._finish(batch, now_s)
        return outgoing

    def _finish(self, batch: Batch, now_s: float) -> None:
        """Do what a committed batch asks for."""
        self.stored += batch.stored
        for vehicle in batch.enrolled:
            self._waiting.pop(vehicle, None)
        for vehicle, digest in batch.joined:
            self._pieces.drop(vehicle, digest)
        self._pieces.expire(now_s)
        for line in batch.lines:
            who = line.vehicle if line.vehicle in self._known else ""
            if not line.matter or self._door.lines.admits((who, line.matter), now_s):
                line.write()

    def _refresh(self, connection: Connection) -> None:
        stamp = store_vehicles.stamp(connection)
        if stamp != self._stamp:
            self._keyring = store_vehicles.keyring(connection)
            self._regions = store_vehicles.regions(connection)
            self._moved = store_vehicles.moved(connection)
            codes = (*self.party.codes, *store_codes.vehicles(connection))
            self._known = frozenset(self._keyring.keys) | frozenset(codes)
            self._stamp = stamp
            keys, denied = self._keyring.keys, self._keyring.denied
            self._pieces.keep(lambda vehicle: vehicle in keys and vehicle not in denied)

    def view(self, connection: Connection) -> View:
        """Return what `judge` may know, inside one transaction."""
        late = Late(connection, self.rounds)
        return View(
            fleet=self.party.fleet,
            task=self.party.task,
            keyring=self._keyring,
            regions=self._regions,
            moved=self._moved,
            limits=self.limits,
            find_round=cache(
                lambda number, region: store_rounds.find(connection, number=number, region=region)
            ),
            newest_round=store_rounds.newest(connection),
            late=late.fate,
            carries=late.may_carry,
            find_update=partial(store_updates.known, connection),
            coordinates=partial(self._coordinates.of, connection),
            longest=self._norms.at(connection),
        )
