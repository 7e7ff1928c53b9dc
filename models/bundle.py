"""What model blobs hold: graph with layout, full vector, packs of deltas, canary and its inputs, whole file.

Formats in ``docs/protocol.md``. Each is one zstd frame whose content size is declared and checked before anything is
unpacked.
"""

from collections.abc import Sequence
from hashlib import sha256
from struct import Struct
from typing import Literal

import numpy as np
import zstandard
from numpy.typing import NDArray

from fedfleet.protocol.errors import PeerError

__all__ = [
    "DeltaKind",
    "canary_inputs",
    "pack_answers",
    "pack_canary",
    "pack_deltas",
    "pack_file",
    "pack_graph",
    "pack_inputs",
    "pack_vector",
    "unpack_canary",
    "unpack_deltas",
    "unpack_file",
    "unpack_graph",
    "unpack_vector",
]

Floats = NDArray[np.float32]
DeltaKind = Literal["add", "set"]

_LEVEL = 9
_GRAPH = Struct(">4sI")
_GRAPH_MAGIC = b"FFG1"
_CANARY = Struct(">4sIII")
_CANARY_MAGIC = b"FFK1"
_CANARY_2 = Struct(">4s32sII")
_CANARY_2_MAGIC = b"FFK2"
_INPUTS = Struct(">4sII")
_INPUTS_MAGIC = b"FFI1"
_VECTOR_MAGIC = b"FFV2\n"  # five bytes: no number of floats is as long as one more with it
_FILE_MAGIC = b"FFM1"
_PACK = Struct(">4sIH")
_PACK_MAGIC = b"FFP1"
_ENTRY = Struct(">BI")
_KINDS: tuple[DeltaKind, ...] = ("add", "set")


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
    """Return the blob of a flat float32 vector, shape [M], version 2: the bytes of equal weight together."""
    planes = vector.astype("<f4", copy=False).view(np.uint8).reshape(-1, 4).T
    return _compress(_VECTOR_MAGIC + planes.tobytes())


def unpack_vector(blob: bytes, *, size: int) -> Floats:
    """Return the float32 vector, shape [size], of a vector blob; PeerError when it has another size.

    Version 1, the plain bytes of the vector, is read too: it is shorter by the magic.
    """
    head, length = len(_VECTOR_MAGIC), size * 4
    data = _decompress(blob, length + head, "vector blob")
    if len(data) == length:
        return np.frombuffer(data, dtype="<f4").astype(np.float32)
    if len(data) != length + head or data[:head] != _VECTOR_MAGIC:
        raise PeerError("malformed-blob", f"vector blob holds {len(data)} bytes, expected {length + head}")
    planes = np.frombuffer(data, dtype=np.uint8, offset=head).reshape(4, size)
    return np.ascontiguousarray(planes.T).view("<f4").reshape(size).astype(np.float32, copy=False)


def pack_deltas(from_version: int, deltas: Sequence[tuple[DeltaKind, bytes]]) -> bytes:
    """Return the blob of consecutive deltas, each with its kind, the first of which leads on from ``from_version``."""
    head = _PACK.pack(_PACK_MAGIC, from_version, len(deltas))
    entries = (_ENTRY.pack(_KINDS.index(kind), len(data)) + data for kind, data in deltas)
    return _compress(head + b"".join(entries))


def unpack_deltas(blob: bytes, *, limit_bytes: int) -> tuple[int, list[tuple[DeltaKind, bytes]]]:
    """Return (version that the first leads on from, deltas with their kinds); PeerError when malformed."""
    data = _decompress(blob, limit_bytes, "pack of deltas")
    if len(data) < _PACK.size or not data.startswith(_PACK_MAGIC):
        raise PeerError("malformed-blob", f"pack of deltas begins {data[:4]!r}")
    _, from_version, count = _PACK.unpack_from(data)
    at, found = _PACK.size, list[tuple[DeltaKind, bytes]]()
    for _ in range(count):
        if at + _ENTRY.size > len(data):
            raise PeerError("malformed-blob", f"pack of deltas ends after {len(found)} of {count}")
        kind, length = _ENTRY.unpack_from(data, at)
        at += _ENTRY.size
        if kind >= len(_KINDS) or at + length > len(data):
            told = f"delta {len(found)} of kind {kind} and {length} bytes"
            raise PeerError("malformed-blob", f"pack of deltas: {told}")
        found.append((_KINDS[kind], data[at : at + length]))
        at += length
    if at != len(data):
        raise PeerError("malformed-blob", f"pack of deltas has {len(data) - at} bytes too many")
    return from_version, found


def pack_file(onnx: bytes) -> bytes:
    """Return the blob of a whole model file."""
    return _compress(_FILE_MAGIC + onnx)


