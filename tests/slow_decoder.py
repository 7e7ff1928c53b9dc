"""A second decoder of payloads, written from docs/codec-format.md alone: slow, plain Python, one bit at a time."""

import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass


class Refused(ValueError):  # noqa: N818 (a verdict, as in the format's text)
    """The bytes are not a payload; the text is the reason of the format's table."""


@dataclass(frozen=True)
class SlowPayload:
    coordinates: list[int]
    values: list[float]
    dense: bool
    steps: int
    examples: int


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


def decode(data: bytes, size: int) -> SlowPayload:
    """Read one payload for a model of `size` parameters; raise Refused for anything else."""
    require(len(data) <= 4 * size + 4096, "payload-too-long")
    require(len(data) >= 8, "truncated")
    require(struct.unpack("<I", data[-4:])[0] == zlib.crc32(data[:-4]), "checksum-mismatch")
    require(data[:3] == b"fdu", "wrong-magic")
    require(data[3] == 1, "unknown-version")
    sections = read_sections(Bytes(data[4:-4]))
    for kind, segment in sections:
        require(kind != 1 or segment == 0, "unknown-segment")
    for kind in (1, 16, 17):
        require((kind, 0) in sections, "missing-section")
    steps, examples = (read_count(Bytes(sections[kind, 0])) for kind in (16, 17))
    return read_delta(Bytes(sections[1, 0]), size, steps, examples)


def read_sections(payload: Bytes) -> dict[tuple[int, int], bytes]:
    found: dict[tuple[int, int], bytes] = {}
    order: list[tuple[int, int]] = []
    while payload.rest:
        kind = payload.take(1)[0]
        body = payload.take(payload.varint())
        require(kind in {1, 16, 17} or kind >= 128, "unknown-section")
        require(kind != 1 or len(body) > 0, "truncated")
        name = (kind, body[0] if kind == 1 else 0)
        require(name not in order[-1:], "duplicate-section")
        require(not order or name > order[-1], "section-order")
        order.append(name)
        if kind < 128:
            found[name] = body
    return found


def read_count(body: Bytes) -> int:
    count = body.varint()
    require(not body.rest, "trailing-bytes")
    require(count < 2**32, "count-out-of-range")
    return count


def read_delta(body: Bytes, size: int, steps: int, examples: int) -> SlowPayload:
    body.take(1)
    mode = body.take(1)[0]
    require(mode in {0x00, 0x01, 0x02, 0x10, 0x11}, "unknown-mode")
    require(body.varint() == size, "size-mismatch")
    dense = mode // 16 == 0
    coordinates = list(range(size)) if dense else read_rice(body, size)
    values = read_values(body, mode % 16, len(coordinates), dense) if coordinates else []
    require(not body.rest, "trailing-bytes")
    return SlowPayload(coordinates, values, dense, steps, examples)


def read_rice(body: Bytes, size: int) -> list[int]:
    count = body.varint()
    require(count <= size, "count-out-of-range")
    if count == 0:
        return []
    b = body.take(1)[0]
    require(b <= 31, "bad-parameter")
    length = body.varint()
    require(bytes_for(count) <= length <= bytes_for(count + (size - count) // 2**b), "stream-length")
    unary = body.take(length)
    planes = body.take(bytes_for(count * b))
    require(unary[-1] != 0, "stream-length")
    quotients = [0]
    for bit in bits_of(unary):
        if bit == 1:
            quotients.append(0)
        else:
            quotients[-1] += 1
    require(len(quotients) == count + 1, "count-mismatch")  # the last counts the padding
    bits = list(bits_of(planes))
    require(not any(bits[count * b :]), "padding-not-zero")
    at, coordinates = -1, []
    for j in range(count):
        remainder = sum(bits[plane * count + j] * 2**plane for plane in range(b))
        at += quotients[j] * 2**b + remainder + 1
        coordinates.append(at)
    require(coordinates[-1] < size, "index-out-of-range")
    return coordinates


def read_values(body: Bytes, mode: int, count: int, dense: bool) -> list[float]:
    if mode == 2:
        values = [body.f32() for _ in range(count)]
        require(all(math.isfinite(value) for value in values), "non-finite-value")
        return values
    scale = body.f32()
    require(math.isfinite(scale) and math.copysign(1, scale) > 0 and (dense or scale > 0), "bad-scale")
    if mode == 0:
        bits = list(bits_of(body.take(bytes_for(count))))
        require(not any(bits[count:]), "padding-not-zero")
        return [-scale if bit else scale for bit in bits[:count]]
    require(scale <= struct.unpack(">f", bytes.fromhex("7c010203"))[0], "bad-scale")
    levels = struct.unpack(f"{count}b", body.take(count))
    require(min(levels) >= -127, "bad-level")
    # an 8-bit times a 24-bit number is exact in binary64, so packing rounds once
    return [float(struct.unpack("<f", struct.pack("<f", level * scale))[0]) for level in levels]
