"""What a broker takes from us, learned from what it says and from how it ends connections. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from fedfleet.link.wire import End
from fedfleet.protocol.chunks import MIN_MESSAGE_BYTES, PIECES

__all__ = ["AROUND_BYTES", "Lesson", "SizeLimit", "Takeovers", "learn"]

AROUND_BYTES = 300
"""What is around a payload in a packet: fixed header, topic, packet id, properties."""
STRIKES = 3
RIVAL_S, STANDS_S = 20.0, 60.0
"""A connection that the broker ends within this time, without a word, was perhaps taken over; while a rival is
suspected, within the other. One that lasts longer stands."""


@dataclass
class SizeLimit:
    """The largest payload to send, in bytes. It only falls, except when the broker says what it takes."""

    configured: int
    limit: int = field(init=False)
    _proven: int = 0
    _strikes: int = 0

    def __post_init__(self) -> None:
        self.limit = self.configured

    def told(self, max_packet_bytes: int | None) -> bool:
        """Take what CONNACK says; False when that is too little to work with."""
        if max_packet_bytes is None:
            return True
        self.limit = min(self.configured, max_packet_bytes - AROUND_BYTES)
        return self.limit >= MIN_MESSAGE_BYTES

    def took(self, size: int) -> None:
        """Note that the broker has taken a payload of this size."""
        if size > self._proven:
            self._proven, self._strikes = size, 0

    def refused(self, size: int) -> bool:
        """Lower the limit below a payload that the broker says is too large; False when it cannot be lower."""
        if size > self.limit:
            return True
        self._strikes = 0
        smaller = [piece for piece in PIECES if piece + AROUND_BYTES < size]
        self.limit = smaller[0] + AROUND_BYTES if smaller else self.limit
        return bool(smaller)

    def lost(self, in_flight: Sequence[int]) -> int:
        """Note a connection that the broker ended with these payloads on their way; the size to shrink below, or 0.

        The largest one is suspected when no payload of its size was ever taken, and found guilty the third time in
        a row.
        """
        if not self.is_suspected(in_flight):
            return 0
        self._strikes += 1
        return max(in_flight) if self._strikes >= STRIKES else 0

    def is_suspected(self, in_flight: Sequence[int]) -> bool:
        """Whether a payload among these is larger than any that the broker has taken."""
        return max(in_flight, default=0) > max(self._proven, PIECES[-1])


@dataclass
class Takeovers:
    """How often in a row another client with our id took the connection over, and whether the broker said so.

    A broker that speaks MQTT 3.1.1 just ends the connection: three ends within seconds look like a rival.
    """

    times: int = 0
    is_told: bool = False
    _suspected: int = 0

    def lost(self, lasted_s: float, *, told: bool, silent: bool) -> bool:
        """Note the end of a connection, and tell whether a rival is to blame for it.

        ``told``: the broker says so. ``silent``: it ended the connection without a reason.
        """
        if told:
            self.times, self.is_told = self.times + 1, True
            return True
        if silent and lasted_s < (STANDS_S if self.times else RIVAL_S) and not self.is_told:
            self._suspected += 1
            self.times += self._suspected >= STRIKES
            return self._suspected >= STRIKES
        self._suspected = 0
        return False

    def words(self, reason: str, client_id: str) -> str:
        """Return why the connection ended, for a person."""
        who = f"taken over by another client with the id {client_id}"
        if self.is_told:
            return f"ended the connection: {who}; waiting longer each time"
        return f"{reason}, within seconds each time: perhaps {who}; waiting longer each time"

    def unreachable(self) -> None:
        """Note that the broker could not be reached: it was down, so its ends were no takeovers."""
        self._suspected = 0
        self.times = self.times if self.is_told else 0

    def stands(self, lasted_s: float) -> None:
        """Forget it all once a connection has lasted long enough."""
        if lasted_s >= STANDS_S:
            self.times, self.is_told, self._suspected = 0, False, 0


@dataclass(frozen=True)
class Lesson:
    """What the end of a connection teaches: what to add to its reason, the size that is too large or 0."""

    reason: str
    guilty_bytes: int = 0
    is_takeover: bool = False


def learn(
    size: SizeLimit, takeovers: Takeovers, end: End, *, lasted_s: float, in_flight: Sequence[int]
) -> Lesson:
    """Note in both how a connection ended that the broker had accepted, and return what follows."""
    takeovers.stands(lasted_s)
    is_large = size.is_suspected(in_flight)
    guilty = size.lost(in_flight) if end is End.BROKER else 0
    if end is End.TOO_LARGE:
        guilty = max(in_flight, default=0)
    told, silent = end is End.TAKEN_OVER, end is End.BROKER and not is_large
    if takeovers.lost(lasted_s, told=told, silent=silent):
        return Lesson("", guilty, is_takeover=True)
    return Lesson(f", after a message of {max(in_flight)} bytes" if is_large else "", guilty)
