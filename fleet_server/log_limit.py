"""One line of the log for each matter and minute: what repeats itself is counted, not written. Pure."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

__all__ = ["LogLimit"]

K = TypeVar("K", bound=Hashable)


@dataclass
class _Minute:
    since_s: float
    left_out: int = 0


@dataclass
class LogLimit(Generic[K]):
    """Which lines may be written. At most ``capacity`` matters are known at a time; of more, none is written."""

    period_s: float = 60.0
    capacity: int = 10_000
    _minutes: dict[K, _Minute] = field(default_factory=dict)

    def admits(self, key: K, now_s: float, *, times: int = 1) -> bool:
        """Tell whether the line of this matter, which happened so often, is to be written: the first of a minute is."""
        known = self._minutes.get(key)
        if known is not None:
            known.left_out += times
            return False
        if len(self._minutes) >= self.capacity:
            return False
        self._minutes[key] = _Minute(now_s)
        return True

    def ended(self, now_s: float) -> list[tuple[K, int]]:
        """Forget the matters whose minute is over; return those that happened after their line, and how often.

        A clock that was set back ends a minute too.
        """
        over = [key for key, one in self._minutes.items() if not 0 <= now_s - one.since_s < self.period_s]
        found = [(key, self._minutes.pop(key).left_out) for key in over]
        return [(key, left_out) for key, left_out in found if left_out]
