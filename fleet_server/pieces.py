"""Where the pieces of large updates wait until all are here: files in a folder beside the store.

Nothing is kept for anyone before it is bounded and attributed: the first piece must prove by the envelope's signature
who announces which message, then there is room for all of it or for none. Nothing here is synced. What is lost with
the power, or was given up, has had no receipt, so its vehicle sends it again.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from fedfleet.fleet_server.store import StoreFailed
from fedfleet.fleet_server.store_files import write_at
from fedfleet.protocol.chunks import Chunk, Split
from fedfleet.protocol.errors import PeerError

__all__ = ["Pieces", "Room"]

BLOCK_BYTES = 4096
"""What the smallest file takes on a disk."""
MOST_PIECES = 65_535
LOOK_S = 5.0
_HERE = b"\1"
_NAME = re.compile(r"([0-9a-f]{64})-(\d{1,10})-(\d{1,10})-(\d{1,6})")


@dataclass(frozen=True)
class Room:
    """What incomplete updates may take: bytes on the disk for one vehicle and for all, seconds since the last piece."""

    vehicle_bytes: int
    total_bytes: int
    age_s: float


@dataclass
class _Incomplete:
    """An announced message: the round in its topic, how it is cut, which pieces are here, when the last one came.

    ``is_left``: an earlier process announced it.
    """

    round: int
    split: Split
    last_s: float
    present: set[int] = field(default_factory=set)
    is_left: bool = False

    @property
    def cost_bytes(self) -> int:
        return _cost(self.split)

    @property
    def name(self) -> str:
        cut = self.split
        return f"{cut.digest}-{self.round}-{cut.total_bytes}-{cut.chunk_bytes}"


def _cost(split: Split) -> int:
    """Return what all pieces of a message take on a disk."""
    return split.count * -(-split.chunk_bytes // BLOCK_BYTES) * BLOCK_BYTES


class Pieces:
    """The pieces in ``folder``: one file for each message, every piece at its place, and a byte for each behind them.

     What an earlier process left there counts; its time is that of the file system.

    Methods that write raise StoreFailed when the disk is full or fails.
    """

    def __init__(self, folder: Path, room: Room) -> None:
        self._folder, self._room = folder, room
        self._messages: dict[
            str, dict[str, _Incomplete]
        ] = {}  # vehicle -> digest -> message, in order of arrival
        self._bytes, self._looked_s = 0, 0.0
        with _disk():
            for vehicle, found in _left(folder):
                self._add(vehicle, found)

    @property
    def reserved_bytes(self) -> int:
        """What all announced messages take on the disk once they are complete."""
        return self._bytes

    def announce(self, vehicle: str, round_: int, split: Split, *, now_s: float) -> bool:
        """Make room for a message whose sender is proven; False when there is none now, and it must come again.

        It stays as it is when it was announced before. Its vehicle's older ones give way to it. Raises PeerError
        ``too-many-chunks`` for a message that one vehicle never has room for.
        """
        if self.knows(vehicle, round_, split):
            return True
        cost = _cost(split)
        if cost > self._room.vehicle_bytes:
            told = f"{split.total_bytes} bytes in {split.count} chunks take {cost}"
            raise PeerError("too-many-chunks", f"{vehicle}: {told}, limit {self._room.vehicle_bytes}")
        self.drop(vehicle, split.digest)  # the same message, cut otherwise or for another round
        mine = self._messages.get(vehicle, {})
        while sum(each.cost_bytes for each in mine.values()) + cost > self._room.vehicle_bytes:
            self.drop(vehicle, next(iter(mine)))
        if self._bytes + cost > self._room.total_bytes:
            self._expire(now_s)
        if self._bytes + cost > self._room.total_bytes:
            return False
        self._add(vehicle, _Incomplete(round_, split, now_s))
        return True

    def knows(self, vehicle: str, round_: int, split: Split) -> bool:
        """Tell whether this vehicle has announced this message, cut in this way."""
        found = self._messages.get(vehicle, {}).get(split.digest)
        return found is not None and (found.round, found.split) == (round_, split)

    def put(self, vehicle: str, piece: Chunk, *, now_s: float) -> bool:
        """Keep a piece of an announced message; tell whether all are here now. The first to come stays."""
        message = self._messages[vehicle][piece.digest]
        message.last_s = now_s
        if piece.number not in message.present:
            with _disk():
                self._write(vehicle, message, piece)
            message.present.add(piece.number)
        return len(message.present) == message.split.count

    def path(self, vehicle: str, digest: str) -> Path:
        """Return the file of an announced message; once all of it is here, it begins with the message."""
        return self._folder / vehicle / self._messages[vehicle][digest].name

    def join(self, vehicle: str, digest: str) -> bytes | None:
        """Return a complete message; it stays until it is dropped. None when its file is gone, or lost a part.

        PeerError ``digest-mismatch`` when the pieces are not those of the announced message. Either way it is dropped.
        """
        message = self._messages[vehicle][digest]
        try:
            with self.path(vehicle, digest).open("rb", buffering=0) as file:
                whole = file.read(message.split.total_bytes)
        except FileNotFoundError:
            whole = b""
        except OSError as error:
            raise _failed(error) from error
        if sha256(whole).hexdigest() == digest:
            return whole
        self.drop(vehicle, digest)
        if message.is_left or len(whole) < message.split.total_bytes:
            return None  # nothing is synced, so this may be the disk's doing: it is sent again
        raise PeerError("digest-mismatch", f"joined chunks are not the message {digest[:12]}…")

    def _write(self, vehicle: str, message: _Incomplete, piece: Chunk) -> None:
        path, cut = self._folder / vehicle / message.name, message.split
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        if not message.present:
            for folder in (self._folder, path.parent):
                folder.mkdir(mode=0o700, exist_ok=True)  # `parents` would leave theirs to the umask
            path.unlink(missing_ok=True)  # never write into what an update may have got for its own
            flags |= os.O_EXCL
        descriptor = os.open(path, flags, 0o600)
        try:
            write_at(descriptor, piece.data, piece.number * cut.chunk_bytes)
            write_at(descriptor, _HERE, cut.total_bytes + piece.number)
        finally:
            os.close(descriptor)

    def drop(self, vehicle: str, digest: str) -> None:
        """Forget a message and its pieces, if there are any."""
        mine = self._messages.get(vehicle, {})
        message = mine.pop(digest, None)
        if message is None:
            return
        self._bytes -= message.cost_bytes
        with suppress(OSError):
            (self._folder / vehicle / message.name).unlink()
        if not mine:
            del self._messages[vehicle]
            shutil.rmtree(self._folder / vehicle, ignore_errors=True)

    def keep(self, is_wanted: Callable[[str], bool]) -> None:
        """Forget what comes from vehicles that are not wanted any more."""
        for vehicle in [name for name in self._messages if not is_wanted(name)]:
            for digest in list(self._messages[vehicle]):
                self.drop(vehicle, digest)

    def expire(self, now_s: float) -> None:
        """Forget what has had no piece for too long, looked at now and then; a time to come counts as now."""
        if not 0 <= now_s - self._looked_s < LOOK_S:
            self._looked_s = now_s
            self._expire(now_s)

    def _expire(self, now_s: float) -> None:
        for vehicle, mine in list(self._messages.items()):
            for digest, message in list(mine.items()):
                message.last_s = min(message.last_s, now_s)
                if now_s - message.last_s > self._room.age_s:
                    self.drop(vehicle, digest)

    def _add(self, vehicle: str, message: _Incomplete) -> None:
        self._messages.setdefault(vehicle, {})[message.split.digest] = message
        self._bytes += message.cost_bytes


def _left(folder: Path) -> Iterator[tuple[str, _Incomplete]]:
    """Yield what an earlier process left; remove what is none of it."""
    found = []
    for path in sorted(folder.glob("*/*")) if folder.is_dir() else ():
        message = _read(path)
        if message is not None:
            found.append((path.parent.name, message))
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)  # as an earlier version kept them
        else:
            path.unlink()
    yield from sorted(found, key=lambda each: each[1].last_s)


def _read(path: Path) -> _Incomplete | None:
    """Return what a file says of the message that it holds; None for any other file."""
    name = _NAME.fullmatch(path.name)
    if name is None or not path.is_file() or not int(name[4]):
        return None
    split = Split(name[1], int(name[3]), int(name[4]))
    told = path.stat()
    if (
        not 1 < split.count <= MOST_PIECES
        or not split.total_bytes < told.st_size <= split.total_bytes + split.count
    ):
        return None
    with path.open("rb") as file:
        file.seek(split.total_bytes)
        present = {number for number, here in enumerate(file.read(split.count)) if here == _HERE[0]}
    return _Incomplete(int(name[2]), split, told.st_mtime, present, is_left=True)


@contextmanager
def _disk() -> Iterator[None]:
    """Turn an OSError into a StoreFailed."""
    try:
        yield
    except OSError as error:
        raise _failed(error) from error


def _failed(error: OSError) -> StoreFailed:
    return StoreFailed(f"pieces of updates: {error.filename or 'disk'}: {error.strerror}")
