"""The door: messages of vehicles into the store, a batch in one transaction.

Only after its commit may the broker be told to forget them, and the vehicles hear of it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial

from sqlalchemy import Connection

from fedfleet.codec.parts import Parts
from fedfleet.fleet_server import store_rounds, store_updates, store_vehicles
from fedfleet.fleet_server.admission import Limits, View
from fedfleet.fleet_server.config_rounds import RoundsConfig
from fedfleet.fleet_server.coordinates import Coordinates
from fedfleet.fleet_server.ingest_batch import Batch
from fedfleet.fleet_server.pieces import Pieces, Room
from fedfleet.fleet_server.rate import Limiter, Rate
from fedfleet.fleet_server.requests import Outgoing, Party
from fedfleet.fleet_server.store import Store
from fedfleet.fleet_server.store_waiting import Late
from fedfleet.link.port import Delivery
from fedfleet.protocol import topics
from fedfleet.protocol.errors import PeerError
from fedfleet.protocol.signing import Keyring
from fedfleet.protocol.topics import Topic

__all__ = ["Ingest"]

DEFAULT_RATE = Rate(per_s=100.0, burst=1000)
PIECES_FOLDER = "incomplete"
UPDATES_KEPT = 3
"""Incomplete updates of the largest size that one vehicle has room for; in small pieces they take more."""


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
    _waiting: dict[str, Delivery] = field(default_factory=dict)
    _dropped: int = 0

    def __post_init__(self) -> None:
        """Name coordinates as the model is divided, and take over what an earlier process has of incomplete updates."""
        limits = self.limits
        self._coordinates = Coordinates(limits.parts or Parts.whole(limits.parameters))
        most = UPDATES_KEPT * limits.update_bytes
        room = Room(most, max(most, limits.incomplete_bytes), limits.incomplete_age_s)
        self._pieces = Pieces(self.store.folder / PIECES_FOLDER, room)

    def receive(self, deliveries: Iterable[Delivery], now_s: float) -> list[Outgoing]:
        """Take a batch in one transaction; return what to publish after the broker was told to forget it.

        What comes above its vehicle's rate is dropped before anything in it is looked at, and counted: no answer, no
        quarantine; an honest vehicle sends again later. Raises StoreFailed, nothing applied: then nothing of the
        batch may be acknowledged.
        """
        received = [(delivery, _topic(delivery)) for delivery in deliveries]
        admitted = [one for one in received if self._admits(one[1], now_s)]
        dropped = self._dropped + len(received) - len(admitted)
        if not admitted:
            self._dropped = dropped  # written with the next transaction
            return []
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
            if dropped:
                batch.counts["dropped:rate"] = dropped
            outgoing = batch.take_all(admitted)
        self._dropped = 0
        self.stored += batch.stored
        for vehicle in batch.enrolled:
            self._waiting.pop(vehicle, None)
        for vehicle, digest in batch.joined:
            self._pieces.drop(vehicle, digest)
        self._pieces.expire(now_s)
        for say in batch.lines:
            say()
        return outgoing

    def _admits(self, topic: Topic | PeerError, now_s: float) -> bool:
        return self.limiter.admits(topic.vehicle if isinstance(topic, Topic) else "", now_s)

    def _refresh(self, connection: Connection) -> None:
        stamp = store_vehicles.stamp(connection)
        if stamp != self._stamp:
            self._keyring = store_vehicles.keyring(connection)
            self._regions = store_vehicles.regions(connection)
            self._moved = store_vehicles.moved(connection)
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
        )


def _topic(delivery: Delivery) -> Topic | PeerError:
    try:
        return topics.parse(delivery.topic)
    except PeerError as error:
        return error
