"""The payload's shell: magic, version, typed sections in rising order, checksum; not what they hold."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

from fedfleet.codec.wire import Reader, varint
from fedfleet.protocol.errors import PeerError

__all__ = [
    "CONTROL",
    "DELTA",
    "EXAMPLES",
    "MAGIC",
    "OPTIONAL",
    "STEPS",
    "VERSION",
    "SectionKey",
    "join",
    "limit_bytes",
    "split",
]

MAGIC = b"fdu"
VERSION = 1
DELTA = 0x01
CONTROL = 0x02
STEPS = 0x10
EXAMPLES = 0x11
OPTIONAL = 0x80  # section types from here on may be skipped by who does not know them

_KNOWN = frozenset({DELTA, STEPS, EXAMPLES})
_PER_SEGMENT = frozenset({DELTA, CONTROL})
_CHECKSUM_BYTES = 4
_SHORTEST = len(MAGIC) + 1 + _CHECKSUM_BYTES
_ALLOWANCE_BYTES = 4096

SectionKey = tuple[int, int]  # type, segment (0 for types that have none)


def limit_bytes(size: int, *, vectors: int = 1) -> int:
    """Return the longest payload in bytes for `vectors` of `size` parameters: dense float32 and 4 KiB."""
    return 4 * size * vectors + _ALLOWANCE_BYTES


def join(sections: Mapping[SectionKey, bytes]) -> bytes:
    """Return a payload of these sections; a per-segment section's body starts with its segment's byte."""
    parts = [MAGIC, bytes((VERSION,))]
    for (kind, _), body in sorted(sections.items()):
        parts += [bytes((kind,)), varint(len(body)), body]
    data = b"".join(parts)
    return data + zlib.crc32(data).to_bytes(_CHECKSUM_BYTES, "little")


def split(data: bytes | memoryview, *, limit: int, control: bool = False) -> dict[SectionKey, memoryview]:
    """Return the known sections' bodies, uncopied, after length, checksum, magic and version, in this order.

    A control variate is known only when `control` is set. Unknown optional sections are left out.
    Raises PeerError for each of the four, for an unknown section that is not optional, a duplicate, and a wrong order.
    """
    if len(data) > limit:
        raise PeerError("payload-too-long", f"payload of {len(data)} bytes, limit {limit}")
    if len(data) < _SHORTEST:
        raise PeerError("truncated", f"payload of {len(data)} bytes, the shortest has {_SHORTEST}")
    view = memoryview(data)
    inner = view[:-_CHECKSUM_BYTES]
    if zlib.crc32(inner) != int.from_bytes(view[-_CHECKSUM_BYTES:], "little"):
        raise PeerError("checksum-mismatch", f"payload of {len(data)} bytes does not match its CRC-32")
    if inner[: len(MAGIC)] != MAGIC:
        raise PeerError("wrong-magic", f"expected {MAGIC.hex()}, got {inner[: len(MAGIC)].hex()}")
    if inner[len(MAGIC)] != VERSION:
        raise PeerError("unknown-version", f"format version {inner[len(MAGIC)]}, expected {VERSION}")
    known = _KNOWN | {CONTROL} if control else _KNOWN
    return _sections(Reader(inner[len(MAGIC) + 1 :], what="payload"), known)


def _sections(reader: Reader, known: frozenset[int]) -> dict[SectionKey, memoryview]:
    found: dict[SectionKey, memoryview] = {}
    before: SectionKey = (-1, 0)
    while reader.left:
        kind = reader.u8()
        body = reader.take(reader.varint())
        if kind not in known and kind < OPTIONAL:
            raise PeerError("unknown-section", f"section type {kind} is not optional and not known")
        if kind in _PER_SEGMENT and not body:
            raise PeerError("truncated", f"section type {kind} without its segment")
        key = (kind, body[0] if kind in _PER_SEGMENT else 0)
        if key == before:
            raise PeerError("duplicate-section", f"section type {kind}, segment {key[1]} comes twice")
        if key < before:
            raise PeerError("section-order", f"section type {kind}, segment {key[1]} comes after {before}")
        if kind in known:
            found[key] = body
        before = key
    return found
