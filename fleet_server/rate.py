"""A token bucket per vehicle: what one sends above its rate is dropped before it costs anything. Pure."""

from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

__all__ = ["Limiter", "Rate"]


@dataclass(frozen=True)
class Rate:
    """Messages and bytes per second that a vehicle may send for ever, and how many of both at once."""

    per_s: float
    burst: float
    bytes_per_s: float = inf
    burst_bytes: float = inf


class _Bucket(NamedTuple):
    messages: float
    bytes: float
    then_s: float


@dataclass
class Limiter:
    """The buckets of all vehicles, at most ``capacity`` of them.

    A clock that jumps back refills nothing and stops nobody; one that jumps ahead fills the buckets, no more. When
    there are too many buckets, those that are full again are forgotten, then the oldest: a bucket that is not kept
    is a full one.
    """

    rate: Rate
    capacity: int = 100_000
    _buckets: dict[str, _Bucket] = field(default_factory=dict)

    def admits(self, key: str, now_s: float, *, size_bytes: int = 0) -> bool:
        """Tell whether a message of this size may pass now, and take its tokens."""
        bucket = self._filled(key, now_s)
        passes = bucket.messages >= 1 and bucket.bytes >= size_bytes
        taken = (bucket.messages - 1, bucket.bytes - size_bytes) if passes else bucket[:2]
        if key not in self._buckets and len(self._buckets) >= self.capacity:
            self._forget(now_s)
        self._buckets[key] = _Bucket(*taken, now_s)
        return passes

    def refund(self, key: str, *, size_bytes: int) -> None:
        """Give a message's tokens back: it passed, but could not be taken, and will come again."""
        bucket = self._buckets.get(key)
        if bucket is not None:
            messages = min(self.rate.burst, bucket.messages + 1)
            size = min(self.rate.burst_bytes, bucket.bytes + size_bytes)
            self._buckets[key] = _Bucket(messages, size, bucket.then_s)

    def charge(self, key: str, now_s: float, *, share: float) -> None:
        """Take a share of a burst from a vehicle that has cost more than its message; it may come to owe a burst."""
        bucket = self._filled(key, now_s)
        left = max(-self.rate.burst, bucket.messages - share * self.rate.burst)
        self._buckets[key] = _Bucket(left, bucket.bytes, now_s)

    def __len__(self) -> int:
        return len(self._buckets)

    def _filled(self, key: str, now_s: float) -> _Bucket:
        rate = self.rate
        before = self._buckets.get(key)
        if before is None:
            return _Bucket(rate.burst, rate.burst_bytes, now_s)
        gone_s = max(0.0, now_s - before.then_s)
        messages = min(rate.burst, before.messages + gone_s * rate.per_s)
        size = min(rate.burst_bytes, before.bytes + gone_s * rate.bytes_per_s) if gone_s else before.bytes
        return _Bucket(messages, size, now_s)

    def _forget(self, now_s: float) -> None:
        full = (self.rate.burst, self.rate.burst_bytes)
        self._buckets = {
            key: bucket for key, bucket in self._buckets.items() if self._filled(key, now_s)[:2] != full
        }
        if len(self._buckets) >= self.capacity:
            for key in list(self._buckets)[: max(1, self.capacity // 10)]:
                del self._buckets[key]
