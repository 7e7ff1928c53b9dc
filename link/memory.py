"""A broker in memory, deterministic and without threads or clock, that breaks things on purpose.

Everything happens inside ``MemoryBroker.pump``; the seed decides every fault. It follows MQTT 3.1.1 for QoS 0
and 1: persistent sessions, retained messages, wills, deliveries that come again until acknowledged.
"""

import random
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fedfleet.link.outlet import Outlet
from fedfleet.link.port import (
    MAX_PAYLOAD_BYTES,
    Connected,
    Delivery,
    Disconnected,
    LinkFull,
    Published,
    Sink,
    TooLarge,
    Will,
    check_filter,
    check_payload,
    check_topic,
    matches,
)
from fedfleet.protocol.errors import UsageError

__all__ = ["Faults", "MemoryBroker", "MemoryLink"]


@dataclass(frozen=True)
class Faults:
    """Chances of faults, from 0 to 1, drawn once for each message handled.

    drop: a QoS-0 message is gone; a QoS-1 message loses its acknowledgement and is therefore sent twice.
    duplicate: a QoS-1 delivery is made a second time. reorder: a later message of the session overtakes.
    disconnect: the receiver loses its connection, its will is published, it returns at the next ``pump``.
    """

    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    disconnect: float = 0.0

    def __post_init__(self) -> None:
        for name, chance in vars(self).items():
            if not 0.0 <= chance <= 1.0:
                raise UsageError(f"fault {name} = {chance}: expected a chance from 0 to 1")


@dataclass(frozen=True)
class _Message:
    topic: str
    payload: bytes
    qos: int
    retain: bool = False
    duplicate: bool = False
    ticket: int = 0


@dataclass(frozen=True)
class _Subscription:
    topic_filter: str
    qos: int | None  # None takes it back


@dataclass
class _Session:
    filters: dict[str, int] = field(default_factory=dict)
    queue: deque[_Message] = field(default_factory=deque)
    held: dict[int, _Message] = field(default_factory=dict)

    def connection_lost(self) -> None:
        """What was delivered but not acknowledged comes again first; QoS 0 does not wait for anyone."""
        again = [replace(m, duplicate=True) for m in self.held.values()]
        self.queue = deque(again + [m for m in self.queue if m.qos])
        self.held.clear()


class MemoryLink:
    """A ``Link`` at a MemoryBroker, for one thread; nothing moves before the broker is pumped.

    ``counts`` has ``sink_errors`` (refused events) and ``stale_acks``.
    """

    def __init__(self, broker: "MemoryBroker", client_id: str, sink: Sink, *, will: Will | None) -> None:
        self.client_id, self.will = client_id, will
        self.counts: Counter[str] = Counter()
        self.connected = self.closed = False
        self.filters: dict[str, int] = {}
        self.outbox: deque[_Message | _Subscription] = deque()
        self.outlet = Outlet(client_id, sink, self.counts)
        self._broker, self._ticket = broker, 0

    @property
    def max_payload_bytes(self) -> int:
        """The largest payload that the broker takes."""
        return self._broker.max_payload_bytes

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> int:
        """Take a message over and return its ticket; see ``Link.publish``."""
        check_topic(topic)
        check_payload(topic, payload, qos)
        if self.closed:
            raise UsageError(f"link {self.client_id} is closed")
        if len(payload) > self.max_payload_bytes:
            raise TooLarge(f"{len(payload)} bytes for {topic}, the broker takes {self.max_payload_bytes}")
        sizes = [len(m.payload) for m in self.outbox if isinstance(m, _Message)]
        if (
            len(sizes) >= self._broker.max_pending
            or sum(sizes) + len(payload) > self._broker.max_pending_bytes
        ):
            raise LinkFull(f"{self.client_id}: {len(sizes)} messages, {sum(sizes)} bytes are pending")
        self._ticket += 1
        self.outbox.append(_Message(topic, bytes(payload), qos, retain, ticket=self._ticket))
        return self._ticket

    def subscribe(self, topic_filter: str, *, qos: int = 1) -> None:
        """Subscribe after what was published before; see ``Link.subscribe``."""
        check_filter(topic_filter)
        self.outbox.append(_Subscription(topic_filter, qos))

    def unsubscribe(self, topic_filter: str) -> None:
        """Take a subscription back; see ``Link.unsubscribe``."""
        self.outbox.append(_Subscription(topic_filter, None))

    def ack(self, delivery: Delivery) -> None:
        """Release a QoS-1 delivery at once; see ``Link.ack``."""
        if delivery.qos and not self._broker.release(self.client_id, delivery.token):
            self.counts["stale_acks"] += 1

    def close(self) -> None:
        """Say goodbye; see ``Link.close``."""
        self._broker.leave(self)


