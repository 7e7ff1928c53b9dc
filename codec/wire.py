"""Bytes in and out, with bounds: variable-length integers, and a reader that refuses to run past its end."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator

import zstandard

from fedfleet.protocol.errors import PeerError

__all__ = [
    "BLOCK_BYTES",
    "MAX_VARINT",
    "Reader",
    "check_padding",
    "deflate",
    "inflate",
    "inflated_blocks",
    "varint",
]

MAX_VARINT = (1 << 35) - 1
_MAX_VARINT_BYTES = 5
_CONTINUED = 0x80
_FLOAT32 = struct.Struct("<f")
BLOCK_BYTES = 65_536
_READ_BYTES = 16_384
_ZSTD_LEVEL = 19
_WINDOW_LOG = 17
_RLE_BLOCK = 1
_ZSTD_FORMAT = zstandard.FORMAT_ZSTD1_MAGICLESS
_SMALLEST_WINDOW_BYTES = 1024


def varint(value: int) -> bytes:
    """Return `value` (0 … 2^35 - 1) as unsigned LEB128 in the fewest bytes."""
    if not 0 <= value <= MAX_VARINT:
        raise ValueError(f"varint: expected 0 to {MAX_VARINT}, got {value}")
    out = bytearray()
    while value >= _CONTINUED:
        out.append((value & 0x7F) | _CONTINUED)
        value >>= 7
    out.append(value)
    return bytes(out)


def check_padding(last: int, used_bits: int, what: str) -> None:
    """Refuse a stream of `used_bits` bits, most significant first, whose `last` byte has more bits set."""
    unused = -used_bits % 8
    if last & ((1 << unused) - 1):
        raise PeerError("padding-not-zero", f"{what}: the {unused} bits behind the last must be zero")


def deflate(data: bytes) -> bytes:
    """Return `data` (not empty) as one zstd frame (RFC 8878), its size told; no magic, checksum or dictionary."""
    parameters = zstandard.ZstdCompressionParameters.from_level(
        _ZSTD_LEVEL,
        source_size=len(data),
        window_log=_WINDOW_LOG,
        format=_ZSTD_FORMAT,
        write_content_size=1,
        write_checksum=0,
        write_dict_id=0,
    )
    return zstandard.ZstdCompressor(compression_params=parameters).compress(data)


def inflate(frame: memoryview, *, size: int, what: str) -> bytes:
    """Return the `size` ≥ 1 bytes in one frame of `deflate`; the caller has bounded `size`. Raises as the other."""
    return b"".join(inflated_blocks(frame, size=size, what=what))


def inflated_blocks(frame: memoryview, *, size: int, what: str) -> Iterator[bytes]:
    """Yield the `size` ≥ 1 bytes in one frame of `deflate`, at most `BLOCK_BYTES` at a time.

    The size that the frame tells and its window (at most 128 KiB) are checked before memory is taken, and no more
    than `size` bytes are ever made. Raises PeerError `bad-frame`, at the latest instead of the last block.
    """
    source, left = io.BytesIO(frame), size
    try:
        told = zstandard.get_frame_parameters(frame, format=_ZSTD_FORMAT)
        if told.content_size != size or told.has_checksum or told.dict_id:
            raise PeerError("bad-frame", f"{what}: zstd frame of {told.content_size} bytes, expected {size}")
        if told.window_size > max(size, _SMALLEST_WINDOW_BYTES) or told.window_size > 1 << _WINDOW_LOG:
            raise PeerError("bad-frame", f"{what}: zstd window of {told.window_size} bytes for {size}")
        if _frame_bytes(frame) != len(frame):
            raise PeerError("bad-frame", f"{what}: zstd frame does not end with its {len(frame)} bytes")
        inflater = zstandard.ZstdDecompressor(format=_ZSTD_FORMAT)
        with inflater.stream_reader(source, read_size=_READ_BYTES) as stream:
            while left:
                block = stream.read(min(left, BLOCK_BYTES))
                if not block:
                    raise PeerError("bad-frame", f"{what}: zstd frame is {left} of {size} bytes short")
                left -= len(block)
                if not left and stream.read(1):
                    raise PeerError("bad-frame", f"{what}: zstd frame holds more than {size} bytes")
                yield block
    except zstandard.ZstdError as error:
        raise PeerError("bad-frame", f"{what}: {error}") from None


def _frame_bytes(frame: memoryview) -> int:
    """Return where the frame's last block ends (RFC 8878, 3.1.1), or -1; a frame without checksum and dictionary."""
    descriptor = frame[0]
    single = descriptor >> 5 & 1
    at = 2 - single + (single, 2, 4, 8)[descriptor >> 6]
    while at + 3 <= len(frame):
        header = int.from_bytes(frame[at : at + 3], "little")
        length = header >> 3
        at += 3 + (1 if header >> 1 & 3 == _RLE_BLOCK else length)
        if length == 0 or header & 1:
            return at if length else -1
    return -1


class Reader:
    """A cursor over received bytes: every read is checked against what is left, nothing is copied.

    Raises PeerError `truncated`, `varint-not-canonical` or `trailing-bytes`, naming `what` is being read.
    """

    def __init__(self, data: memoryview, *, what: str) -> None:
        self._data = data
        self._at = 0
        self._what = what

    @property
    def left(self) -> int:
        """Bytes not yet read."""
        return len(self._data) - self._at

    def take(self, count: int) -> memoryview:
        """Return the next `count` bytes."""
        start, end = self._at, self._at + count
        if end > len(self._data):
            raise PeerError("truncated", f"{self._what}: needs {count} more bytes, {self.left} are left")
        self._at = end
        return self._data[start:end]

    def u8(self) -> int:
        """Return the next byte as a number."""
        if self._at >= len(self._data):
            raise PeerError("truncated", f"{self._what}: needs 1 more bytes, 0 are left")
        self._at += 1
        return self._data[self._at - 1]

    def f32(self) -> float:
        """Return the next four bytes as a little-endian float32 (finite or not)."""
        value: float = _FLOAT32.unpack(self.take(4))[0]
        return value

    def varint(self) -> int:
        """Return the next unsigned LEB128 number, in its shortest form of at most five bytes."""
        value = self.u8()
        if value < _CONTINUED:
            return value
        value &= 0x7F
        for shift in range(7, 7 * _MAX_VARINT_BYTES, 7):
            byte = self.u8()
            value |= (byte & 0x7F) << shift
            if byte < _CONTINUED:
                if byte == 0:
                    raise PeerError("varint-not-canonical", f"{self._what}: {value} in a longer form")
                return value
        raise PeerError("varint-not-canonical", f"{self._what}: longer than {_MAX_VARINT_BYTES} bytes")

    def end(self) -> None:
        """Refuse bytes that nothing has read."""
        if self.left:
            raise PeerError("trailing-bytes", f"{self._what}: {self.left} bytes too many")