def unpack_file(blob: bytes, *, size_bytes: int) -> bytes:
    """Return the model file of so many bytes that a blob holds; PeerError when it holds anything else."""
    data = _decompress(blob, size_bytes + len(_FILE_MAGIC), "model file blob")
    if not data.startswith(_FILE_MAGIC) or len(data) != size_bytes + len(_FILE_MAGIC):
        told = f"model file blob begins {data[:4]!r} and holds {len(data)} bytes, expected {size_bytes} and 4"
        raise PeerError("malformed-blob", told)
    return data[len(_FILE_MAGIC) :]


def pack_inputs(inputs: Floats) -> bytes:
    """Return the blob of a canary's inputs [N, *in]: the same for every release that is asked the same."""
    return _compress(
        _INPUTS.pack(_INPUTS_MAGIC, len(inputs), inputs[0].size) + inputs.astype("<f4").tobytes()
    )


def pack_canary(inputs: Floats, outputs: Floats) -> bytes:
    """Return a canary blob, version 1: a few inputs [N, *in] and the outputs [N, *out] that a model must give."""
    head = _CANARY.pack(_CANARY_MAGIC, len(inputs), inputs[0].size, outputs[0].size)
    return _compress(head + inputs.astype("<f4").tobytes() + outputs.astype("<f4").tobytes())


def pack_answers(outputs: Floats, *, inputs_sha256: str) -> bytes:
    """Return a canary blob, version 2: the outputs [N, *out] that a model must give for the inputs of that blob."""
    head = _CANARY_2.pack(_CANARY_2_MAGIC, bytes.fromhex(inputs_sha256), len(outputs), outputs[0].size)
    return _compress(head + outputs.astype("<f4").tobytes())


def canary_inputs(blob: bytes, *, limit_bytes: int) -> str | None:
    """Return the SHA-256 (hex) of the blob with a canary's inputs; None when they are in it (version 1)."""
    data = _decompress(blob, limit_bytes, "canary blob")
    if data[:4] != _CANARY_2_MAGIC or len(data) < _CANARY_2.size:
        return None
    return str(_CANARY_2.unpack_from(data)[1].hex())


def unpack_canary(blob: bytes, inputs: bytes | None = None, *, limit_bytes: int) -> tuple[Floats, Floats]:
    """Return (inputs [N, in], outputs [N, out]), float32 and flat per row, of a canary blob and that of its inputs.

    Version 1 has its inputs within. PeerError when malformed, or made for other inputs.
    """
    data = _decompress(blob, limit_bytes, "canary blob")
    if data[:4] != _CANARY_2_MAGIC:
        return _inline_canary(data)
    if len(data) < _CANARY_2.size:
        raise PeerError("malformed-blob", f"canary blob unpacks to {len(data)} bytes")
    _, digest, rows, width = _CANARY_2.unpack_from(data)
    if len(data) != _CANARY_2.size + 4 * rows * width:
        raise PeerError("malformed-blob", f"canary blob of {rows} rows of {width} has {len(data)} bytes")
    if inputs is None or sha256(inputs).digest() != digest:
        raise PeerError(
            "malformed-blob", f"canary blob is for the inputs {digest.hex()[:12]}…, which are not here"
        )
    found = _unpack_inputs(inputs, limit_bytes=limit_bytes)
    if len(found) != rows:
        raise PeerError("malformed-blob", f"canary blob has {rows} rows, its inputs {len(found)}")
    outputs = np.frombuffer(data, dtype="<f4", offset=_CANARY_2.size).astype(np.float32)
    return found, outputs.reshape(rows, width)


def _unpack_inputs(blob: bytes, *, limit_bytes: int) -> Floats:
    data = _decompress(blob, limit_bytes, "blob of canary inputs")
    if len(data) < _INPUTS.size:
        raise PeerError("malformed-blob", f"blob of canary inputs unpacks to {len(data)} bytes")
    magic, rows, width = _INPUTS.unpack_from(data)
    if magic != _INPUTS_MAGIC or len(data) != _INPUTS.size + 4 * rows * width:
        raise PeerError("malformed-blob", f"blob of {rows} canary inputs of {width} has {len(data)} bytes")
    return np.frombuffer(data, dtype="<f4", offset=_INPUTS.size).astype(np.float32).reshape(rows, width)


def _inline_canary(data: bytes) -> tuple[Floats, Floats]:
    if len(data) < _CANARY.size:
        raise PeerError("malformed-blob", f"canary blob unpacks to {len(data)} bytes")
    magic, rows, width_in, width_out = _CANARY.unpack_from(data)
    if magic != _CANARY_MAGIC or len(data) != _CANARY.size + 4 * rows * (width_in + width_out):
        raise PeerError(
            "malformed-blob", f"canary blob of {rows} rows {width_in}+{width_out} has {len(data)} bytes"
        )
    values = np.frombuffer(data, dtype="<f4", offset=_CANARY.size).astype(np.float32)
    split = rows * width_in
    return values[:split].reshape(rows, width_in), values[split:].reshape(rows, width_out)
