"""The wire format of Protocol Buffers (protobuf.dev, "Encoding"): fields of a message as they stand in its bytes.

May live here: tags, varints and lengths, checked against the end of the message. What a field means is the reader's
business: it knows the numbers of those it wants and steps over the others.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedfleet.scenarios.records import ScenarioError

__all__ = [
    "BYTES",
    "FIXED32",
    "FIXED64",
    "VARINT",
    "Field",
    "double",
    "doubles",
    "fields",
    "floats",
    "signed",
    "whole",
]

VARINT: Final = 0
FIXED64: Final = 1
BYTES: Final = 2
FIXED32: Final = 5

Field = tuple[int, int, int | bytes]
_DOUBLE: Final = struct.Struct("<d")


def fields(data: bytes, where: str) -> Iterator[Field]:
    """Number, wire type and value of each field: an int of a varint, else its bytes.

    Raises ScenarioError for a varint of more than 10 bytes, a group, and what goes beyond the end.
    """
    at, end = 0, len(data)
    while at < end:
        tag = data[at]
        at += 1
        if tag > 0x7F:
            tag, at = _varint(data, at - 1, where)
        kind = tag & 7
        if kind == VARINT:
            value, at = _varint(data, at, where)
            yield tag >> 3, kind, value
            continue
        if kind == BYTES:
            size, at = _varint(data, at, where)
        elif kind == FIXED64:
            size = 8
        elif kind == FIXED32:
            size = 4
        else:
            raise ScenarioError("malformed-protobuf", f"{where}: byte {at}: unknown wire type {kind}")
        if size > end - at:
            text = f"{where}: field {tag >> 3} has {size} bytes, {end - at} are left"
            raise ScenarioError("malformed-protobuf", text)
        yield tag >> 3, kind, data[at : at + size]
        at += size


def double(value: int | bytes, where: str) -> float:
    """The float64 of a field."""
    if not isinstance(value, bytes) or len(value) != 8:
        raise ScenarioError("malformed-protobuf", f"{where}: expected a double")
    return float(_DOUBLE.unpack(value)[0])


def doubles(value: int | bytes, where: str) -> NDArray[np.float64]:
    """A packed or single repeated double."""
    return np.frombuffer(_whole_items(value, 8, where), dtype="<f8")


def floats(value: int | bytes, where: str) -> NDArray[np.float32]:
    """A packed or single repeated float."""
    return np.frombuffer(_whole_items(value, 4, where), dtype="<f4")


def whole(value: int | bytes, where: str) -> list[int]:
    """A packed or single repeated varint, as int64."""
    if isinstance(value, int):
        return [signed(value)]
    found, at = [], 0
    while at < len(value):
        one, at = _varint(value, at, where)
        found.append(signed(one))
    return found


def signed(value: int) -> int:
    """A varint as int64 or int32, two's complement."""
    return value - (1 << 64) if value >> 63 else value


def _whole_items(value: int | bytes, size: int, where: str) -> bytes:
    if not isinstance(value, bytes) or len(value) % size:
        raise ScenarioError("malformed-protobuf", f"{where}: expected numbers of {size} bytes")
    return value


def _varint(data: bytes, at: int, where: str) -> tuple[int, int]:
    value = shift = 0
    for place in range(at, min(at + 10, len(data))):
        byte = data[place]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, place + 1
        shift += 7
    raise ScenarioError("malformed-protobuf", f"{where}: byte {at}: a number without end")
