"""One thread that waits for any number of sockets with epoll (``select`` ends at descriptor 1024).

It knows descriptors, wake-ups and due times, nothing of MQTT. What blocks (name lookup, TCP and TLS handshakes) runs
in a second thread, so that one silent host does not stop the others.
"""

import heapq
import itertools
import logging
import os
import select
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Protocol

__all__ = ["Member", "Reactor"]

_log = logging.getLogger(__name__)
_TICK_S = 1.0
_STOP_S = 10.0


class Member(Protocol):
    """What lives in a reactor. All methods are called on its thread; none may block."""

    def run(self) -> None:
        """Do what other threads asked for (after ``wake``), or what was due (after ``at``)."""
        ...

    def ready(self, *, readable: bool, writable: bool) -> None:
        """Read from or write to the watched socket."""
        ...

    def tick(self) -> None:
        """Look after timeouts; called about once a second."""
        ...

    def failed(self, error: Exception) -> None:
        """Start anew after one of the other methods raised (a defect): other members are not disturbed."""
        ...


class Reactor:
    """The thread. ``wake`` may be called from anywhere, all else only from members on the thread itself."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._poll = select.epoll()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll.register(self._bell, select.EPOLLIN)
        self._watched: dict[int, tuple[Member, int]] = {}
        self._lock = threading.Lock()
        self._woken: dict[Member, None] = {}  # each member at most once: bounded
        self._due: list[tuple[float, int, Member]] = []
        self._order = itertools.count()
        self._members: dict[Member, None] = {}
        self._blocking: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._stopping = False
        self._thread = threading.Thread(target=self._main, name="link", daemon=True)
        self._opener = threading.Thread(target=self._open_all, name="link-open", daemon=True)

    def start(self) -> None:
        """Start both threads."""
        self._thread.start()
        self._opener.start()

    def stop(self) -> None:
        """End both threads and close what they waited on; members must have left before."""
        with self._lock:
            self._stopping = True
            self._ring()
        self._blocking.put(None)
        self._opener.join(_STOP_S)
        self._thread.join(_STOP_S)
        with self._lock:
            if not self._thread.is_alive() and self._bell >= 0:
                self._poll.close()
                os.close(self._bell)
                self._bell = -1

    def inside(self) -> bool:
        """Whether the caller is on the reactor's thread (and must not wait for it)."""
        return threading.current_thread() is self._thread

    def running(self) -> bool:
        """Whether the reactor's thread lives."""
        return self._thread.is_alive()

    def wake(self, member: Member) -> None:
        """Have ``member.run`` called soon; many calls become one."""
        with self._lock:
            if not self._woken:
                self._ring()
            self._woken[member] = None

    def enter(self, member: Member) -> None:
        """Give a member its ticks."""
        self._members[member] = None

    def leave(self, member: Member) -> None:
        """Take the ticks away."""
        self._members.pop(member, None)

    def at(self, due: float, member: Member) -> None:
        """Have ``member.run`` called at this time of the clock."""
        heapq.heappush(self._due, (due, next(self._order), member))

    def watch(self, descriptor: int, member: Member, *, write: bool, read: bool = True) -> None:
        """Report when the socket can be read, unless ``read`` is not wanted now, and with ``write`` when written."""
        mask = (select.EPOLLIN if read else 0) | (select.EPOLLOUT if write else 0)
        known = self._watched.get(descriptor)
        if known == (member, mask):
            return
        if known is None:
            self._poll.register(descriptor, mask)
        else:
            self._poll.modify(descriptor, mask)
        self._watched[descriptor] = (member, mask)

    def forget(self, descriptor: int) -> None:
        """Forget a socket that is closed already (the kernel took it from the epoll set then)."""
        self._watched.pop(descriptor, None)

    def blocking(self, call: Callable[[], None]) -> None:
        """Run a call that blocks in the second thread, after those before it. It must not raise."""
        self._blocking.put(call)

    def _ring(self) -> None:
        if self._bell >= 0:
            os.eventfd_write(self._bell, 1)

    def _open_all(self) -> None:
        while (call := self._blocking.get()) is not None:
            call()

    def _main(self) -> None:
        next_tick = self.clock() + _TICK_S
        while not self._stopping:
            due = min(next_tick, self._due[0][0]) if self._due else next_tick
            for descriptor, mask in self._poll.poll(max(0.0, due - self.clock())):
                self._ready(descriptor, mask)
            with self._lock:
                woken, self._woken = self._woken, {}
            for member in woken:
                self._guard(member, member.run)
            while self._due and self._due[0][0] <= self.clock():
                member = heapq.heappop(self._due)[2]
                self._guard(member, member.run)
            if self.clock() >= next_tick:
                next_tick = self.clock() + _TICK_S
                for member in list(self._members):
                    self._guard(member, member.tick)

    def _ready(self, descriptor: int, mask: int) -> None:
        if descriptor == self._bell:
            os.eventfd_read(self._bell)
        elif descriptor in self._watched:  # else it was closed by an event of the same batch
            member = self._watched[descriptor][0]
            writable = bool(mask & (select.EPOLLOUT | select.EPOLLERR | select.EPOLLHUP))
            readable = bool(mask & ~select.EPOLLOUT)
            self._guard(member, lambda: member.ready(readable=readable, writable=writable))

    def _guard(self, member: Member, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 - one member's defect must not end the thread of all
            _log.exception("a member of the loop failed; the others go on")
            with suppress(Exception):  # the member is at its end then; the thread is not
                member.failed(error)
