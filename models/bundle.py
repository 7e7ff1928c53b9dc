"""What model blobs hold: the graph with its layout, the full vector, and the canary. Formats in ``docs/protocol.md``.

All three are one zstd frame whose content size is declared and checked before anything is unpacked.
"""

from struct import Struct

import numpy as np
import zstandard
from numpy.typing import NDArray

from fedfleet.protocol.errors import PeerError

__all__ = ["pack_canary", "pack_graph", "pack_vector", "unpack_canary", "unpack_graph", "unpack_vector"]

Floats = NDArray[np.float32]

_LEVEL = 9
_GRAPH = Struct(">4sI")
_GRAPH_MAGIC = b"FFG1"
_CANARY = Struct(">4sIII")
_CANARY_MAGIC = b"FFK1"


def _compress(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True, write_checksum=True).compress(data)


def _decompress(frame: bytes, limit_bytes: int, what: str) -> bytes:
    try:
        told = zstandard.get_frame_parameters(frame).content_size
        if told > limit_bytes:
            raise PeerError("too-large", f"{what} unpacks to {told} bytes, limit {limit_bytes}")
        data = zstandard.ZstdDecompressor().decompress(
            frame, max_output_size=limit_bytes, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise PeerError("malformed-blob", f"{what}: {error}") from error
    return data


def pack_graph(layout_json: bytes, onnx_zeroed: bytes) -> bytes:
    """Return the graph blob: layout JSON and the canonical ONNX file with its weights zeroed."""
    return _compress(_GRAPH.pack(_GRAPH_MAGIC, len(layout_json)) + layout_json + onnx_zeroed)


def unpack_graph(blob: bytes, *, limit_bytes: int) -> tuple[bytes, bytes]:
    """Return (layout JSON, ONNX bytes) of a graph blob; PeerError when malformed or larger than the limit."""
    data = _decompress(blob, limit_bytes, "graph blob")
    if len(data) < _GRAPH.size:
        raise PeerError("malformed-blob", f"graph blob unpacks to {len(data)} bytes")
    magic, layout_bytes = _GRAPH.unpack_from(data)
    end = _GRAPH.size + layout_bytes
    if magic != _GRAPH_MAGIC or end > len(data):
        raise PeerError(
            "malformed-blob", f"graph blob begins {magic!r} with a layout of {layout_bytes} bytes"
        )
    return data[_GRAPH.size : end], data[end:]


def pack_vector(vector: Floats) -> bytes:
    """Return the blob of a flat float32 vector, shape [M]."""
    return _compress(vector.astype("<f4", copy=False).tobytes())


def unpack_vector(blob: bytes, *, size: int) -> Floats:
    """Return the float32 vector, shape [size], of a vector blob; PeerError when it has another size."""
    data = _decompress(blob, size * 4, "vector blob")
    if len(data) != size * 4:
        raise PeerError("malformed-blob", f"vector blob holds {len(data)} bytes, expected {size * 4}")
    return np.frombuffer(data, dtype="<f4").astype(np.float32)


def pack_canary(inputs: Floats, outputs: Floats) -> bytes:
    """Return the canary blob: a few inputs [N, *in] and the outputs [N, *out] that the model must give for them."""
    head = _CANARY.pack(_CANARY_MAGIC, len(inputs), inputs[0].size, outputs[0].size)
    return _compress(head + inputs.astype("<f4").tobytes() + outputs.astype("<f4").tobytes())


def unpack_canary(blob: bytes, *, limit_bytes: int) -> tuple[Floats, Floats]:
    """Return (inputs [N, in], outputs [N, out]), float32 and flat per row, of a canary blob."""
    data = _decompress(blob, limit_bytes, "canary blob")
    if len(data) < _CANARY.size:
        raise PeerError("malformed-blob", f"canary blob unpacks to {len(data)} bytes")
    magic, rows, width_in, width_out = _CANARY.unpack_from(data)
    if magic != _CANARY_MAGIC or len(data) != _CANARY.size + 4 * rows * (width_in + width_out):
        raise PeerError(
            "malformed-blob", f"canary blob of {rows} rows {width_in}+{width_out} has {len(data)} bytes"
        )
    values = np.frombuffer(data, dtype="<f4", offset=_CANARY.size).astype(np.float32)
    return values[: rows * width_in].reshape(rows, width_in), values[rows * width_in :].reshape(
        rows, width_out
    )
