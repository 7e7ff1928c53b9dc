"""Links as vehicles have them, on a machine that has better ones: what a client sends and gets passes through here.

One thread serves any number of connections. A client gets one end of a socket pair instead of a TCP connection
(``Options.dial``), so that TLS, keepalive, wills and reconnects are the real ones. A cut ends the connection without
a goodbye, and new ones are refused until it is over.
"""

import heapq
import itertools
import os
import selectors
import socket
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from fedfleet.link.shape import LinkProfile, Pipe, cut_until

__all__ = ["Relay"]

_IDLE_S = 1.0


class _Way:
    """One direction of a connection: from a socket through a pipe to another."""

    def __init__(self, source: socket.socket, sink: socket.socket, pipe: Pipe) -> None:
        self.source, self.sink, self.pipe = source, sink, pipe
        self.owed = b""
        self.is_over = False

    def read(self, now_s: float) -> int:
        """Take what the source has, as far as there is room; returns the number of bytes."""
        data = self.source.recv(self.pipe.room)
        self.is_over = not data
        self.pipe.offer(data, now_s)
        return len(data)

    def write(self, now_s: float) -> None:
        """Hand on what has come out."""
        self.owed += self.pipe.take(now_s)
        if self.owed:
            with suppress(BlockingIOError):
                self.owed = self.owed[self.sink.send(self.owed) :]


class _Connection:
    """A client's connection and the one made for it."""

    def __init__(self, name: str, profile: LinkProfile, near: socket.socket, far: socket.socket) -> None:
        self.name, self.profile, self.near, self.far = name, profile, near, far
        for each in (near, far):
            each.settimeout(0.0)
        self.ways = (_Way(near, far, profile.up()), _Way(far, near, profile.down()))
        self.due_s = float("inf")

    def is_over(self) -> bool:
        """Whether one side has ended it, and all it sent before has come out."""
        return any(way.is_over and not way.owed and way.pipe.next_s == float("inf") for way in self.ways)

    def masks(self) -> dict[socket.socket, int]:
        """What to wait for at each end."""
        up, down = self.ways
        wanted = {}
        for each, reads, writes in ((self.near, up, down), (self.far, down, up)):
            read = selectors.EVENT_READ if reads.pipe.room and not reads.is_over else 0
            wanted[each] = read | (selectors.EVENT_WRITE if writes.owed else 0)
        return wanted

    def close(self) -> None:
        self.near.close()
        self.far.close()


class Relay:
    """The thread, and ``dial`` for a client's options. ``counts``: connections, cuts, refused, bytes_up, bytes_down."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.counts: Counter[str] = Counter()
        self._selector = selectors.DefaultSelector()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector.register(self._bell, selectors.EVENT_READ)
        self._lock = threading.Lock()
        self._new: list[_Connection] = []
        self._open: dict[_Connection, dict[socket.socket, int]] = {}
        self._due: list[tuple[float, int, _Connection]] = []
        self._order = itertools.count()
        self._stopping = False
        self._thread = threading.Thread(target=self._main, name="relay", daemon=True)

    def start(self) -> "Relay":
        """Start the thread; returns the relay."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """End the thread, if it runs, and every connection."""
        self._stopping = True
        os.eventfd_write(self._bell, 1)
        if self._thread.is_alive():
            self._thread.join()
        for connection in (*self._open, *self._new):
            connection.close()
        self._selector.close()
        os.close(self._bell)

    def dial(self, name: str, profile: LinkProfile) -> Callable[[tuple[str, int], float], socket.socket]:
        """Return how the client of this name connects: called with host and port and a time limit in seconds."""
        return partial(self._dial, name, profile)

    def _dial(
        self, name: str, profile: LinkProfile, where: tuple[str, int], timeout_s: float
    ) -> socket.socket:
        """Return a connected socket; OSError as ``socket.create_connection``, or while the link is cut."""
        if cut_until(profile, name, self._clock())[0]:
            self.counts["refused"] += 1
            raise ConnectionRefusedError("the link is cut")
        far = socket.create_connection(where, timeout=timeout_s)
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ours, near = socket.socketpair()
        with self._lock:
            self._new.append(_Connection(name, profile, near, far))
            self.counts["connections"] += 1
        os.eventfd_write(self._bell, 1)
        return ours

    def _main(self) -> None:
        while not self._stopping:
            wait_s = self._due[0][0] - self._clock() if self._due else _IDLE_S
            touched: dict[_Connection, None] = {}
            for key, mask in self._selector.select(max(0.0, min(_IDLE_S, wait_s))):
                if key.data is None:
                    os.eventfd_read(self._bell)
                    continue
                connection, way = key.data
                touched[connection] = None
                if mask & selectors.EVENT_READ:
                    self._read(connection, way)
            with self._lock:
                new, self._new = self._new, []
            for connection in new:
                self._open[connection] = {}
                touched[connection] = None
            while self._due and self._due[0][0] <= self._clock():
                due_s, _, connection = heapq.heappop(self._due)
                if connection.due_s == due_s:
                    touched[connection] = None
            for connection in touched:
                if connection in self._open:
                    self._serve(connection)

    def _read(self, connection: _Connection, way: _Way) -> None:
        try:
            count = way.read(self._clock())
        except BlockingIOError:
            return
        except OSError:
            way.is_over = True
            return
        self.counts["bytes_up" if way is connection.ways[0] else "bytes_down"] += count

    def _serve(self, connection: _Connection) -> None:
        now_s = self._clock()
        is_cut, cut_s = cut_until(connection.profile, connection.name, now_s)
        self.counts["cuts"] += is_cut
        try:
            for way in connection.ways:
                way.write(now_s)
        except OSError:
            is_cut = True  # the other side is gone
        if is_cut or connection.is_over():
            self._end(connection)
            return
        self._watch(connection)
        connection.due_s = min(cut_s, *(way.pipe.next_s for way in connection.ways))
        if connection.due_s < float("inf"):
            heapq.heappush(self._due, (connection.due_s, next(self._order), connection))

    def _watch(self, connection: _Connection) -> None:
        known, up = self._open[connection], connection.ways[0]
        for each, mask in connection.masks().items():
            if known.get(each, 0) == mask:
                continue
            way = up if each is connection.near else connection.ways[1]
            if not known.get(each, 0):
                self._selector.register(each, mask, (connection, way))
            elif mask:
                self._selector.modify(each, mask, (connection, way))
            else:
                self._selector.unregister(each)
            known[each] = mask

    def _end(self, connection: _Connection) -> None:
        for each, mask in self._open.pop(connection).items():
            if mask:
                self._selector.unregister(each)
        connection.close()
