"""A second decoder of payloads, written from docs/codec-format.md alone: slow, plain Python, one bit at a time."""

import math
import struct
import zlib
from dataclasses import dataclass

import slow_index
from slow_bytes import Bytes, Refused, bits_of, bytes_for, require

__all__ = ["Refused", "SlowPayload", "decode"]

Part = tuple[int, list[tuple[int, int]], str]
"""Segment, spans (start, end) of the vector, and "sparse", "dense" or "exclude"."""


@dataclass(frozen=True)
class SlowPayload:
    coordinates: list[int]
    values: list[float]
    dense: bool
    steps: int
    examples: int
    control: tuple[list[int], list[float], bool] | None = None


def decode(
    data: bytes,
    size: int,
    parts: list[Part] | None = None,
    named: list[int] | None = None,
    *,
    control: bool = False,
) -> SlowPayload:
    """Read one payload for a model of `size` parameters; raise Refused for anything else."""
    kinds = [1, 2] if control else [1]
    require(len(data) <= 4 * size * len(kinds) + 4096, "payload-too-long")
    require(len(data) >= 8, "truncated")
    require(struct.unpack("<I", data[-4:])[0] == zlib.crc32(data[:-4]), "checksum-mismatch")
    require(data[:3] == b"fdu", "wrong-magic")
    require(data[3] == 1, "unknown-version")
    sections = read_sections(Bytes(data[4:-4]), {*kinds, 16, 17})
    sent = [part for part in parts or [(0, [(0, size)], "sparse")] if part[2] != "exclude"]
    segments = sorted({part[0] for part in sent})
    for kind, segment in sections:
        require(kind not in kinds or segment in segments, "unknown-segment")
    for kind in (*kinds, 16, 17):
        for segment in segments if kind in kinds else [0]:
            require((kind, segment) in sections, "missing-section")
    steps, examples = (read_count(Bytes(sections[kind, 0])) for kind in (16, 17))
    changes = [read_change(kind, sections, sent, named) for kind in kinds]
    return SlowPayload(*changes[0], steps, examples, changes[1] if control else None)


def read_change(
    kind: int, sections: dict[tuple[int, int], bytes], parts: list[Part], named: list[int] | None
) -> tuple[list[int], list[float], bool]:
    """Read the coordinates, their values, and whether all that are ever sent are stated, of one vector."""
    found: dict[int, float] = {}
    dense = True
    for segment in sorted({part[0] for part in parts}):
        body = Bytes(sections[kind, segment])
        body.take(1)
        for part in (part for part in parts if part[0] == segment):
            places = [place for start, end in part[1] for place in range(start, end)]
            own = None if named is None else [j for j, place in enumerate(places) if place in set(named)]
            own = None if part[2] == "dense" else own
            coordinates, values, whole = read_block(body, len(places), part[2], own)
            found |= {places[j]: value for j, value in zip(coordinates, values, strict=True)}
            dense = dense and whole
        require(not body.rest, "trailing-bytes")
    return sorted(found), [found[place] for place in sorted(found)], dense


def read_sections(payload: Bytes, known: set[int]) -> dict[tuple[int, int], bytes]:
    found: dict[tuple[int, int], bytes] = {}
    order: list[tuple[int, int]] = []
    while payload.rest:
        kind = payload.take(1)[0]
        body = payload.take(payload.varint())
        require(kind in known or kind >= 128, "unknown-section")
        require(kind not in {1, 2} or len(body) > 0, "truncated")
        name = (kind, body[0] if kind in {1, 2} else 0)
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


def read_block(
    body: Bytes, size: int, coding: str, named: list[int] | None
) -> tuple[list[int], list[float], bool]:
    mode = body.take(1)[0]
    index, value = mode // 16, mode % 16
    require(index in {0, 5, *INDEX_MODES}, "unknown-mode")
    require(value <= 6 and (value != 2 or index in {0, 5}) and (value != 6 or index == 0), "unknown-mode")
    if coding == "dense":
        require(mode in {1, 2}, "unexpected-mode")
    else:
        require((index == 5) == (named is not None), "unexpected-mode")
    require(body.varint() == size, "size-mismatch")
    if value == 6:
        return (*read_stochastic(body, size), False)
    if index == 0:
        coordinates = list(range(size))
    elif index == 5:
        coordinates = read_by_plan(body, size, named or [])
    else:
        coordinates = INDEX_MODES[index](body, size, True)
    values = read_values(body, value, len(coordinates), index in {0, 5}) if coordinates else []
    return coordinates, values, index == 0


def read_by_plan(body: Bytes, size: int, named: list[int]) -> list[int]:
    count = body.varint()
    require(count <= size, "count-out-of-range")
    told = struct.unpack("<I", body.take(4))[0]
    require(count == len(named), "count-mismatch")
    require(told == zlib.crc32(b"".join(struct.pack("<I", j) for j in named)), "coordinates-mismatch")
    return named


def read_set(body: Bytes, size: int, *, valued: bool = True) -> list[int]:
    mode = body.take(1)[0]
    require(mode in INDEX_MODES, "unknown-mode")
    return INDEX_MODES[mode](body, size, valued)


def read_stochastic(body: Bytes, size: int) -> tuple[list[int], list[float]]:
    coordinates = read_set(body, size)
    if not coordinates:
        return [], []
    step = body.f32()
    require(math.isfinite(step) and step > 0, "bad-scale")
    exponents = body.take(-(-size // 4096))
    signs = list(bits_of(body.take(bytes_for(len(coordinates)))))
    require(not any(signs[len(coordinates) :]), "padding-not-zero")
    levels = dict.fromkeys(coordinates, 1)
    inside = coordinates
    for level in range(2, 8):
        inside = [inside[j] for j in read_set(body, len(inside), valued=False)]
        levels |= dict.fromkeys(inside, level)
        if not inside:
            break
    exact = [levels[i] * step * 2 ** exponents[i // 4096] for i in coordinates]
    require(max(exact) <= LARGEST, "bad-scale")
    return coordinates, [rounded(-x if sign else x) for x, sign in zip(exact, signs, strict=False)]


def read_values(body: Bytes, mode: int, count: int, dense: bool) -> list[float]:
    if mode == 2:
        values = [body.f32() for _ in range(count)]
        require(all(math.isfinite(value) for value in values), "non-finite-value")
        return values
    if mode in {3, 4, 5}:
        return read_table(body, mode - 2, count, dense)
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
    return [rounded(level * scale) for level in levels]


def read_table(body: Bytes, width: int, count: int, dense: bool) -> list[float]:
    table = [body.f32() for _ in range(2**width)]
    require(all(math.isfinite(c) and math.copysign(1, c) > 0 for c in table), "bad-centroid")
    require(table == sorted(table) and (dense or table[0] > 0), "bad-centroid")
    stream, planes = body.take(bytes_for(count)), body.take(bytes_for(count * width))
    signs, bits = list(bits_of(stream)), list(bits_of(planes))
    require(not any(signs[count:]) and not any(bits[count * width :]), "padding-not-zero")
    codes = [sum(bits[plane * count + j] * 2**plane for plane in range(width)) for j in range(count)]
    return [-table[code] if sign else table[code] for code, sign in zip(codes, signs, strict=False)]


def rounded(value: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


LARGEST = float(struct.unpack(">f", bytes.fromhex("7f7fffff"))[0])
INDEX_MODES = slow_index.MODES
