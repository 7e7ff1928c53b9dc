"""The time of a round: told by a clock that never jumps, however the wall clock is set."""

from collections.abc import Mapping
from typing import TypeAlias

__all__ = ["Key", "Shifts"]

Key: TypeAlias = tuple[int, str]
"""Number and region of a round."""


class Shifts:
    """By how much a round's time differs from the steady clock: told once, however the wall clock is set later."""

    def __init__(self) -> None:
        self._by_round: dict[Key, float] = {}

    def keep(self, opened: Mapping[Key, float], *, now_s: float, steady_s: float) -> None:
        """Note the shift of rounds that are new here, by when they were opened, and forget those not among them.

        After a restart with a clock that was set back, a round begins anew at most: it never becomes endless.
        """
        self._by_round = {
            key: self._by_round.get(key, max(now_s, opened_s) - steady_s) for key, opened_s in opened.items()
        }

    def add(self, key: Key, shift_s: float) -> None:
        """Note the shift of a round that opens now."""
        self._by_round[key] = shift_s

    def of(self, key: Key) -> float:
        """Return what to add to the steady clock for this round's time."""
        return self._by_round[key]
