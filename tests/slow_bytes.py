"""What the slow decoders read with: bytes eaten one at a time, and a verdict."""

import struct
from collections.abc import Iterator


class Refused(ValueError):  # noqa: N818 (a verdict, as in the format's text)
    """The bytes are not a payload; the text is the reason of the format's table."""


class Bytes:
    """A list of bytes that is eaten from the front."""

    def __init__(self, data: bytes) -> None:
        self.rest = list(data)

    def take(self, count: int) -> bytes:
        require(count <= len(self.rest), "truncated")
        taken, self.rest = self.rest[:count], self.rest[count:]
        return bytes(taken)

    def f32(self) -> float:
        return float(struct.unpack("<f", self.take(4))[0])

    def varint(self) -> int:
        digits: list[int] = []
        while not digits or digits[-1] >= 128:
            require(len(digits) < 5, "varint-not-canonical")
            digits.append(self.take(1)[0])
        require(len(digits) == 1 or digits[-1] != 0, "varint-not-canonical")
        return sum((digit % 128) * 128**place for place, digit in enumerate(digits))


def require(condition: bool, reason: str) -> None:
    if not condition:
        raise Refused(reason)


def bits_of(stream: bytes) -> Iterator[int]:
    for byte in stream:
        for place in (128, 64, 32, 16, 8, 4, 2, 1):
            yield byte // place % 2


def bytes_for(bits: int) -> int:
    return -(-bits // 8)
