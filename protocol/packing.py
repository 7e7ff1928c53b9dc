"""The JSON of a message as it travels: a zstd frame where that is shorter. Bounded before anything is unpacked."""

import zstandard

from fedfleet.protocol.errors import PeerError

__all__ = ["LIMIT_BYTES", "pack", "unpack"]

LIMIT_BYTES = 1_000_000
"""Longest JSON that is unpacked."""
_LEVEL = 9
_idle: list[
    zstandard.ZstdCompressor
] = []  # making one costs more than a message; in use by one thread at a time
_MAGIC = b"\x28\xb5\x2f\xfd"  # of a zstd frame; no JSON begins so


def pack(text: bytes) -> bytes:
    """Return the shorter of the JSON and its zstd frame, whose content size is declared."""
    try:
        compressor = _idle.pop()
    except IndexError:
        compressor = zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True)
    frame = compressor.compress(text)
    _idle.append(compressor)
    return min(text, frame, key=len)


def unpack(body: bytes) -> bytes:
    """Return the JSON of a body; PeerError ``malformed-message`` or ``too-large`` for a frame that is not sound."""
    if not body.startswith(_MAGIC):
        return body
    try:
        told = zstandard.get_frame_parameters(body).content_size
        if told > LIMIT_BYTES:  # as it is when the frame does not tell
            raise PeerError("too-large", f"message unpacks to {told} bytes, limit {LIMIT_BYTES}")
        return zstandard.ZstdDecompressor().decompress(
            body, max_output_size=LIMIT_BYTES, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise PeerError("malformed-message", f"zstd frame of {len(body)} bytes: {error}") from error
