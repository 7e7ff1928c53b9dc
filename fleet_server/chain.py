"""Which deltas stay live for vehicles that return: as many as cost less than the full vector. Pure.

The newest stand alone; those before are in packs of ``GROUP`` versions, so that a pointer, which every vehicle gets
every round, names few blobs however long the chain is.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from fedfleet.protocol.messages import BlobRef, DeltaRef, PackRef

__all__ = ["ALONE", "GROUP", "LONGEST", "Chain", "live", "pack_due"]

GROUP = 8
"""Versions in a pack."""
ALONE = 2
"""Newest deltas that a vehicle can always take one by one: who missed one round pays for one."""
LONGEST = 128
"""Versions behind, at most, that a chain reaches."""


@dataclass(frozen=True)
class Chain:
    """The live deltas and packs, the oldest first. The newest delta is there whatever it costs."""

    deltas: tuple[DeltaRef, ...]
    packs: tuple[PackRef, ...]


def live(
    deltas: Mapping[int, BlobRef], packs: Mapping[int, BlobRef], *, version: int, full_bytes: int
) -> Chain:
    """Return the chain to a version, from the kept deltas and packs by the version they lead to.

    It goes back without a gap, while all of it is smaller than the full vector and no longer than `LONGEST`.
    """
    low = _low(version)
    alone: list[DeltaRef] = []
    total, at = 0, version
    while at > low and at in deltas:
        total += deltas[at].size_bytes
        if alone and total > full_bytes:
            return Chain(tuple(reversed(alone)), ())
        alone.append(DeltaRef(from_version=at - 1, to_version=at, kind="add", blob=deltas[at]))
        at -= 1
    grouped: list[PackRef] = []
    while at == low and at in packs and version - at + GROUP <= LONGEST:
        total += packs[at].size_bytes
        if total > full_bytes:
            break
        grouped.append(PackRef(from_version=at - GROUP, to_version=at, blob=packs[at]))
        at = low = at - GROUP
    return Chain(tuple(reversed(alone)), tuple(reversed(grouped)))


def pack_due(version: int) -> range | None:
    """Return the versions whose deltas are to be packed when this version is published; None for most."""
    low = _low(version)
    return range(low - GROUP + 1, low + 1) if low > 0 and low > _low(version - 1) else None


def _low(version: int) -> int:
    """Return the version up to which deltas are in packs."""
    return max(0, (version - ALONE) // GROUP * GROUP)
