"""Large messages in pieces: a message above the chunk size travels as numbered frames that carry its SHA-256.

A message that fits travels bare, without a frame, so a small update pays nothing. Every frame repeats the whole
message's length and digest; a frame that disagrees with the first is refused, so memory is bounded by what the
first frame announced.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from struct import Struct

from fedfleet.protocol.errors import PeerError

__all__ = ["CHUNK_BYTES", "Chunk", "is_chunk", "join", "read_chunk", "split"]

CHUNK_BYTES = 256_000
"""Largest piece of a message, in bytes: larger ones cost a slow link quadratic time."""
MAGIC = b"FFCH"
VERSION = 1
_FIXED = Struct(">4sBBHHI32s")


@dataclass(frozen=True)
class Chunk:
    """Piece ``number`` of ``count`` of the message with this digest (hex) and length."""

    digest: str
    number: int
    count: int
    total_bytes: int
    data: bytes


def split(message: bytes, *, chunk_bytes: int = CHUNK_BYTES) -> tuple[bytes, ...]:
    """Return the frames to publish as numbers 0, 1, …; one bare message when it fits."""
    if len(message) <= chunk_bytes:
        return (message,)
    pieces = [message[start : start + chunk_bytes] for start in range(0, len(message), chunk_bytes)]
    digest = sha256(message).digest()
    return tuple(
        _FIXED.pack(MAGIC, VERSION, 0, len(pieces), number, len(message), digest) + piece
        for number, piece in enumerate(pieces)
    )


def is_chunk(frame: bytes) -> bool:
    """Tell whether these bytes are a frame, rather than a bare message."""
    return frame[:4] == MAGIC


def read_chunk(frame: bytes, *, number: int, limit_bytes: int) -> Chunk:
    """Take a frame apart; ``number`` is the one in its topic, ``limit_bytes`` the cap of the whole message."""
    if len(frame) <= _FIXED.size:
        raise PeerError("truncated", f"a chunk of {len(frame)} bytes holds no data")
    magic, version, flags, count, own, total, digest = _FIXED.unpack_from(frame)
    if magic != MAGIC or version != VERSION or flags != 0:
        raise PeerError(
            "unknown-version", f"chunk version {version} flags {flags}, this side reads {VERSION} and 0"
        )
    if total > limit_bytes:
        raise PeerError("too-large", f"chunked message is {total} bytes, limit {limit_bytes}")
    size = len(frame) - _FIXED.size
    if own != number or not number < count <= total or size > total:
        raise PeerError(
            "malformed-chunk", f"chunk {own} of {count} with {size} of {total} bytes at number {number}"
        )
    return Chunk(digest.hex(), number, count, total, frame[_FIXED.size :])


def join(chunks: Iterable[Chunk]) -> bytes:
    """Return the message of a full set of chunks; PeerError when one is missing, foreign or altered."""
    ordered = sorted(chunks, key=lambda chunk: chunk.number)
    if not ordered:
        raise PeerError("malformed-chunk", "no chunks")
    first = ordered[0]
    if [chunk.number for chunk in ordered] != list(range(first.count)):
        raise PeerError("malformed-chunk", f"{len(ordered)} chunks of {first.count}")
    message = b"".join(chunk.data for chunk in ordered)
    if len(message) != first.total_bytes or sha256(message).hexdigest() != first.digest:
        raise PeerError("digest-mismatch", f"joined chunks are not the message {first.digest[:12]}…")
    return message
