"""Where the weights lie: in the flat vector and, byte for byte, in the model file.

A model file is made once with all weights zero; every version is that file with the weights' bytes written over
(`patch`). So a vehicle needs neither onnx nor torch, and the SHA-256 of the whole file can be checked.
numpy and pydantic only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import accumulate, product
from math import prod
from typing import Annotated, Final, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedfleet.codec.entropy_rows import row_length
from fedfleet.codec.parts import Coding, Part, Parts, SegmentName
from fedfleet.models.task import Floats, Task
from fedfleet.protocol.errors import PeerError, UsageError

__all__ = ["Layout", "Names", "Rule", "extract", "patch", "read", "rules"]

ITEM_BYTES: Final = 4
MAX_TENSORS: Final = 4096
MAX_BYTES: Final = 2**31 - 1

Name = Annotated[str, Field(min_length=1, max_length=256)]
Side = Annotated[int, Field(ge=1, le=MAX_BYTES)]
Shape = Annotated[tuple[Side, ...], Field(max_length=8)]
Place = Annotated[int, Field(ge=0, le=MAX_BYTES)]
Rule = Literal["body:sparse", "body:dense", "body:exclude", "head:sparse", "head:dense", "head:exclude"]


class Layout(BaseModel):
    """Names, shapes and places of the float32 tensors, in the order of the flat vector.

    `offsets` count floats in the vector, `byte_offsets` bytes in the model file of `file_bytes` bytes, where
    each tensor lies as little-endian float32. `rules` has each tensor's segment and coding in an update; without
    any, all are sparse in the body. One that exists is consistent: no gap in the vector, no overlap in the file.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    task: Name
    task_version: Annotated[int, Field(ge=0)]
    names: Annotated[tuple[Name, ...], Field(min_length=1, max_length=MAX_TENSORS)]
    shapes: Annotated[tuple[Shape, ...], Field(max_length=MAX_TENSORS)]
    offsets: Annotated[tuple[Place, ...], Field(max_length=MAX_TENSORS)]
    byte_offsets: Annotated[tuple[Place, ...], Field(max_length=MAX_TENSORS)]
    file_bytes: Place
    rules: Annotated[tuple[Rule, ...], Field(max_length=MAX_TENSORS)] = ()
    statistics: Annotated[tuple[Name, ...], Field(max_length=MAX_TENSORS)] = ()
    """Tensors that no gradient moves but every batch: running statistics. Dense ones are sent in float32."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of floats of each tensor."""
        return tuple(prod(shape) for shape in self.shapes)

    @property
    def size(self) -> int:
        """M, the length of the flat vector."""
        return sum(self.sizes)

    @property
    def parts(self) -> Parts:
        """How an update of this model is divided: tensors of one rule together. The same on both sides of the wire."""
        spans = [(start, start + size) for start, size in zip(self.offsets, self.sizes, strict=True)]
        told = self.rules or ("body:sparse",) * len(spans)
        columns = [row_length(shape) for shape in self.shapes]
        found = []
        for segment, coding in product(get_args(SegmentName), get_args(Coding)):
            own = [number for number, rule in enumerate(told) if rule == f"{segment}:{coding}"]
            if own:
                places, lengths = tuple(spans[n] for n in own), tuple(columns[n] for n in own)
                measured = tuple(self.names[n] in self.statistics for n in own) if coding == "dense" else ()
                found.append(Part(segment, places, coding, lengths, measured))
        return Parts(self.size, tuple(found))

    @property
    def stretches(self) -> tuple[tuple[int, int, str], ...]:
        """Return (start, end, segment) in the order of the vector; neighbours of one segment are one stretch."""
        spans = sorted((*span, part.segment) for part in self.parts.parts for span in part.spans)
        found: list[tuple[int, int, str]] = []
        for start, end, segment in spans:
            if found and found[-1][2] == segment:
                found[-1] = (found[-1][0], end, segment)
            else:
                found.append((start, end, segment))
        return tuple(found)

    @property
    def head_tensors(self) -> tuple[str, ...]:
        """Names of the tensors of segment "head", in order."""
        return tuple(
            name for name, rule in zip(self.names, self.rules, strict=False) if rule.startswith("head:")
        )

    @property
    def is_averaged(self) -> NDArray[np.bool_]:
        """Where in the vector statistics are, bool[M]: the server takes their mean and makes no step of it."""
        sizes = zip(self.names, self.sizes, strict=True)
        return np.concatenate([np.full(size, name in self.statistics) for name, size in sizes])

    def to_json(self) -> bytes:
        """The same bytes for the same layout; `read` is the way back."""
        absent = {name for name in ("rules", "statistics") if not getattr(self, name)}
        return self.model_dump_json(exclude=absent).encode()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        lengths = {len(self.names), len(self.shapes), len(self.offsets), len(self.byte_offsets)}
        if len(lengths) != 1 or len(set(self.names)) != len(self.names):
            raise ValueError("names, shapes and offsets do not belong together")
        if self.rules and len(self.rules) != len(self.names):
            raise ValueError(f"{len(self.rules)} rules for {len(self.names)} tensors")
        if unknown := [name for name in self.statistics if name not in self.names]:
            raise ValueError(f"statistics: no tensor {unknown[0]}")
        if self.rules and all(rule.endswith(":exclude") for rule in self.rules):
            raise ValueError("every tensor is excluded")
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


