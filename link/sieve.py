"""Turns messages away in the bytes that were read, before anything is made of them.

One client that publishes as fast as it can fills the queue that a broker has for us with its messages, and those of
all others wait behind them: whatever is dropped must be dropped as fast as a broker sends. For the same in MQTT 3.1.1
and 5: the topic comes first, then the packet id; a PUBACK of two bytes is good in both.
"""

from collections.abc import Callable
from typing import TypeAlias

__all__ = ["Admits", "Sieve", "length_at"]

Admits: TypeAlias = Callable[[bytes, int, int], bool]
"""Whether a message may pass: its topic, its QoS, the bytes of its packet. Must be quick, and must not raise."""

_PUBLISH = 0x30
_PUBACK = b"\x40\x02"
_MOST_LENGTH_BYTES = 4
_MORE = 0x80


class Sieve:
    """The bytes of one connection in, whole packets out, without the messages that are not admitted.

    What is turned away at QoS 1 is acknowledged at once, also before messages that came earlier and passed. MQTT wants
    acknowledgements in the order of arrival (4.6); kept to here, a broker would send no more until a transaction ends,
    while its queue for us grows. Brokers go by the packet id. Only above a rate that no honest client has is the order
    another one.
    """

    def __init__(self, admits: Admits) -> None:
        self._admits = admits
        self._begin = bytearray()  # of a packet that is not whole
        self._need = 0  # bytes of it until it can be looked at again
        self._is_judged = False  # it passes, when it is whole
        self._skip = 0  # bytes of a message that was turned away, and are still to come
        self._due = bytearray()  # acknowledgements that may be sent
        self._passed: set[int] = set()  # packet ids that are not acknowledged yet

    def reset(self) -> None:
        """Forget everything: another connection begins."""
        self.__init__(self._admits)  # type: ignore[misc]

    def feed(self, data: bytes) -> bytes:
        """Return the whole packets that have come and pass; empty when there is none."""
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
        if self._begin:
            self._begin += data
            if len(self._begin) < self._need:
                return b""
            data = bytes(self._begin)
        kept, at = self._sift(data)
        self._begin = bytearray(data[at:])
        return kept

    def released(self, mid: int) -> None:
        """Note that a message which passed is acknowledged: its packet id may come again."""
        self._passed.discard(mid)

    def acknowledgements(self) -> bytes:
        """Return the packets that are to be sent now, once."""
        due, self._due = bytes(self._due), bytearray()
        return due

    def _sift(self, data: bytes) -> tuple[bytes, int]:
        """Return the packets that pass, and where the first one begins that is not whole."""
        kept: list[bytes] = []
        at = keep_from = self._need = 0
        end = len(data)
        while at + 1 < end:
            size, start = data[at + 1], at + 2
            if size >= _MORE:
                size, start = length_at(data, at + 1)
                if not start:
                    break
            stop = start + size
            if data[at] & 0xF0 == _PUBLISH and not self._is_judged:
                passes = self._passes(data, at, start, stop)
                if passes is None:
                    break
                if not passes:
                    kept.append(data[keep_from:at])
                    self._skip = max(0, stop - end)
                    at = keep_from = min(stop, end)
                    continue
            if stop > end:
                self._is_judged, self._need = True, stop - at
                break
            self._is_judged = False
            at = stop
        kept.append(data[keep_from:at])
        return b"".join(kept), at

    def _passes(self, data: bytes, at: int, start: int, stop: int) -> bool | None:
        """Judge the message that begins here; None while its topic and packet id have not come."""
        end = len(data)
        if start + 2 > end:
            return None
        qos = data[at] >> 1 & 3
        topic_end = start + 2 + (data[start] << 8 | data[start + 1])
        known_to = topic_end + 2 if qos else topic_end
        if known_to > stop:
            return True  # it is malformed, which the client library will say
        if known_to > end:
            return None
        mid = int.from_bytes(data[topic_end:known_to], "big")
        if qos and mid in self._passed:
            return True  # the broker repeats itself: it is not acknowledged twice
        if self._admits(data[start + 2 : topic_end], qos, stop - at):
            if qos:
                self._passed.add(mid)
            return True
        if qos:
            self._due += _PUBACK + data[topic_end:known_to]
        return False


def length_at(data: bytes | bytearray, at: int) -> tuple[int, int]:
    """Return the number in MQTT's variable length that begins here, and where it ends; (0, 0) when it is not whole."""
    size = 0
    for place in range(_MOST_LENGTH_BYTES):
        if at + place >= len(data):
            return 0, 0
        byte = data[at + place]
        size |= (byte & 0x7F) << 7 * place
        if byte < _MORE:
            return size, at + place + 1
    return 0, 0
