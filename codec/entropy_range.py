"""A range coder (Martin 1979; Schindler 1998) over whole numbers: exact, the same on every machine."""

from __future__ import annotations

from fedfleet.protocol.errors import PeerError

__all__ = ["TOTAL_LIMIT", "RangeDecoder", "RangeEncoder"]

TOTAL_LIMIT = 1 << 24
"""The largest `total` of a symbol's frequencies."""

_TOP = 1 << 48
_BOTTOM = 1 << 40
_STATE_BYTES = 6


class RangeEncoder:
    """Codes symbols, each a stretch [start, start + share) of 0 … total - 1, into as few bytes as tell them apart."""

    def __init__(self) -> None:
        self._low = 0  # without end: a carry needs no care
        self._range = _TOP
        self._shifts = 0

    def put(self, start: int, share: int, total: int) -> None:
        """Append a symbol; share ≥ 1, start + share ≤ total ≤ `TOTAL_LIMIT`."""
        unit = self._range // total
        self._low += unit * start
        self._range = unit * share
        while self._range <= _BOTTOM:
            self._range <<= 8
            self._low <<= 8
            self._shifts += 1

    def finish(self) -> bytes:
        """Return the shortest bytes of the stretch that is left; the decoder reads zeros behind them."""
        length = _STATE_BYTES + self._shifts
        for spare in range(8 * length, -1, -8):
            value = -(-self._low >> spare) << spare
            if value < self._low + self._range and value < 1 << 8 * length:
                return value.to_bytes(length, "big").rstrip(b"\0")
        raise AssertionError("unreachable: low itself is in the stretch")


class RangeDecoder:
    """Reads the symbols back; any bytes decode to something, so what they say is for the caller to check."""

    def __init__(self, stream: memoryview) -> None:
        self._stream = bytes(stream)
        self._at = _STATE_BYTES
        self._value = int.from_bytes(self._stream[:_STATE_BYTES].ljust(_STATE_BYTES, b"\0"), "big")
        self._range = _TOP
        self._unit = 0

    def peek(self, total: int) -> int:
        """Return a number below `total` inside the next symbol's stretch. Raises PeerError when it is in none."""
        self._unit = self._range // total
        found = self._value // self._unit
        if found >= total:
            raise PeerError("bad-stream", "range coder: a value that no symbol has")
        return found

    def take(self, start: int, share: int) -> None:
        """Go past the symbol that `peek` was inside of."""
        self._value -= self._unit * start
        self._range = self._unit * share
        while self._range <= _BOTTOM:
            self._range <<= 8
            self._value = self._value << 8 | (self._stream[self._at] if self._at < len(self._stream) else 0)
            self._at += 1

    def end(self) -> None:
        """Refuse bytes that nothing has read, and a last byte that need not be there."""
        if self._at < len(self._stream) or self._stream[-1:] == b"\0":
            raise PeerError("stream-length", f"range coder: {len(self._stream)} bytes, {self._at} read")
