"""A bounded queue between the thread of a loop and the one that decides."""

from collections import deque
from collections.abc import Callable
from threading import Condition
from typing import Generic, TypeVar

__all__ = ["Inbox", "InboxFull"]

T = TypeVar("T")


class InboxFull(Exception):  # noqa: N818 - it is a state to wait out, not an error
    """The inbox holds as much as it may; the item was not taken."""


class Inbox(Generic[T]):
    """A thread-safe queue of at most ``capacity`` items; ``put`` is a sink for one link.

    With ``size_of`` they have at most ``max_bytes`` together, or one of them is larger and alone.
    Thousands of links share one inbox with a sink each that adds whose event it is. A link whose event
    is refused keeps it and offers it again, so that nothing but QoS 0 is lost.
    """

    def __init__(
        self, capacity: int, *, max_bytes: int = 0, size_of: Callable[[T], int] | None = None
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity {capacity}: expected at least 1")
        self.capacity, self.max_bytes = capacity, max_bytes
        self.overflows = 0
        self._size_of = size_of
        self._bytes = 0
        self._items: deque[T] = deque()
        self._changed = Condition()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> None:
        """Add an item without waiting; InboxFull (counted in ``overflows``) when there is no room."""
        size = self._size_of(item) if self._size_of is not None else 0
        with self._changed:
            if len(self._items) >= self.capacity:
                self.overflows += 1
                raise InboxFull(f"inbox holds {self.capacity} items, its limit")
            if self._items and size and self._bytes + size > self.max_bytes:
                self.overflows += 1
                raise InboxFull(f"inbox holds {self._bytes} bytes, its limit is {self.max_bytes}")
            self._bytes += size
            self._items.append(item)
            self._changed.notify()

    def get(self, timeout_s: float) -> T | None:
        """Take the oldest item, waiting for one at most ``timeout_s`` seconds; None when none came."""
        items = self.drain(1, timeout_s)
        return items[0] if items else None

    def drain(self, limit: int, timeout_s: float, *, limit_bytes: int = 0) -> list[T]:
        """Take up to ``limit`` items, oldest first, waiting at most ``timeout_s`` seconds for the first.

        No more are taken once they have ``limit_bytes`` together (0: no bound).
        """
        with self._changed:
            self._changed.wait_for(lambda: bool(self._items), timeout_s)
            taken: list[T] = []
            size = 0
            while self._items and len(taken) < limit and (not limit_bytes or size < limit_bytes):
                taken.append(self._items.popleft())
                size += self._size_of(taken[-1]) if self._size_of is not None else 0
            self._bytes -= size
            return taken
