"""Records of a TFRecord file (tensorflow, "TFRecord and tf.train.Example", section "TFRecords format details").

Each is a length (u64), its masked CRC-32C, the bytes, and theirs. Lengths are checked before anything is allocated, so
that a file of any size is gone through record by record.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

from fedfleet.scenarios.crc32c import masked
from fedfleet.scenarios.records import ScenarioError

__all__ = ["MAX_RECORD_BYTES", "Place", "is_record", "places", "read_record"]

MAX_RECORD_BYTES: Final = 64 * 2**20
_HEADER: Final = struct.Struct("<QI")
_FOOTER: Final = struct.Struct("<I")


@dataclass(frozen=True)
class Place:
    """Where the bytes of a record begin in its file, and how many there are."""

    number: int
    offset: int
    size_bytes: int


def is_record(start: bytes) -> bool:
    """Whether a file that begins so is one of records."""
    return len(start) >= _HEADER.size and masked(start[:8]) == _HEADER.unpack_from(start)[1]


def places(file: BinaryIO, size_bytes: int, where: str) -> Iterator[Place]:
    """Every record of a file of that size, by its length; the bytes are skipped.

    Raises ScenarioError naming the record for a length that is damaged, above MAX_RECORD_BYTES or beyond the end.
    """
    offset = number = 0
    while offset < size_bytes:
        file.seek(offset)
        header = file.read(_HEADER.size)
        at = f"{where}: record {number}"
        if len(header) < _HEADER.size:
            raise ScenarioError("truncated-record", f"{at}: expected a length, got {len(header)} bytes")
        length, check = _HEADER.unpack(header)
        if masked(header[:8]) != check:
            raise ScenarioError("damaged-record", f"{at}: the checksum of its length is another")
        if length > MAX_RECORD_BYTES:
            limit = f"{length / 1e6:.1f} MB, limit {MAX_RECORD_BYTES / 1e6:.1f} MB"
            raise ScenarioError("member-too-large", f"{at}: {limit}")
        offset += _HEADER.size
        if offset + length + _FOOTER.size > size_bytes:
            left = size_bytes - offset
            raise ScenarioError(
                "truncated-record", f"{at}: expected {length + _FOOTER.size} bytes, got {left}"
            )
        yield Place(number, offset, length)
        offset += length + _FOOTER.size
        number += 1


def read_record(file: BinaryIO, place: Place, where: str, *, check: bool = True) -> bytes:
    """The bytes of a record; ScenarioError when they are fewer, or their checksum is another."""
    file.seek(place.offset)
    data = file.read(place.size_bytes + _FOOTER.size)
    at = f"{where}: record {place.number}"
    if len(data) != place.size_bytes + _FOOTER.size:
        raise ScenarioError("truncated-record", f"{at}: expected {place.size_bytes} bytes, got {len(data)}")
    body = data[: place.size_bytes]
    if check and masked(body) != _FOOTER.unpack(data[place.size_bytes :])[0]:
        raise ScenarioError(
            "damaged-record", f"{at}: the checksum of its {place.size_bytes} bytes is another"
        )
    return body
