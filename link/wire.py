"""What a ``LiveLink`` needs from an MQTT client library: packets in, calls out. Implemented in ``paho`` only."""

import enum
import socket
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from fedfleet.link.windows import Pending

__all__ = ["Accepted", "Acknowledged", "Answered", "Arrived", "End", "Packet", "Refused", "Wire"]


@dataclass(frozen=True)
class Accepted:
    """CONNACK: we are in. ``max_packet_bytes`` and ``window`` bound what we send, where the broker says so."""

    session_present: bool
    max_packet_bytes: int | None = None
    window: int | None = None


@dataclass(frozen=True)
class Refused:
    """CONNACK: we are not, and why; ``again``: at once, for the next ``open`` asks in another version of MQTT."""

    reason: str
    again: bool = False


@dataclass(frozen=True)
class Arrived:
    """PUBLISH; ``mid`` is its packet id (QoS 1)."""

    mid: int
    topic: str
    payload: bytes
    qos: int
    retain: bool
    duplicate: bool


@dataclass(frozen=True)
class Acknowledged:
    """PUBACK for the packet id that ``Wire.publish`` returned; ``refusal``: why the broker did not take it."""

    mid: int
    refusal: str = ""
    too_large: bool = False


@dataclass(frozen=True)
class Answered:
    """SUBACK or UNSUBACK; ``failures`` says for each filter of a SUBACK whether it was refused."""

    mid: int
    failures: tuple[bool, ...]


class End(enum.Enum):
    """How a connection ended, as far as we can tell."""

    BROKER = "the broker ended it and did not say why"
    SILENCE = "the broker did not answer"
    TAKEN_OVER = "another client came with our id"
    TOO_LARGE = "the broker does not take packets of that size"
    TOLD = "the broker gave another reason"


Packet: TypeAlias = Accepted | Refused | Arrived | Acknowledged | Answered


class Wire(Protocol):
    """One client, connected or not; used by one thread at a time. Nothing but ``open`` blocks.

    After any call ``socket`` may be None: the connection has ended, ``ending`` and ``trouble`` say why. QoS-1 messages
    given to ``publish`` and not acknowledged are sent again, in order, by the next connection.
    """

    name: str  # "broker HOST:PORT"
    host: str
    trouble: str
    ending: End

    def open(self) -> None:
        """Connect and send CONNECT, blocking; raises OSError or ValueError when that fails."""
        ...

    def socket(self) -> socket.socket | None:
        """Return the open socket."""
        ...

    def want_write(self) -> bool:
        """Whether bytes wait for the socket to become writable."""
        ...

    def read(self) -> list[Packet]:
        """Read what has arrived."""
        ...

    def write(self) -> None:
        """Write what waits."""
        ...

    def tick(self) -> None:
        """Send a ping when it is time; end a connection that does not answer pings."""
        ...

    def publish(self, message: Pending) -> int:
        """Send a message; returns its packet id."""
        ...

    def drop(self, mid: int) -> None:
        """Do not send a message again that was not acknowledged."""
        ...

    def puback(self, mid: int) -> None:
        """Acknowledge a QoS-1 message of this connection."""
        ...

    def subscribe(self, filters: list[tuple[str, int]]) -> int:
        """Send SUBSCRIBE; returns its packet id."""
        ...

    def unsubscribe(self, filters: list[str]) -> int:
        """Send UNSUBSCRIBE; returns its packet id."""
        ...

    def end(self, *, goodbye: bool) -> None:
        """End the connection, with a DISCONNECT or without."""
        ...
