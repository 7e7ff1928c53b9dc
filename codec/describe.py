"""What a payload holds, to look at: its blocks with their modes, stream sizes, and the bound of each index part."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedfleet.codec import blocks, container, entropy
from fedfleet.codec.blocks import Block
from fedfleet.codec.wire import Reader
from fedfleet.protocol.errors import PeerError

__all__ = ["INDEX_NAMES", "BlockView", "PayloadView", "bound_bits", "describe"]

INDEX_NAMES = {blocks.DENSE: "dense", blocks.BY_PLAN: "by plan", **entropy.NAMES}
_SECTIONS = {container.DELTA: "delta", container.CONTROL: "control variate"}


@dataclass(frozen=True)
class BlockView:
    """One part: `nonzeros` of `parameters` coordinates sent, in so many bytes.

    `index_bits` are those of the index part per coordinate sent, `bound_bits` the least that a code for uniform sets
    needs, log2 C(n, k) / k, `over_bound_pct` how far above it they are; all None where no coordinate is named.
    `largest` is the largest magnitude.
    """

    section: str
    segment: int
    index: str
    value: str
    parameters: int
    nonzeros: int
    head_bytes: int
    index_bytes: int
    value_bytes: int
    index_bits: float | None
    bound_bits: float | None
    over_bound_pct: float | None
    bits_per_nonzero: float | None
    largest: float


@dataclass(frozen=True)
class PayloadView:
    """A payload: its length, counts and blocks; `ratio` is dense float32 of what the delta covers over the length."""

    size_bytes: int
    version: int
    steps: int
    examples: int
    parameters: int
    container_bytes: int
    ratio: float
    blocks: tuple[BlockView, ...]


def bound_bits(size: int, count: int) -> float:
    """Return log2 C(size, count), the bits that a code for uniform sets of `count` needs on average at least."""
    return (math.lgamma(size + 1) - math.lgamma(count + 1) - math.lgamma(size - count + 1)) / math.log(2)


def describe(data: bytes, *, largest: int = blocks.MAX_SIZE) -> PayloadView:
    """Return what the payload holds, after every check that needs no model; parts of up to `largest` coordinates.

    Raises PeerError, with the reason of docs/codec-format.md, for what is no payload.
    """
    sections = container.split(data, limit=len(data), control=True)
    views = []
    for (kind, segment), body in sections.items():
        if kind in _SECTIONS:
            reader = Reader(body, what=_SECTIONS[kind])
            reader.u8()  # the segment
            while reader.left:
                block = blocks.unpack(reader, part=None, largest=largest)
                views.append(_view(block, section=_SECTIONS[kind], segment=segment))
    if not any(view.section == "delta" for view in views):
        raise PeerError("missing-section", f"section type {container.DELTA} is missing")
    steps, examples = (_count(sections, kind) for kind in (container.STEPS, container.EXAMPLES))
    inside = sum(view.head_bytes + view.index_bytes + view.value_bytes for view in views)
    parameters = sum(view.parameters for view in views if view.section == "delta")
    return PayloadView(
        size_bytes=len(data),
        version=container.VERSION,
        steps=steps,
        examples=examples,
        parameters=parameters,
        container_bytes=len(data) - inside,
        ratio=4 * parameters / len(data),
        blocks=tuple(views),
    )


def _count(sections: dict[container.SectionKey, memoryview], kind: int) -> int:
    if (kind, 0) not in sections:
        raise PeerError("missing-section", f"section type {kind} is missing")
    reader = Reader(sections[kind, 0], what="count")
    count = reader.varint()
    reader.end()
    return count


def _view(block: Block, *, section: str, segment: int) -> BlockView:
    head, index, value = block.bytes
    index_bits = bound = over = None
    if block.indices is not None and block.count:
        index_bits, bound = 8 * index / block.count, bound_bits(block.size, block.count) / block.count
        over = 100 * (index_bits / bound - 1) if bound > 0 else None
    return BlockView(
        section=section,
        segment=segment,
        index=INDEX_NAMES[block.index_mode],
        value=blocks.VALUE_NAMES[block.value_mode],
        parameters=block.size,
        nonzeros=block.count,
        head_bytes=head,
        index_bytes=index,
        value_bytes=value,
        index_bits=index_bits,
        bound_bits=bound,
        over_bound_pct=over,
        bits_per_nonzero=8 * (index + value) / block.count if block.count else None,
        largest=float(np.abs(block.values).max(initial=0.0)),
    )
