"""Who takes part in a round: the share of the plan, and who did not keep their lease.

The draw itself is public (`fedfleet.protocol.selection`), so the server knows who is selected without being told.
"""

from collections.abc import Collection, Mapping
from math import nextafter

from fedfleet.protocol.selection import draw

__all__ = ["FEW", "lapsed", "selected", "share", "share_of", "widened"]

FEW = 10
"""Below so many enrolled vehicles a region always asks all of them."""


def share(enrolled: int, wanted: int | None) -> float:
    """Return the share of a region's plan: `wanted` of `enrolled` on average; 1 for few vehicles or wanted None.

    Raises ValueError for a negative count, or fewer than one wanted.
    """
    if enrolled < 0 or (wanted is not None and wanted < 1):
        raise ValueError(
            f"share of a plan: expected enrolled ≥ 0 and wanted ≥ 1, got {enrolled} and {wanted}"
        )
    if wanted is None or enrolled < FEW:
        return 1.0
    return min(1.0, wanted / enrolled)


def share_of(listed: Collection[str], wanted: int | None, *, seed: int, round_: int) -> float:
    """Return the share that selects exactly `wanted` of listed vehicles in this round; 1 where that is all of them."""
    if wanted is None or wanted >= len(listed):
        return 1.0
    return widened(0.0, listed, missing=wanted, seed=seed, round_=round_)


def selected(vehicles: Collection[str], *, seed: int, round_: int, share: float) -> frozenset[str]:
    """Return those of `vehicles` whose draw for this round is below the share."""
    return frozenset(vehicle for vehicle in vehicles if draw(seed, round_, vehicle) < share)


def widened(share: float, others: Collection[str], *, missing: int, seed: int, round_: int) -> float:
    """Return the smallest share that also selects `missing` of `others`; 1 when there are not so many of them.

    `others` are vehicles that the present share does not select. The result is never below `share`, and is
    `share` itself when nothing is missing.
    """
    if missing <= 0:
        return share
    draws = sorted(draw(seed, round_, vehicle) for vehicle in others)
    if len(draws) < missing:
        return 1.0
    return max(share, nextafter(draws[missing - 1], 1.0))


def lapsed(
    vehicles: Collection[str],
    leases: Mapping[str, float],
    *,
    announced_at_s: float,
    lease_s: float,
    now_s: float,
) -> frozenset[str]:
    """Return those of `vehicles` that are no longer awaited: their lease (Unix seconds) is over.

    A vehicle without a lease has until `lease_s` after the plan was announced to take one. A lease runs on while
    its vehicle is offline: training needs no network. It is over at its last second.
    """
    return frozenset(v for v in vehicles if leases.get(v, announced_at_s + lease_s) <= now_s)
