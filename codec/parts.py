"""Which coordinates are encoded together, and by which rule: sender and receiver hold the same parts.

A part is a set of whole tensors of one segment. Its own coordinates are 0 … size - 1, its tensors one after another.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from fedfleet.protocol.errors import UsageError

__all__ = ["SEGMENTS", "Coding", "Part", "Parts", "SegmentName"]

Coding = Literal["sparse", "dense", "exclude"]
SegmentName = Literal["body", "head"]
SEGMENTS: dict[str, int] = {"body": 0, "head": 1}
"""Number of each segment on the wire."""

_CODINGS = ("sparse", "dense", "exclude")

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """Coordinates of one segment with one rule: `spans` (start, end) of the vector, rising, one per tensor.

    `columns`, where known, is the length of each tensor's rows (a layer's inputs): what rows and columns have in common
    is used to name fewer bits; the receiver need not know.
    `statistics` tells, where known, which tensors of a "dense" part are running statistics: such a part is sent in
    float32, and how long an update is does not depend on them.
    "sparse": coded as the settings say. "dense": every value is sent, in eight bits or float32. "exclude": nothing
    is sent; the receiver's change is zero. Raises UsageError for an unknown name or spans that are not as told.
    """

    segment: SegmentName
    spans: tuple[tuple[int, int], ...]
    coding: Coding = "sparse"
    columns: tuple[int, ...] = field(default=(), compare=False)
    statistics: tuple[bool, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if self.segment not in SEGMENTS or self.coding not in _CODINGS:
            raise UsageError(f'part: expected body or head and {", ".join(_CODINGS)}, got "{self.segment}" and '
                             f'"{self.coding}"')  # fmt: skip
        edges = [edge for span in self.spans for edge in span]
        if (
            not edges
            or edges[0] < 0
            or any(start >= end for start, end in self.spans)
            or edges != sorted(edges)
        ):
            raise UsageError(f"part: expected rising spans (start, end), got {list(self.spans)[:4]}")
        lengths = [end - start for start, end in self.spans]
        if self.columns and (
            len(self.columns) != len(lengths)
            or any(each < 1 or n % each for n, each in zip(lengths, self.columns, strict=True))
        ):
            raise UsageError("part: expected a length of rows that divides each tensor")

    @cached_property
    def size(self) -> int:
        """Number of coordinates."""
        return sum(end - start for start, end in self.spans)

    @cached_property
    def tensors(self) -> tuple[tuple[int, int], ...]:
        """Each tensor's (start, end) in the part's own coordinates."""
        return tuple(zip(self._starts.tolist(), (self._starts + self._lengths).tolist(), strict=True))

    @property
    def is_exact(self) -> bool:
        """Whether all of it is sent in float32: it is dense, and has statistics."""
        return any(self.statistics)

    @cached_property
    def is_measured(self) -> npt.NDArray[np.bool_] | None:
        """Where in the part statistics are, bool[size]; None where there are none."""
        if not self.is_exact:
            return None
        return np.repeat(np.array(self.statistics, dtype=np.bool_), self._lengths)

    @cached_property
    def rows(self) -> tuple[tuple[int, int], ...]:
        """Each tensor's (rows, columns); empty where they are not known."""
        pairs = zip(self.spans, self.columns, strict=False)
        return tuple(((end - start) // each, each) for (start, end), each in pairs)

    def take(self, vector: npt.NDArray[np.float32]) -> Floats:
        """Return the part's values float32[size] of vector float32[M]; a view where the part is one stretch."""
        if self._shift is not None:
            return vector[self.spans[0][0] : self.spans[-1][1]]
        return np.concatenate([vector[start:end] for start, end in self.spans])

    def put(self, values: Floats, vector: Floats) -> None:
        """Write the part's values float32[size] into vector float32[M]."""
        for (start, end), (first, last) in zip(self.spans, self.tensors, strict=True):
            vector[start:end] = values[first:last]

    def place(self, own: Indices) -> Indices:
        """Return rising coordinates int64[k] of the vector for rising ones of the part."""
        if self._shift is not None:
            return own if self._shift == 0 else own + self._shift
        tensor = np.searchsorted(self._starts, own, side="right") - 1
        return own + self._offsets[tensor]

    def within(self, indices: Indices) -> Indices:
        """Return, of rising coordinates int64[k] of the vector, those in this part, as the part's own."""
        if self._shift is not None:
            first, last = np.searchsorted(indices, (self.spans[0][0], self.spans[-1][1]))
            return indices[first:last] - self._shift
        begins = self._starts + self._offsets
        tensor = np.maximum(np.searchsorted(begins, indices, side="right") - 1, 0)
        own = indices - self._offsets[tensor]
        inside = (indices >= begins[tensor]) & (indices < begins[tensor] + self._lengths[tensor])
        return own[inside]

    @cached_property
    def _shift(self) -> int | None:
        """Where the part begins, when its tensors lie without a gap."""
        gapless = all(end == start for (_, end), (start, _) in zip(self.spans, self.spans[1:], strict=False))
        return self.spans[0][0] if gapless else None

    @cached_property
    def _lengths(self) -> Indices:
        return np.array([end - start for start, end in self.spans], dtype=np.int64)

    @cached_property
    def _starts(self) -> Indices:
        return np.cumsum(self._lengths) - self._lengths

    @cached_property
    def _offsets(self) -> Indices:
        return np.array([start for start, _ in self.spans], dtype=np.int64) - self._starts


@dataclass(frozen=True)
class Parts:
    """How the M = `size` coordinates of a model are divided: disjoint parts, together all of them.

    Raises UsageError when they are not, or when every part is excluded.
    """

    size: int
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        at = 0
        for start, end in sorted(span for part in self.parts for span in part.spans):
            if start != at:
                raise UsageError(
                    f"parts: expected every coordinate once, got a tensor at {start} after one to {at}"
                )
            at = end
        if at != self.size:
            raise UsageError(f"parts: expected {self.size} coordinates, got {at}")
        if not self.coded:
            raise UsageError("parts: expected a part that is sent, all are excluded")

    @classmethod
    @lru_cache(maxsize=64)
    def whole(cls, size: int) -> Parts:
        """Return the parts of a model of one tensor: all of it sparse, in the body. Raises UsageError for size < 1."""
        return cls(size, (Part("body", ((0, size),)),))

    @cached_property
    def coded(self) -> tuple[Part, ...]:
        """The parts that are sent, in the order on the wire: by segment, then as given."""
        sent = (part for part in self.parts if part.coding != "exclude")
        return tuple(sorted(sent, key=lambda part: SEGMENTS[part.segment]))

    @cached_property
    def by_segment(self) -> dict[int, tuple[Part, ...]]:
        """The parts that are sent, in order, by the number of their segment on the wire, rising."""
        numbers = sorted({SEGMENTS[part.segment] for part in self.coded})
        return {n: tuple(part for part in self.coded if SEGMENTS[part.segment] == n) for n in numbers}

    @cached_property
    def is_measured(self) -> npt.NDArray[np.bool_] | None:
        """Where in the vector statistics are that travel densely, bool[M]; None where there are none."""
        found = np.zeros(self.size, dtype=np.bool_)
        for part in self.parts:
            for (start, end), is_statistic in zip(part.spans, part.statistics, strict=False):
                found[start:end] = is_statistic
        return found if found.any() else None

    def coordinates(self, segment: SegmentName) -> Indices:
        """Return the rising coordinates int64[n] of a segment's tensors, those excluded too; empty without any."""
        spans = sorted(span for part in self.parts if part.segment == segment for span in part.spans)
        found = [np.arange(start, end, dtype=np.int64) for start, end in spans]
        return np.concatenate(found) if found else np.empty(0, dtype=np.int64)

    def without_excluded(self, vector: Floats) -> Floats:
        """Return vector float32[M] with zeros where nothing is ever sent; itself when nothing is excluded."""
        excluded = [span for part in self.parts if part.coding == "exclude" for span in part.spans]
        if not excluded:
            return vector
        out = vector.copy()
        for start, end in excluded:
            out[start:end] = 0
        return out
