"""Large messages in pieces: a message above the chunk size travels as numbered frames that carry its SHA-256.

A message that fits travels bare, without a frame, so a small update pays nothing. Every frame repeats the whole
message's length and digest. Only the canonical split is read: all pieces but the last have one length, the last is
not longer, and the count follows from both, so that two frames of one split cannot overlap or leave a gap.

Who sends takes the largest of ``PIECES`` that its broker takes. Blobs are cut into the same sizes, without frames.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from struct import Struct

from fedfleet.protocol.errors import PeerError

__all__ = [
    "CHUNK_BYTES",
    "MIN_MESSAGE_BYTES",
    "PIECES",
    "Chunk",
    "Split",
    "blob_piece",
    "is_chunk",
    "join",
    "piece_for",
    "read_chunk",
    "split",
]

CHUNK_BYTES = 256_000
"""Largest piece of a message, in bytes: larger ones cost a slow link quadratic time."""
PIECES = (CHUNK_BYTES, 128_000, 64_000, 32_000, 16_000, 8_000)
"""The lengths in bytes that senders use, largest first: each is half of the one before."""
MIN_MESSAGE_BYTES = 8_192
"""A broker must take messages of this length: the smallest piece, and what is around it."""
MAGIC = b"FFCH"
VERSION = 1
_FIXED = Struct(">4sBBHHI32s")


@dataclass(frozen=True)
class Split:
    """How a message is cut: its SHA-256 (hex), its length, and the length of every piece but the last, in bytes."""

    digest: str
    total_bytes: int
    chunk_bytes: int

    @property
    def count(self) -> int:
        """The number of pieces."""
        return -(-self.total_bytes // self.chunk_bytes)

    def size_of(self, number: int) -> int:
        """Return the length of one piece in bytes."""
        return min(self.chunk_bytes, self.total_bytes - number * self.chunk_bytes)


@dataclass(frozen=True)
class Chunk:
    """Piece ``number`` of ``count`` of the message with this digest (hex) and length."""

    digest: str
    number: int
    count: int
    total_bytes: int
    data: bytes

    @property
    def split(self) -> Split:
        """The canonical split that this piece belongs to."""
        is_last = self.number == self.count - 1
        rest = self.total_bytes - len(self.data)
        return Split(self.digest, self.total_bytes, rest // (self.count - 1) if is_last else len(self.data))


def piece_for(limit_bytes: int) -> int:
    """Return the largest of ``PIECES`` whose frame fits into messages of this length; the smallest if none does."""
    return next((size for size in PIECES if size + _FIXED.size <= limit_bytes), PIECES[-1])


def blob_piece(total_bytes: int, count: int) -> int:
    """Return the length of the pieces of a blob from its length and their number; PeerError if there is none.

    Two of ``PIECES`` never give the same number above 1, so the length need not travel.
    """
    for size in PIECES:
        if max(1, -(-total_bytes // size)) == count:
            return size
    raise PeerError("malformed-blob", f"{total_bytes} bytes in {count} chunks: of no length that is in use")


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
    """Take a frame apart; ``number`` is the one in its topic, ``limit_bytes`` the cap of the whole message.

    Raises PeerError: truncated, unknown-version, too-large, and malformed-chunk for a piece that no canonical split
    into at least two pieces of at most ``CHUNK_BYTES`` has.
    """
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
    if own != number or not number < count <= total or count == 1 or size > total:
        raise PeerError(
            "malformed-chunk", f"chunk {own} of {count} with {size} of {total} bytes at number {number}"
        )
    chunk = Chunk(digest.hex(), number, count, total, frame[_FIXED.size :])
    _check_canonical(chunk)
    return chunk


def _check_canonical(chunk: Chunk) -> None:
    cut, size = chunk.split, len(chunk.data)
    fits = 0 < cut.chunk_bytes <= CHUNK_BYTES and cut.count == chunk.count
    if not fits or size != cut.size_of(chunk.number):
        told = f"chunk {chunk.number} of {chunk.count} with {size} of {chunk.total_bytes} bytes"
        raise PeerError(
            "malformed-chunk", f"{told}: no split into equal pieces of at most {CHUNK_BYTES} bytes"
        )


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
