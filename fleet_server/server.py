"""The server between its link and its store: events in, messages out. No clock, no process, no broker of its own."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import structlog

from fedfleet.fleet_server import store_blobs, store_models, store_updates, store_vehicles
from fedfleet.fleet_server.announcements import announce, resize
from fedfleet.fleet_server.coordinator import Coordinator
from fedfleet.fleet_server.files import write_file
from fedfleet.fleet_server.ingest import Ingest
from fedfleet.fleet_server.look_back import LookBack
from fedfleet.fleet_server.publisher import Publisher
from fedfleet.fleet_server.store import Store, StoreFailed
from fedfleet.fleet_server.variants import Maker
from fedfleet.link.port import Connected, Delivery, Disconnected, Event, Link, LinkFull, Notice, Published
from fedfleet.protocol import topics
from fedfleet.protocol.chunks import piece_for

__all__ = ["MODELS_KEPT", "Server"]

log = structlog.get_logger()

MODELS_KEPT = 16
"""Model files that stay in the folder ``models``: so many of the newest, and what was released last."""


@dataclass
class Server:
    """A running fleet server. ``handle`` what the link brought, ``tick`` often.

    Both may raise StoreFailed (a full disk): nothing is lost, what was not stored is not acknowledged and is kept in
    the ``backlog``. Call ``handle`` again, with nothing new until the backlog is empty. Both raise UsageError when it
    turns out that the store went back in time (`look_back`).
    """

    store: Store
    link: Link
    ingest: Ingest
    coordinator: Coordinator
    publisher: Publisher
    variants: Maker | None = None
    look_back: LookBack = field(init=False)
    backlog: deque[Event] = field(default_factory=deque)
    _connected: bool = False
    _changed: bool = False
    _piece: int = 0
    _written: tuple[int, int] = field(default=(-1, -1))

    def __post_init__(self) -> None:
        """Watch over the store."""
        regions = self.coordinator.config.regions
        self.look_back = LookBack(self.store, self.link, self.ingest.party, regions)

    def start(self) -> None:
        """Make what is to be announced from the store, and write the newest model file if it is not there."""
        self._announce()

    def handle(self, events: Sequence[Event], now_s: float) -> None:
        """Store what came, then acknowledge it, then answer; in the order in which the events came."""
        self.backlog.extend(events)
        while self.backlog:
            part = list(takewhile(lambda event: not isinstance(event, Connected), self.backlog))
            self._store([event for event in part if isinstance(event, Delivery)], now_s)
            for event in part:
                self.backlog.popleft()
                match event:
                    case Published(ticket):
                        self.publisher.published(ticket)
                    case Disconnected(reason):
                        log.warning("broker lost", reason=reason)
                    case Notice(text):
                        log.warning("broker", notice=text)
            if self.backlog and isinstance(self.backlog[0], Connected):
                self._connect(session_present=self.backlog[0].session_present)
                self.backlog.popleft()
        self._note_cleared()

    def tick(self, now_s: float, steady_s: float | None = None) -> None:
        """Do what is due in the rounds, and publish what the broker still lacks; see ``Coordinator.tick``."""
        self._changed |= self.coordinator.tick(now_s, steady_s)
        if self.variants is not None:
            self._changed |= self.variants.tick()
        if self._connected:
            self._fit()
        if self._changed:
            self._announce()
            self._changed = False
        if self._connected:
            self.look_back.tick(now_s)
            self.publisher.pump()

    def _store(self, deliveries: Sequence[Delivery], now_s: float) -> None:
        if not deliveries:
            return
        own = {delivery.token for delivery in deliveries if self.look_back.heard(delivery)}
        outgoing = self.ingest.receive([one for one in deliveries if one.token not in own], now_s)
        for delivery in deliveries:
            self.link.ack(delivery)
        dropped = 0
        for one in outgoing:
            try:
                self.link.publish(one.topic, one.payload, qos=1)
            except LinkFull:
                dropped += 1  # whoever waits for an answer asks again
        if dropped:
            log.warning("answers dropped: the link is full", answers=dropped)

    def _connect(self, *, session_present: bool) -> None:
        """Learn again who is there, and publish everything again.

        Even with a session: a broker that was killed comes back with the retained messages of some time ago.
        """
        log.info("broker connected", session_present=session_present)
        self._connected = True
        with self.store.write() as connection:
            store_vehicles.forget_presence(connection)
        self.look_back.connected()
        for topic_filter in topics.vehicles(self.publisher.fleet):
            self.link.subscribe(topic_filter)
        self.publisher.reset()

    def _fit(self) -> None:
        """Cut what is announced to what the broker takes; after a change everything is published again."""
        piece = piece_for(self.link.max_payload_bytes)
        if piece == self._piece:
            return
        with self.store.write() as connection:
            if store_blobs.piece_bytes(connection) != piece:
                log.info("pieces", piece_bytes=piece, broker_takes_bytes=self.link.max_payload_bytes)
                resize(connection, self.publisher.fleet, piece)
                self.publisher.reset()
                self._changed = True
        self._piece = piece

    def _announce(self) -> None:
        with self.store.read() as connection:
            wanted = announce(connection, self.ingest.party, self.coordinator.config.regions)
            self.look_back.note(connection)
        self.publisher.want(wanted)
        self._write_model()

    def _note_cleared(self) -> None:
        if self.publisher.cleared:
            with self.store.write() as connection:
                store_blobs.cleared(connection, self.publisher.cleared)
                store_updates.count(connection, "topics:cleared", len(self.publisher.cleared))
            with self.store.read() as connection:
                config = self.coordinator.config
                self.publisher.want(announce(connection, self.ingest.party, config.regions))
            self.publisher.cleared.clear()

    def _write_model(self) -> None:
        """Keep the newest versions under `models/`, and what was released last, which drives, as `model.onnx`."""
        model, folder = self.coordinator.model, self.store.folder / "models"
        with self.store.read() as connection:
            release = store_models.newest_release(connection)
        now = (model.version, -1 if release is None else release.version)
        if now == self._written:
            return
        vectors = {"": model.vector} | {f"-{region}": one.vector for region, one in model.regions.items()}
        try:
            folder.mkdir(exist_ok=True, mode=0o700)
            for mark, vector in vectors.items():
                if model.version != self._written[0]:
                    write_file(folder / f"{model.version}{mark}.onnx", self.coordinator.graph.file(vector))
                if (released := folder / f"{now[1]}{mark}.onnx").is_file():
                    write_file(self.store.folder / f"model{mark}.onnx", released.read_bytes())
            for path in folder.glob("*.onnx"):
                number = path.stem.partition("-")[0]
                version = int(number) if number.isdigit() else model.version
                if version <= model.version - MODELS_KEPT and version != now[1]:
                    path.unlink()
        except OSError as error:
            raise StoreFailed(f"model file {error.filename}: {error.strerror}") from error
        self._written = now
