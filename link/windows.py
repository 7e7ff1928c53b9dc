"""What a link remembers between connections, without I/O: messages out, deliveries in, subscriptions."""

from collections import deque
from dataclasses import dataclass

from fedfleet.link.port import Delivery, LinkFull

__all__ = ["Incoming", "Outgoing", "Pending", "Subscriptions"]


@dataclass(frozen=True)
class Pending:
    """A message that we took over and the broker has not."""

    ticket: int
    topic: str
    payload: bytes
    qos: int
    retain: bool


class Outgoing:
    """Messages from ``publish`` to PUBACK: bounded in number and bytes, at most ``window`` in flight.

    The window is ours: MQTT 3.1.1 knows no Receive Maximum, and paho ignores the one of MQTT 5.
    """

    def __init__(self, *, max_count: int, max_bytes: int, window: int) -> None:
        self._max_count, self._max_bytes, self.window = max_count, max_bytes, window
        self._waiting: deque[Pending] = deque()
        self._flying: dict[int, Pending] = {}
        self._ticket = 0
        self._bytes = 0

    def add(self, topic: str, payload: bytes, *, qos: int, retain: bool) -> int:
        """Take a message and return its ticket; LinkFull (and nothing taken) when there is no room."""
        count = len(self._waiting) + len(self._flying)
        if count >= self._max_count or self._bytes + len(payload) > self._max_bytes:
            limits = f"limits {self._max_count} and {self._max_bytes}"
            raise LinkFull(f"{count} messages, {self._bytes} bytes are pending, {limits}")
        self._ticket += 1
        self._bytes += len(payload)
        self._waiting.append(Pending(self._ticket, topic, payload, qos, retain))
        return self._ticket

    def take(self) -> Pending | None:
        """Return the next message to send, None when there is none or the window is full."""
        if not self._waiting or len(self._flying) >= self.window:
            return None
        return self._waiting.popleft()

    def sent(self, mid: int, message: Pending) -> None:
        """Remember that a message left under this packet id; at QoS 0 that was all."""
        if message.qos:
            self._flying[mid] = message
        else:
            self._bytes -= len(message.payload)

    def acknowledged(self, mid: int) -> Pending | None:
        """Forget the message of this packet id and return it; None when there is none."""
        message = self._flying.pop(mid, None)
        if message is not None:
            self._bytes -= len(message.payload)
        return message

    def sizes(self) -> list[int]:
        """Return the lengths of the payloads in flight."""
        return [len(message.payload) for message in self._flying.values()]

    def drop_above(self, limit: int) -> tuple[int, list[int]]:
        """Forget every message with a payload above ``limit``; how many, and the packet ids of those in flight."""
        mids = [mid for mid, message in self._flying.items() if len(message.payload) > limit]
        large = [message for message in self._waiting if len(message.payload) > limit]
        self._waiting = deque(message for message in self._waiting if len(message.payload) <= limit)
        self._bytes -= sum(len(message.payload) for message in (*large, *map(self._flying.__getitem__, mids)))
        for mid in mids:
            del self._flying[mid]
        return len(large) + len(mids), mids


class Incoming:
    """QoS-1 deliveries of one connection: at most ``window`` given out, released in order of arrival.

    ``backlog_bytes`` are the payloads that have come and were not given out.

    Tokens are never used twice, so an acknowledgement from before a reconnect finds nothing: its packet id
    may by then belong to another message.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self._token = 0
        self._held: dict[int, int] = {}  # token -> packet id, in order of arrival
        self._acked: set[int] = set()
        self._ids: set[int] = set()
        self._backlog: deque[tuple[int, Delivery]] = deque()
        self.backlog_bytes = 0

    def begin(self) -> None:
        """Forget everything: with a new connection the broker sends again what was not acknowledged."""
        self._held.clear()
        self._acked.clear()
        self._ids.clear()
        self._backlog.clear()
        self.backlog_bytes = 0

    def arrived(self, mid: int, delivery: Delivery) -> bool:
        """Take a delivery; False when its packet id is still held (the broker repeats itself)."""
        if mid in self._ids:
            return False
        self._ids.add(mid)
        self._backlog.append((mid, delivery))
        self.backlog_bytes += len(delivery.payload)
        return True

    def take(self) -> Delivery | None:
        """Return the next delivery for the sink; None when there is none or the window is full."""
        if not self._backlog or len(self._held) >= self._window:
            return None
        mid, delivery = self._backlog.popleft()
        self.backlog_bytes -= len(delivery.payload)
        token = self.next_token()
        self._held[token] = mid
        topic, payload, qos = delivery.topic, delivery.payload, delivery.qos
        return Delivery(topic, payload, qos, delivery.retain, delivery.duplicate, token=token)

    def next_token(self) -> int:
        """Return a token that no delivery of this link has had."""
        self._token += 1
        return self._token

    def ack(self, token: int) -> list[int] | None:
        """Return the packet ids to release now, in order; None when the token is stale or unknown."""
        if token not in self._held or token in self._acked:
            return None
        self._acked.add(token)
        released = []
        while self._held and (oldest := next(iter(self._held))) in self._acked:
            self._acked.discard(oldest)
            mid = self._held.pop(oldest)
            self._ids.discard(mid)
            released.append(mid)
        return released


class Subscriptions:
    """The filters we want, and which of them the broker still has to hear about."""

    def __init__(self) -> None:
        self._wanted: dict[str, int] = {}
        self._due: dict[str, int | None] = {}  # None: to be taken back
        self._sent: dict[int, dict[str, int | None]] = {}

    def want(self, topic_filter: str, qos: int) -> None:
        """Ask for a subscription (again)."""
        self._wanted[topic_filter] = self._due[topic_filter] = qos

    def drop(self, topic_filter: str) -> None:
        """Take a subscription back."""
        if self._wanted.pop(topic_filter, None) is not None:
            self._due[topic_filter] = None

    def connected(self, *, session_present: bool) -> None:
        """A connection began: without session ask for all, with one for what was never confirmed."""
        unconfirmed = {f: q for batch in self._sent.values() for f, q in batch.items()}
        self._sent.clear()
        if session_present:
            self._due = unconfirmed | self._due
        else:
            self._due = dict(self._wanted)

    def take(self, limit: int) -> tuple[list[tuple[str, int]], list[str]]:
        """Return up to ``limit`` filters to subscribe to and to unsubscribe from; report them as ``sent``."""
        batch = [(f, self._due.pop(f)) for f in list(self._due)[:limit]]
        return [(f, q) for f, q in batch if q is not None], [f for f, q in batch if q is None]

    def sent(self, mid: int, subscribed: list[tuple[str, int]], unsubscribed: list[str]) -> None:
        """Remember what left under this packet id."""
        self._sent[mid] = self._sent.get(mid, {}) | dict(subscribed) | dict.fromkeys(unsubscribed)

    def confirmed(self, mid: int) -> list[str]:
        """Return the filters that the broker answered to under this packet id."""
        return list(self._sent.pop(mid, {}))
