"""Where the weights lie: in the flat vector and, byte for byte, in the model file.

A model file is made once with all weights zero; every version is that file with the weights' bytes written over
(`patch`). So a vehicle needs neither onnx nor torch, and the SHA-256 of the whole file can be checked.
numpy and pydantic only.
"""

from __future__ import annotations

from itertools import accumulate
from math import prod
from typing import Annotated, Final, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedfleet.models.task import Floats
from fedfleet.protocol.errors import PeerError

__all__ = ["Layout", "extract", "patch", "read"]

ITEM_BYTES: Final = 4
MAX_TENSORS: Final = 4096
MAX_BYTES: Final = 2**31 - 1

Name = Annotated[str, Field(min_length=1, max_length=256)]
Side = Annotated[int, Field(ge=1, le=MAX_BYTES)]
Shape = Annotated[tuple[Side, ...], Field(max_length=8)]
Place = Annotated[int, Field(ge=0, le=MAX_BYTES)]


class Layout(BaseModel):
    """Names, shapes and places of the float32 tensors, in the order of the flat vector.

    `offsets` count floats in the vector, `byte_offsets` bytes in the model file of `file_bytes` bytes, where
    each tensor lies as little-endian float32. One that exists is consistent: no gap in the vector, no overlap in
    the file.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    task: Name
    task_version: Annotated[int, Field(ge=0)]
    names: Annotated[tuple[Name, ...], Field(min_length=1, max_length=MAX_TENSORS)]
    shapes: Annotated[tuple[Shape, ...], Field(max_length=MAX_TENSORS)]
    offsets: Annotated[tuple[Place, ...], Field(max_length=MAX_TENSORS)]
    byte_offsets: Annotated[tuple[Place, ...], Field(max_length=MAX_TENSORS)]
    file_bytes: Place

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of floats of each tensor."""
        return tuple(prod(shape) for shape in self.shapes)

    @property
    def size(self) -> int:
        """M, the length of the flat vector."""
        return sum(self.sizes)

    def to_json(self) -> bytes:
        """The same bytes for the same layout; `read` is the way back."""
        return self.model_dump_json().encode()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        lengths = {len(self.names), len(self.shapes), len(self.offsets), len(self.byte_offsets)}
        if len(lengths) != 1 or len(set(self.names)) != len(self.names):
            raise ValueError("names, shapes and offsets do not belong together")
        if self.offsets != tuple(accumulate(self.sizes[:-1], initial=0)):
            raise ValueError("offsets in the vector do not follow from the shapes")
        end = 0
        for start, size in sorted(zip(self.byte_offsets, self.sizes, strict=True)):
            if start < end:
                raise ValueError("two tensors overlap in the file")
            end = start + size * ITEM_BYTES
        if end > self.file_bytes:
            raise ValueError(f"a tensor ends at byte {end} of a file of {self.file_bytes} bytes")
        return self


def read(data: bytes) -> Layout:
    """The layout in a JSON text; PeerError("malformed-layout") when it is none."""
    try:
        return Layout.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"][:2]) or "layout"
        raise PeerError("malformed-layout", f"{where}: {first['msg']}") from error


def patch(onnx: bytes, layout: Layout, vector: Floats) -> bytes:
    """The model file with the weights `vector` float32[M] written over its own; nothing else changes.

    Raises PeerError("model-mismatch") when file, layout and vector are not of one model.
    """
    _check_file(onnx, layout)
    if vector.dtype != np.float32 or vector.shape != (layout.size,):
        got = f"{vector.dtype}{list(vector.shape)}"
        raise PeerError(
            "model-mismatch", f"weights of {layout.task}: expected float32[{layout.size}], got {got}"
        )
    weights = vector.astype("<f4", copy=False).tobytes()
    file = bytearray(onnx)
    for offset, size, place in zip(layout.offsets, layout.sizes, layout.byte_offsets, strict=True):
        start = offset * ITEM_BYTES
        file[place : place + size * ITEM_BYTES] = weights[start : start + size * ITEM_BYTES]
    return bytes(file)


def extract(onnx: bytes, layout: Layout) -> Floats:
    """The weights float32[M] of a model file, the inverse of `patch`; raises as it does."""
    _check_file(onnx, layout)
    places = zip(layout.byte_offsets, layout.sizes, strict=True)
    parts = [np.frombuffer(onnx, dtype="<f4", count=size, offset=place) for place, size in places]
    return np.concatenate(parts).astype(np.float32, copy=False)


def _check_file(onnx: bytes, layout: Layout) -> None:
    if len(onnx) != layout.file_bytes:
        text = f"file of {layout.task}: expected {layout.file_bytes} bytes, got {len(onnx)}"
        raise PeerError("model-mismatch", text)