@dataclass(frozen=True)
class Names:
    """How the tensors of a network are called: those of the vector in order, and which of them are statistics.

    `second` are other names of tensors that layers share -> the one in the vector; `unsent` are not in the vector.
    """

    vector: Sequence[str]
    statistics: Sequence[str] = ()
    second: Mapping[str, str] = field(default_factory=dict)
    unsent: Sequence[str] = ()


def rules(task: Task, names: Names, *, head: Sequence[str] = ()) -> tuple[Rule, ...]:
    """Each tensor's rule, from the task's `tensors` and `head` (first pattern that matches); () for all-sparse bodies.

    Statistics that no pattern of `tensors` speaks of are dense. Other patterns in `head` come in the place of the
    task's own. Raises UsageError for a coding that there is not, a pattern that matches no tensor, or one that matches
    a tensor by its second name only.
    """
    codings: dict[str, Coding] = dict(getattr(task, "tensors", {}))
    head = head or getattr(task, "head", ())
    known = get_args(Coding)
    for pattern, coding in (*codings.items(), *((pattern, known[0]) for pattern in head)):
        if coding not in known:
            raise UsageError(
                f"task {task.name}: tensors {pattern}: expected {', '.join(known)}, got {coding!r}"
            )
        _check_pattern(task, pattern, names, excludes=coding == "exclude")
    found: list[Rule] = []
    for name in names.vector:
        segment: SegmentName = "head" if any(fnmatchcase(name, pattern) for pattern in head) else "body"
        usual: Coding = "dense" if name in names.statistics else "sparse"
        coding = next((rule for pattern, rule in codings.items() if fnmatchcase(name, pattern)), usual)
        found.append(f"{segment}:{coding}")  # type: ignore[arg-type]  # a product of the two
    return () if set(found) == {"body:sparse"} else tuple(found)


def _check_pattern(task: Task, pattern: str, names: Names, *, excludes: bool) -> None:
    for name, first in names.second.items():
        if fnmatchcase(name, pattern) and not fnmatchcase(first, pattern):
            raise UsageError(
                f"task {task.name}: {pattern} names {name}: {first} and {name} are one tensor, which is called {first}"
            )
    known = (*names.vector, *(names.unsent if excludes else ()))
    if not any(fnmatchcase(name, pattern) for name in known):
        raise UsageError(
            f"task {task.name}: no tensor {pattern}, expected one of {', '.join(names.vector)[:300]}"
        )


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
