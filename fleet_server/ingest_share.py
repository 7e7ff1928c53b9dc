"""How much of a round's room one vehicle may fill: a fold takes one update of it, a few more may come by mischance."""

from collections.abc import Mapping

from fedfleet.protocol.errors import PeerError
from fedfleet.protocol.update import Manifest

__all__ = ["LARGEST_PER_ROUND", "UPDATES_PER_ROUND", "Shares"]

UPDATES_PER_ROUND = 100
LARGEST_PER_ROUND = 3
"""Updates of the largest size that are stored for one vehicle and round; of smaller ones more."""


class Shares:
    """What is ``stored`` by vehicle and round, number and bytes, and what a transaction adds to it."""

    def __init__(self, stored: Mapping[tuple[str, int], tuple[int, int]], *, update_bytes: int) -> None:
        self._stored = dict(stored)
        self._most_bytes = LARGEST_PER_ROUND * update_bytes

    def take(self, manifest: Manifest, sealed_bytes: int) -> None:
        """Count an update that is to be stored; PeerError ``too-many-updates`` when there is no room for it."""
        key = (manifest.id.vehicle, manifest.round)
        number, size = self._stored.get(key, (0, 0))
        if number >= UPDATES_PER_ROUND or size + sealed_bytes > self._most_bytes:
            told = f"{manifest.id.vehicle} has {number} updates of {size} bytes in it"
            limits = f"limits {UPDATES_PER_ROUND} and {self._most_bytes}"
            raise PeerError("too-many-updates", f"round {manifest.round}: {told}, {limits}")
        self._stored[key] = (number + 1, size + sealed_bytes)
