"""A token bucket per vehicle: what one sends above its rate is dropped before it costs anything. Pure."""

from dataclasses import dataclass, field

__all__ = ["Limiter", "Rate"]


@dataclass(frozen=True)
class Rate:
    """Messages per second that a vehicle may send for ever, and how many at once."""

    per_s: float
    burst: float


@dataclass
class Limiter:
    """The buckets of all vehicles, at most ``capacity`` of them.

    A clock that jumps back refills nothing and stops nobody; one that jumps ahead fills the buckets, no more. When
    there are too many buckets, those that are full again are forgotten, then the oldest: a bucket that is not kept
    is a full one.
    """

    rate: Rate
    capacity: int = 100_000
    _buckets: dict[str, tuple[float, float]] = field(default_factory=dict)  # tokens, and when

    def admits(self, key: str, now_s: float) -> bool:
        """Tell whether a message may pass now, and take its token."""
        tokens, then_s = self._buckets.get(key, (self.rate.burst, now_s))
        tokens = min(self.rate.burst, tokens + max(0.0, now_s - then_s) * self.rate.per_s)
        passes = tokens >= 1
        if key not in self._buckets and len(self._buckets) >= self.capacity:
            self._forget(now_s)
        self._buckets[key] = (tokens - 1 if passes else tokens, now_s)
        return passes

    def __len__(self) -> int:
        return len(self._buckets)

    def _forget(self, now_s: float) -> None:
        per_s, burst = self.rate.per_s, self.rate.burst
        self._buckets = {
            key: (tokens, then_s)
            for key, (tokens, then_s) in self._buckets.items()
            if tokens + max(0.0, now_s - then_s) * per_s < burst
        }
        if len(self._buckets) >= self.capacity:
            for key in list(self._buckets)[: max(1, self.capacity // 10)]:
                del self._buckets[key]
