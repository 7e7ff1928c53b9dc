"""One update as bytes: the delta with how many steps and examples made it; docs/codec-format.md."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedfleet.codec import blocks, container
from fedfleet.codec.blocks import MAX_SIZE, Block
from fedfleet.codec.delta import Delta
from fedfleet.codec.parts import Part, Parts
from fedfleet.codec.settings import Settings
from fedfleet.codec.wire import Reader, varint
from fedfleet.protocol.errors import PeerError, UsageError

__all__ = ["MAX_COUNT", "MAX_SIZE", "Checked", "Payload", "Values", "check", "decode", "encode"]

MAX_COUNT = (1 << 32) - 1

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Payload:
    """A decoded update: the delta of the whole model, and the optimizer steps and examples behind it (≥ 0).

    `control` is the change of the vehicle's control variate (SCAFFOLD), where it was asked for.
    """

    delta: Delta
    steps: int
    examples: int
    control: Delta | None = None


@dataclass(frozen=True, eq=False)
class Values:
    """The values float32[k] that change a vector of `size` parameters; at which places is not told.

    `measured` are those among them that are running statistics, `learned` the others.
    """

    size: int
    values: Floats
    learned: Floats
    measured: Floats


@dataclass(frozen=True, eq=False)
class Checked:
    """What `check` finds: as `Payload`, but for the places of the values."""

    delta: Values
    steps: int
    examples: int
    control: Values | None = None


def encode(  # noqa: PLR0913 (what a payload can hold; all but the first two by keyword)
    delta: Floats,
    settings: Settings,
    *,
    steps: int,
    examples: int,
    parts: Parts | None = None,
    common: Indices | None = None,
    seed: int | None = None,
    control: Floats | None = None,
) -> bytes:
    """Return delta float32[M], M ≥ 1, as a payload; equal inputs give equal bytes (with one zstandard library).

    `parts` say what is coded together (None: one sparse part), `common` int64[k], rising, the coordinates that the
    plan names for index "common", `seed` (≥ 0) draws for value "stochastic4". `control` float32[M] is coded with the
    same settings. Zeros are never sent by index, so an all-zero delta under index "rice" has k = 0.
    Raises UsageError for a wrong type or shape, a value to send that is not finite (naming its index), a count out of
    range, or when the settings need what is not given.
    """
    parts = Parts.whole(delta.size) if parts is None and delta.size else parts
    for name, value in (("steps", steps), ("examples", examples)):
        if not 0 <= value <= MAX_COUNT:
            raise UsageError(f"{name}: expected 0 to {MAX_COUNT}, got {value}")
    if common is not None:
        _check_common(common, delta.size)
    sections = {(container.STEPS, 0): varint(steps), (container.EXAMPLES, 0): varint(examples)}
    for kind, vector in ((container.DELTA, delta), (container.CONTROL, control)):
        if vector is not None:
            checked = _checked(vector, parts, what="delta" if kind == container.DELTA else "control")
            sections |= _pack_sections(kind, vector, checked, settings, common=common, seed=seed)
    return container.join(sections)


def decode(
    data: bytes | memoryview,
    *,
    size: int,
    parts: Parts | None = None,
    common: Indices | None = None,
    control: bool = False,
) -> Payload:
    """Return the update in `data` for a model of `size` parameters, after every check.

    `parts` and `common` are the sender's (None: one sparse part; coordinates named by the payload); with `control` a
    control variate is required, otherwise it is refused. Lengths, counts and indices are checked before memory is
    taken for them; what is taken is bounded by `size` and by the length of `data`.
    Raises PeerError for any bytes that are not exactly one valid payload, UsageError for parts of another size.
    """
    parts = Parts.whole(size) if parts is None else parts
    sections, steps, examples = _open(data, size=size, parts=parts, control=control)
    found = [
        _join(_unpack_sections(kind, sections, parts, common=common), parts)
        for kind in _kinds(control=control)
    ]
    return Payload(found[0], steps, examples, found[1] if control else None)


def check(
    data: bytes | memoryview,
    *,
    size: int,
    parts: Parts | None = None,
    common: Indices | None = None,
    control: bool = False,
) -> Checked:
    """Return what `decode` would, and raise as it would, without the places of the values: in a third of its time."""
    parts = Parts.whole(size) if parts is None else parts
    sections, steps, examples = _open(data, size=size, parts=parts, control=control)
    found = []
    for kind in _kinds(control=control):
        pairs = _unpack_sections(kind, sections, parts, common=common, placed=False)
        values = _concatenated([block.values for _, block in pairs])
        masks = [(part.is_measured, block.values) for part, block in pairs]
        measured = [some[mask] for mask, some in masks if mask is not None]
        learned = values
        if measured:
            learned = _concatenated([some if mask is None else some[~mask] for mask, some in masks])
        found.append(Values(size, values, learned, _concatenated(measured)))
    return Checked(found[0], steps, examples, found[1] if control else None)


def _concatenated(some: list[Floats]) -> Floats:
    if len(some) == 1:
        return some[0]
    return np.concatenate(some) if some else np.empty(0, dtype=np.float32)


def _kinds(*, control: bool) -> tuple[int, ...]:
    return (container.DELTA, container.CONTROL) if control else (container.DELTA,)


def _open(
    data: bytes | memoryview, *, size: int, parts: Parts, control: bool
) -> tuple[dict[container.SectionKey, memoryview], int, int]:
    """Return the sections, all that must be there and no other, and the numbers of steps and examples."""
    if parts.size != size:
        raise UsageError(f"parts: expected those of {size} parameters, got {parts.size}")
    kinds = _kinds(control=control)
    sections = container.split(data, limit=container.limit_bytes(size, vectors=len(kinds)), control=control)
    expected = tuple(parts.by_segment)
    for kind, segment in sections:
        if kind in kinds and segment not in expected:
            raise PeerError(
                "unknown-segment", f"section type {kind} for segment {segment}, expected {expected[0]}"
            )
    required = [(kind, segment) for kind in kinds for segment in expected]
    for key in (*required, (container.STEPS, 0), (container.EXAMPLES, 0)):
        if key not in sections:
            raise PeerError("missing-section", f"section type {key[0]} is missing")
    steps = _unpack_count(sections[container.STEPS, 0], "steps")
    examples = _unpack_count(sections[container.EXAMPLES, 0], "examples")
    return sections, steps, examples


def _checked(vector: Floats, parts: Parts | None, *, what: str) -> Parts:
    """Return the parts of the vector, which is finite where they are sent and there are several."""
    if vector.ndim != 1 or vector.dtype != np.float32 or not 1 <= vector.size <= MAX_SIZE or parts is None:
        raise UsageError(f"{what}: expected float32[1 to {MAX_SIZE}], got {vector.dtype}{list(vector.shape)}")
    if parts.size != vector.size:
        raise UsageError(f"{what}: expected float32[{parts.size}] as the parts, got {list(vector.shape)}")
    if len(parts.parts) > 1:
        for start, end in (span for part in parts.coded for span in part.spans):
            finite = np.isfinite(vector[start:end])
            if not finite.all():
                at = start + int(np.argmin(finite))
                got = f"got {vector[at]} at index {at} of {vector.size}"
                raise UsageError(f"{what}: expected finite numbers, {got}")
    return parts


def _check_common(common: Indices, size: int) -> None:
    ordered = common.ndim == 1 and common.dtype == np.int64 and bool((np.diff(common) > 0).all())
    if not ordered or (common.size and not (common[0] >= 0 and common[-1] < size)):
        raise UsageError(f"common: expected rising int64 coordinates from 0 to {size - 1}")


def _pack_sections(
    kind: int,
    vector: Floats,
    parts: Parts,
    settings: Settings,
    *,
    common: Indices | None,
    seed: int | None,
) -> dict[container.SectionKey, bytes]:
    out: dict[container.SectionKey, bytes] = {}
    for segment, own in parts.by_segment.items():
        body = [bytes((segment,))]
        for number, part in enumerate(own):
            named = None if common is None else part.within(common)
            seeds = None if seed is None else (seed, kind, segment, number)
            body.append(blocks.pack(part, part.take(vector), settings, named=named, seed=seeds))
        out[kind, segment] = b"".join(body)
    return out


def _unpack_sections(
    kind: int,
    sections: dict[container.SectionKey, memoryview],
    parts: Parts,
    *,
    common: Indices | None,
    placed: bool = True,
) -> list[tuple[Part, Block]]:
    found: list[tuple[Part, Block]] = []
    for segment, own in parts.by_segment.items():
        reader = Reader(
            sections[kind, segment], what="delta" if kind == container.DELTA else "control variate"
        )
        reader.u8()  # the segment, which the container has read
        for part in own:
            named = None if common is None or part.coding == "dense" else part.within(common)
            found.append((part, blocks.unpack(reader, part=part, named=named, placed=placed)))
        reader.end()
    return found


def _join(found: list[tuple[Part, Block]], parts: Parts) -> Delta:
    """Return one change of the whole vector; dense when every part that is sent is."""
    part, block = found[0]
    if len(found) == 1 and part.size == parts.size:
        return Delta(parts.size, block.indices, block.values)
    if all(block.indices is None for _, block in found):
        values = np.zeros(parts.size, dtype=np.float32)
        for part, block in found:
            part.put(block.values, values)
        return Delta(parts.size, None, values)
    placed = [
        part.place(np.arange(part.size, dtype=np.int64) if block.indices is None else block.indices)
        for part, block in found
    ]
    indices, values = np.concatenate(placed), np.concatenate([block.values for _, block in found])
    if not (np.diff(indices) > 0).all():
        order = np.argsort(indices, kind="stable")
        indices, values = indices[order], values[order]
    return Delta(parts.size, indices, values)


def _unpack_count(body: memoryview, what: str) -> int:
    reader = Reader(body, what=what)
    count = reader.varint()
    reader.end()
    if count > MAX_COUNT:
        raise PeerError("count-out-of-range", f"{what}: {count}, limit {MAX_COUNT}")
    return count
