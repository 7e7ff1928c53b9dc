"""What a link to a broker promises: five methods, four events, one limit. No I/O."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from fedfleet.protocol.errors import UsageError

__all__ = [
    "MAX_PAYLOAD_BYTES",
    "Connected",
    "Delivery",
    "Disconnected",
    "Event",
    "Link",
    "LinkFull",
    "Notice",
    "Published",
    "Sink",
    "TooLarge",
    "Will",
    "check_filter",
    "check_payload",
    "check_topic",
    "matches",
]

#: Largest payload: a chunk of 256 KiB and 4 KiB around it. Larger ones cost quadratic time in paho.
MAX_PAYLOAD_BYTES = 256 * 1024 + 4096
_MAX_TOPIC_BYTES = 1024


class LinkFull(Exception):  # noqa: N818 - it is a state to wait out, not an error
    """The window of pending messages or bytes is full; nothing was taken. Try again after some Published."""


class TooLarge(LinkFull):
    """The payload is larger than this broker takes (``Link.max_payload_bytes``); cut it smaller, nothing was taken."""


@dataclass(frozen=True)
class Will:
    """What the broker publishes in our name when the connection ends without a goodbye."""

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False


@dataclass(frozen=True)
class Connected:
    """The broker accepted us; without ``session_present`` it has forgotten our session."""

    session_present: bool


@dataclass(frozen=True)
class Disconnected:
    """The connection ended or could not be made; the link tries again by itself, unless it was closed."""

    reason: str


@dataclass(frozen=True)
class Delivery:
    """One message. QoS 1: the broker keeps it until ``ack``. A link never uses a ``token`` twice."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    duplicate: bool
    token: int


@dataclass(frozen=True)
class Published:
    """The broker took over the message of this ticket (QoS 1: PUBACK; QoS 0: handed to the connection)."""

    ticket: int


@dataclass(frozen=True)
class Notice:
    """Something that a person should know about the link, in one line."""

    text: str


Event: TypeAlias = Connected | Disconnected | Delivery | Published | Notice
Sink: TypeAlias = Callable[[Event], None]


class Link(Protocol):
    """One client at one broker. All methods may be called from any thread, none waits for the network.

    Events go to the ``sink`` given at construction. It must only enqueue. When it raises, the event was not
    taken: it is offered again, before any other, until it is taken or (a delivery) its connection ends.

    A message that turns out to be too large for the broker is dropped, with a Notice, and ``max_payload_bytes`` falls.
    """

    @property
    def max_payload_bytes(self) -> int:
        """The largest payload that the broker takes, as far as it is known now."""
        ...

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> int:
        """Take a message over and return its ticket; it is sent now or after the next connect, in order.

        Raises LinkFull when too many messages or bytes are pending, TooLarge for a payload above
        ``max_payload_bytes`` (nothing is taken), UsageError for a
        topic with wildcards, a payload above MAX_PAYLOAD_BYTES, a QoS other than 0 and 1, or a closed link.
        """
        ...

    def subscribe(self, topic_filter: str, *, qos: int = 1) -> None:
        """Subscribe, now and after every reconnect without session. UsageError for a malformed filter."""
        ...

    def unsubscribe(self, topic_filter: str) -> None:
        """Take a subscription back; what the broker had sent before may still arrive."""
        ...

    def ack(self, delivery: Delivery) -> None:
        """Release a QoS-1 delivery at the broker. No effect for QoS 0, twice, or after its connection ended.

        Releases leave in the order of arrival: a delivery that is never acknowledged holds all later ones,
        and at last the broker's window. Put aside (quarantine) what cannot be handled, then acknowledge it.
        """
        ...

    def close(self) -> None:
        """Say goodbye and stop: no event follows, no will is published, pending tickets are forgotten."""
        ...


def check_topic(topic: str) -> None:
    """UsageError unless ``topic`` can be published to on every broker that we support."""
    if not topic or any(c in topic for c in "+# \0") or len(topic.encode()) > _MAX_TOPIC_BYTES:
        raise UsageError(f"cannot publish to {topic[:80]!r}: expected 1 to 1024 bytes, no +, #, blank or NUL")


def check_filter(topic_filter: str) -> None:
    """UsageError unless ``topic_filter`` is a filter of MQTT 3.1.1 §4.7 (and no shared subscription)."""
    parts = topic_filter.split("/")
    plain = all(len(p) == 1 or not set("+#") & set(p) for p in parts) and "#" not in parts[:-1]
    size = len(topic_filter.encode())
    if not plain or not 0 < size <= _MAX_TOPIC_BYTES or any(c in topic_filter for c in " \0"):
        raise UsageError(f"cannot subscribe to {topic_filter[:80]!r}: not a topic filter")
    if parts[0] == "$share":
        raise UsageError(f"cannot subscribe to {topic_filter[:80]!r}: shared subscriptions lose messages")


def check_payload(topic: str, payload: bytes, qos: int) -> None:
    """UsageError unless the payload is small enough and the QoS is 0 or 1."""
    if len(payload) > MAX_PAYLOAD_BYTES:
        sizes = f"{len(payload)} bytes, limit {MAX_PAYLOAD_BYTES}"
        raise UsageError(f"payload for {topic} is {sizes}: cut it into chunks")
    if qos not in {0, 1}:
        raise UsageError(f"QoS {qos} for {topic}: expected 0 or 1")


def matches(topic_filter: str, topic: str) -> bool:
    """Whether a well-formed filter matches a topic (MQTT 3.1.1 §4.7); wildcards do not see ``$`` topics."""
    wanted, parts = topic_filter.split("/"), topic.split("/")
    if topic.startswith("$") and wanted[0] in {"+", "#"}:
        return False
    if wanted[-1] == "#":
        head = wanted[:-1]
        return len(parts) >= len(head) and all(w in {"+", p} for w, p in zip(head, parts, strict=False))
    return len(wanted) == len(parts) and all(w in {"+", p} for w, p in zip(wanted, parts, strict=True))
