"""Where the server's link puts its events: bounded in number and bytes, and nothing at QoS 0 gets in.

The only part of ingest that runs on the link's thread, so it does no more than count.
"""

from collections import Counter
from threading import Lock

from fedfleet.link.inbox import Inbox
from fedfleet.link.port import Delivery, Event

__all__ = ["Intake"]

EVENTS = 4096
MAX_BYTES = 32_000_000
BATCH_BYTES = 16_000_000
"""Payloads of one transaction; one more may be above."""
NAMES = 1000
_VEHICLE_LEVEL = 5


class Intake:
    """The queue between the link and the server. No broker holds back what comes at QoS 0, so it ends here."""

    def __init__(self) -> None:
        self._inbox: Inbox[Event] = Inbox(EVENTS, max_bytes=MAX_BYTES, size_of=_size_of)
        self._lock = Lock()
        self._turned_away: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._inbox)

    @property
    def overflows(self) -> int:
        """How many events found no room and were offered again."""
        return self._inbox.overflows

    def put(self, event: Event) -> None:
        """Take an event from the link; InboxFull when there is no room. What is at QoS 0 is counted and gone."""
        if isinstance(event, Delivery) and event.qos == 0:
            levels = event.topic.split("/", _VEHICLE_LEVEL + 1)
            name = levels[_VEHICLE_LEVEL][:40] if len(levels) > _VEHICLE_LEVEL else ""
            with self._lock:
                self._turned_away[name if len(self._turned_away) < NAMES else ""] += 1
            return
        self._inbox.put(event)

    def drain(self, limit: int, timeout_s: float) -> list[Event]:
        """Take up to ``limit`` events, oldest first, waiting at most ``timeout_s`` seconds for the first."""
        return self._inbox.drain(limit, timeout_s, limit_bytes=BATCH_BYTES)

    def turned_away(self) -> Counter[str]:
        """Return how many messages at QoS 0 were dropped since the last call, by the vehicle in their topic."""
        with self._lock:
            found, self._turned_away = self._turned_away, Counter()
        return found


def _size_of(event: Event) -> int:
    return len(event.payload) if isinstance(event, Delivery) else 0
