"""One update as bytes: the delta with how many steps and examples made it; docs/codec-format.md."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedfleet.codec import container
from fedfleet.codec.delta import Delta
from fedfleet.codec.entropy import pack_indices, unpack_indices
from fedfleet.codec.quantize import pack_values, unpack_values
from fedfleet.codec.select import magnitude_bits, top_k
from fedfleet.codec.settings import Settings
from fedfleet.codec.wire import Reader, varint
from fedfleet.protocol.errors import PeerError, UsageError

__all__ = ["BODY", "MAX_COUNT", "MAX_SIZE", "Payload", "decode", "encode"]

BODY = 0  # the segment that every model has
MAX_SIZE = (1 << 31) - 1
MAX_COUNT = (1 << 32) - 1

_INDEX_CODES = {"dense": 0, "rice": 1}
_VALUE_CODES = {"sign": 0, "int8": 1, "float32": 2}
_MODES = {
    code_i << 4 | code_v: (index, value)
    for index, code_i in _INDEX_CODES.items()
    for value, code_v in _VALUE_CODES.items()
    if (index, value) != ("rice", "float32")
}


@dataclass(frozen=True)
class Payload:
    """A decoded update: the delta of segment `body`, and the optimizer steps and examples behind it (≥ 0)."""

    delta: Delta
    steps: int
    examples: int


def encode(delta: npt.NDArray[np.float32], settings: Settings, *, steps: int, examples: int) -> bytes:
    """Return delta float32[M], M ≥ 1, as a payload; equal inputs give equal bytes.

    Zeros are never sent by index, so an all-zero delta under index "rice" has k = 0.
    Raises UsageError for a wrong type or shape, a value that is not finite (naming its index), or a count out
    of range.
    """
    if delta.ndim != 1 or delta.dtype != np.float32 or not 1 <= delta.size <= MAX_SIZE:
        raise UsageError(f"delta: expected float32[1 to {MAX_SIZE}], got {delta.dtype}{list(delta.shape)}")
    for name, value in (("steps", steps), ("examples", examples)):
        if not 0 <= value <= MAX_COUNT:
            raise UsageError(f"{name}: expected 0 to {MAX_COUNT}, got {value}")
    return container.join(
        {
            (container.DELTA, BODY): _pack_delta(delta, settings, segment=BODY),
            (container.STEPS, 0): varint(steps),
            (container.EXAMPLES, 0): varint(examples),
        }
    )


def decode(data: bytes, *, size: int) -> Payload:
    """Return the update in `data` for a model of `size` parameters, after every check.

    Lengths, counts and indices are checked before memory is taken for them; what is taken is bounded by
    `size` and by the length of `data`. Raises PeerError for any bytes that are not exactly one valid payload.
    """
    sections = container.split(data, limit=container.limit_bytes(size))
    for kind, segment in sections:
        if segment != BODY:
            raise PeerError("unknown-segment", f"section type {kind} for segment {segment}, expected {BODY}")
    for kind in (container.DELTA, container.STEPS, container.EXAMPLES):
        if (kind, 0) not in sections:
            raise PeerError("missing-section", f"section type {kind} is missing")
    steps = _unpack_count(sections[container.STEPS, 0], "steps")
    examples = _unpack_count(sections[container.EXAMPLES, 0], "examples")
    return Payload(_unpack_delta(sections[container.DELTA, BODY], size=size), steps, examples)


def _pack_delta(delta: npt.NDArray[np.float32], settings: Settings, *, segment: int) -> bytes:
    value = _VALUE_CODES[settings.value]
    if settings.index == "dense":
        magnitude_bits(delta)  # refuses what is not finite
        return bytes((segment, value)) + varint(delta.size) + pack_values(delta, settings.value)
    indices = top_k(delta, settings.count(delta.size))
    mode, coordinates = pack_indices(indices, size=delta.size)
    head = bytes((segment, mode << 4 | value)) + varint(delta.size)
    return head + coordinates + pack_values(delta[indices], settings.value)


def _unpack_delta(body: memoryview, *, size: int) -> Delta:
    reader = Reader(body, what="delta")
    reader.u8()  # the segment, which the container has read
    mode = reader.u8()
    if mode not in _MODES:
        raise PeerError("unknown-mode", f"index mode {mode >> 4} with value mode {mode & 15}")
    index, value = _MODES[mode]
    stated = reader.varint()
    if stated != size:
        raise PeerError("size-mismatch", f"delta of {stated} parameters, the model has {size}")
    indices = unpack_indices(reader, size=size, mode=mode >> 4) if index == "rice" else None
    count = size if indices is None else indices.size
    values = unpack_values(reader, mode=value, count=count, sparse=indices is not None)
    reader.end()
    return Delta(size, indices, values)


def _unpack_count(body: memoryview, what: str) -> int:
    reader = Reader(body, what=what)
    count = reader.varint()
    reader.end()
    if count > MAX_COUNT:
        raise PeerError("count-out-of-range", f"{what}: {count}, limit {MAX_COUNT}")
    return count
