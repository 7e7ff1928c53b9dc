"""Where the server's link puts its events: bounded in number and bytes, and nothing at QoS 0 gets in.

The only part of ingest that runs on the link's thread, so it does no more than count.
"""

import time
from collections import Counter
from collections.abc import Callable
from math import inf
from threading import Lock

from fedfleet.fleet_server.rate import Rate
from fedfleet.link.inbox import Inbox
from fedfleet.link.port import Delivery, Event

__all__ = ["Intake"]

EVENTS = 4096
MAX_BYTES = 32_000_000
BATCH_BYTES = 16_000_000
"""Payloads of one transaction; one more may be above."""
NAMES = 1000
_WHOSE_LEVEL, _VEHICLE_LEVEL = 3, 5


class Intake:
    """The queue between the link and the server. No broker holds back what comes at QoS 0, so it ends here.

    So does, as a coarse sieve before the server's own rate, what a vehicle sends above a whole burst of it within a
    second, and in the next second all above twice its rate: who publishes as fast as it can must cost less than a
    broker takes to send it on.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._inbox: Inbox[Event] = Inbox(EVENTS, max_bytes=MAX_BYTES, size_of=_size_of)
        self._rate, self._clock = Rate(inf, inf), clock
        self._second = -1
        self._over: set[bytes] = set()  # who was above its burst in the second before
        self._came: dict[
            bytes, list[int]
        ] = {}  # by the vehicle of a topic: messages and bytes of this second
        self._lock = Lock()
        self._turned_away: Counter[tuple[bytes, str]] = Counter()

    def allow(self, rate: Rate) -> None:
        """Hold vehicles to this rate from now on; before, to none."""
        self._rate = rate

    def __len__(self) -> int:
        return len(self._inbox)

    @property
    def overflows(self) -> int:
        """How many events found no room and were offered again."""
        return self._inbox.overflows

    def admits(self, topic: bytes, qos: int, size_bytes: int) -> bool:
        """Tell whether a message may come in; see ``Admits``. What may not is counted."""
        levels = topic.split(b"/", _VEHICLE_LEVEL + 1)
        name = levels[_VEHICLE_LEVEL] if len(levels) > _VEHICLE_LEVEL else b""
        if len(levels) > _VEHICLE_LEVEL and levels[_WHOSE_LEVEL] != b"v":
            return True  # the server's own topics, which no vehicle may write
        if qos == 0:
            self._turn_away(name, "qos-0")
            return False
        now = int(self._clock())
        if now != self._second:
            self._next_second(now)
        came = self._came.setdefault(name, [0, 0])
        came[0] += 1
        came[1] += size_bytes
        rate, is_over = self._rate, name in self._over
        if came[0] > (2 * rate.per_s if is_over else rate.burst) or came[1] > rate.burst_bytes:
            self._turn_away(name, "rate")
            return False
        return True

    def put(self, event: Event) -> None:
        """Take an event from the link; InboxFull when there is no room. What is at QoS 0 is counted and gone."""
        if isinstance(event, Delivery) and event.qos == 0:
            self.admits(event.topic.encode(errors="replace"), 0, 0)
            return
        self._inbox.put(event)

    def drain(self, limit: int, timeout_s: float) -> list[Event]:
        """Take up to ``limit`` events, oldest first, waiting at most ``timeout_s`` seconds for the first."""
        return self._inbox.drain(limit, timeout_s, limit_bytes=BATCH_BYTES)

    def turned_away(self) -> Counter[tuple[str, str]]:
        """Return how many messages were dropped since the last call, by the vehicle in their topic and the reason."""
        if not self._turned_away:
            return Counter()
        with self._lock:
            found, self._turned_away = self._turned_away, Counter()
        return Counter({(name.decode("ascii", "replace"), why): n for (name, why), n in found.items()})

    def _next_second(self, now: int) -> None:
        rate = self._rate
        self._over = {name for name, (number, _) in self._came.items() if number > rate.burst}
        self._second, self._came = now, {}

    def _turn_away(self, name: bytes, reason: str) -> None:
        with self._lock:
            key = (name, reason)
            if len(self._turned_away) >= NAMES and key not in self._turned_away:
                key = (b"", reason)
            self._turned_away[key] += 1


def _size_of(event: Event) -> int:
    return len(event.payload) if isinstance(event, Delivery) else 0