class MemoryBroker:
    """The broker: ``connect`` clients, ``pump`` until quiet, break things between two pumps.

    ``window`` is how many QoS-1 deliveries a client may hold without acknowledging; ``max_pending`` and
    ``max_pending_bytes`` bound what a link takes over before it raises LinkFull, ``max_payload_bytes`` one message.
    """

    def __init__(self, seed: int = 0, *, faults: Faults | None = None, window: int = 100) -> None:
        self.faults, self.window = faults or Faults(), window
        self.max_pending, self.max_pending_bytes = 1000, 16 * 1024 * 1024
        self.max_payload_bytes = MAX_PAYLOAD_BYTES
        self._rng = random.Random(seed)
        self._up = True
        self._token = 0
        self._retained: dict[str, _Message] = {}
        self._sessions: dict[str, _Session] = {}
        self._links: dict[str, MemoryLink] = {}
        self._clean: set[str] = set()

    @property
    def retained(self) -> Mapping[str, bytes]:
        """The retained payloads by topic."""
        return {topic: message.payload for topic, message in self._retained.items()}

    def connect(
        self, client_id: str, sink: Sink, *, will: Will | None = None, clean: bool = False
    ) -> MemoryLink:
        """Make a link that connects at the next pump; a living one of the same client id is taken over."""
        if client_id in self._links:
            self.cut(client_id, "taken over: another connection has the same client id")
            self._links.pop(client_id).closed = True
        (self._clean.add if clean else self._clean.discard)(client_id)
        link = self._links[client_id] = MemoryLink(self, client_id, sink, will=will)
        return link

    def pump(self, limit: int | None = None) -> int:
        """Handle messages until all is quiet, or ``limit`` of them; returns how many were handled."""
        handled = 0
        self._welcome()
        while limit is None or handled < limit:
            before = handled
            for link in list(self._links.values()):
                if limit is None or handled < limit:
                    handled += self._take(link) + self._deliver(link)
            if handled == before:
                break
        return handled

    def cut(self, client_id: str, reason: str = "connection lost") -> None:
        """End a connection without goodbye: the will is published, the link returns at the next pump."""
        link = self._links[client_id]
        if link.connected:
            self._forget(link)
            self._last_will(link)
            link.outlet.emit(Disconnected(f"broker memory:0 {reason}"))

    def kill(self, client_id: str) -> None:
        """End a client as kill -9 does: the will is published, its pending messages die with it, no event."""
        link = self._links.pop(client_id)
        link.closed = True
        if link.connected:
            self._forget(link)
            self._last_will(link)

    def stop(self, *, lose: bool = False) -> None:
        """End the broker; with ``lose`` its sessions and retained messages are gone. Links stay and wait."""
        self._up = False
        for link in self._links.values():
            if link.connected:
                self._forget(link)
                link.outlet.emit(Disconnected("broker memory:0 refuses: it is stopped"))
        if lose:
            self._sessions.clear()
            self._retained.clear()

    def start(self) -> None:
        """Start the broker again; links return at the next pump."""
        self._up = True

    def release(self, client_id: str, token: int) -> bool:
        """Forget a delivery that was acknowledged; False when there is none (the link's side only)."""
        session = self._sessions.get(client_id, _Session())
        return session.held.pop(token, None) is not None

    def leave(self, link: MemoryLink) -> None:
        """End a connection with a goodbye, without will (the link's side only)."""
        if not link.closed:
            link.closed = True
            self._links.pop(link.client_id)
            self._forget(link)

    def _welcome(self) -> None:
        for link in list(self._links.values()) if self._up else []:
            if link.outlet.settle() and not link.connected:
                present = link.client_id in self._sessions
                self._sessions.setdefault(link.client_id, _Session())
                link.connected = True
                link.outlet.emit(Connected(present))
                for topic_filter, qos in {} if present else link.filters.items():
                    self._subscribe(link, _Subscription(topic_filter, qos))

    def _forget(self, link: MemoryLink) -> None:
        link.connected = False
        link.outlet.connection_lost()
        if link.client_id in self._clean:
            self._sessions.pop(link.client_id, None)
        elif link.client_id in self._sessions:
            self._sessions[link.client_id].connection_lost()

    def _last_will(self, link: MemoryLink) -> None:
        if link.will:
            will = link.will
            self._route(_Message(will.topic, will.payload, will.qos, will.retain))

    def _take(self, link: MemoryLink) -> int:
        """Take one thing over from a client."""
        if not link.connected or not link.outbox or not link.outlet.settle():
            return 0
        action = link.outbox.popleft()
        if isinstance(action, _Subscription):
            self._subscribe(link, action)
            return 1
        lost = self._chance(self.faults.drop)
        if action.qos or not lost:
            self._route(action)
        if action.qos and lost:
            self._route(action)
        link.outlet.emit(Published(action.ticket))
        return 1

    def _subscribe(self, link: MemoryLink, wanted: _Subscription) -> None:
        session = self._sessions[link.client_id]
        if wanted.qos is None:
            session.filters.pop(wanted.topic_filter, None)
            link.filters.pop(wanted.topic_filter, None)
            return
        session.filters[wanted.topic_filter] = link.filters[wanted.topic_filter] = wanted.qos
        for topic in sorted(t for t in self._retained if matches(wanted.topic_filter, t)):
            message = self._retained[topic]
            session.queue.append(replace(message, qos=min(message.qos, wanted.qos), retain=True))

    def _route(self, message: _Message) -> None:
        if message.retain and message.payload:
            self._retained[message.topic] = message
        elif message.retain:
            self._retained.pop(message.topic, None)
        for client_id, session in self._sessions.items():
            granted = [qos for f, qos in session.filters.items() if matches(f, message.topic)]
            qos = min(message.qos, max(granted, default=-1))
            online = client_id in self._links and self._links[client_id].connected
            if qos == 1 or (qos == 0 and online):
                session.queue.append(replace(message, qos=qos, retain=False))

    def _deliver(self, link: MemoryLink) -> int:
        """Deliver one message to a client."""
        session = self._sessions.get(link.client_id)
        if not link.connected or session is None or not session.queue or len(session.held) >= self.window:
            return 0
        if not link.outlet.settle():
            return 0
        if self._chance(self.faults.disconnect):
            self.cut(link.client_id)
            return 1
        if self._chance(self.faults.reorder):
            session.queue.rotate(-self._rng.randrange(len(session.queue)))
        message = session.queue.popleft()
        if message.qos and not message.duplicate and self._chance(self.faults.duplicate):
            session.queue.append(replace(message, duplicate=True))
        if message.qos == 0 and self._chance(self.faults.drop):
            return 1
        self._token += 1
        if message.qos:
            session.held[self._token] = message
        delivery = Delivery(
            message.topic, message.payload, message.qos, message.retain, message.duplicate, self._token
        )
        link.outlet.emit(delivery)
        return 1

    def _chance(self, chance: float) -> bool:
        return chance > 0.0 and self._rng.random() < chance
