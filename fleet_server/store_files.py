"""Files beside the store: the sealed bytes of large updates, each named by what it holds.

A row of the store names a file, and a transaction that wrote files is committed only when they and their folder are
on the disk. So a row never lacks its file. A file may lack its row, when a transaction was undone or its process was
killed: `Files.sweep` removes those when a server starts.
"""

import os
from collections.abc import Collection, Iterable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from sqlalchemy import Connection

__all__ = ["FILE_BYTES", "UPDATES", "Files", "FilesFailed", "files_of", "write_at"]

UPDATES = "updates"
FILE_BYTES = 100_000
"""A sealed update of this size or more is kept in a file."""
MOST_OPEN = 256
"""Files that are open at once; they are synced before there are more."""
Data = bytes | memoryview


class FilesFailed(Exception):  # noqa: N818 - the state of a disk, not a mistake of anyone
    """A file cannot be written (a full disk, a failing one)."""


class Files:
    """The updates in one store's folder. What a transaction writes counts once ``sync`` and its commit are done.

    ``sync``, then ``keep`` or ``undo`` end a transaction.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / UPDATES
        self._open: list[int] = []
        self._folders: set[Path] = set()
        self._made: list[Path] = []
        self._unwanted: list[Path] = []
        self._offered: dict[str, Path] = {}

    def path(self, digest: str) -> Path:
        """Return where the update with this digest (SHA-256, hex) is, or would be."""
        return self.folder / digest

    def offer(self, digest: str, path: Path) -> None:
        """Name a file, to be removed soon, that begins with this update: `put` takes it instead of writing another."""
        self._offered[digest] = path

    def put(self, digest: str, sealed: Data) -> None:
        """Write an update."""
        path = self.path(digest)
        try:
            if not self.folder.is_dir():
                self.folder.mkdir(mode=0o700)
                self._folders.add(self.folder.parent)
            if len(self._open) >= MOST_OPEN:
                self._sync_open()
            path.unlink(missing_ok=True)  # of a transaction that was undone
            self._made.append(path)
            self._folders.add(self.folder)
            offered = self._offered.pop(digest, None)
            if offered is None or not self._take(offered, path, size_bytes=len(sealed)):
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                self._open.append(descriptor)
                write_at(descriptor, sealed, 0)
        except OSError as error:
            raise _failed(path, error) from error

    def _take(self, offered: Path, path: Path, *, size_bytes: int) -> bool:
        """Cut a file to this length and give it a second name; False where the file system knows no such thing."""
        descriptor = os.open(offered, os.O_WRONLY | os.O_CLOEXEC)
        self._open.append(descriptor)
        os.ftruncate(descriptor, size_bytes)
        try:
            path.hardlink_to(offered)
        except OSError:
            return False
        return True

    def read(self, digest: str, *, size_bytes: int, start: int = 0) -> memoryview | None:
        """Return an update's bytes from ``start`` on; None unless its file is there, whole and unchanged."""
        try:
            data = self.path(digest).read_bytes()
        except OSError:
            return None
        if len(data) != size_bytes or sha256(data).hexdigest() != digest:
            return None
        return memoryview(data)[start:]

    def drop(self, digests: Iterable[str]) -> None:
        """Remove these updates' files once the transaction is committed."""
        self._unwanted += [self.path(digest) for digest in digests]

    def sync(self) -> None:
        """Return when everything written is on the disk; FilesFailed when the disk refuses."""
        try:
            self._sync_open()
            for path in sorted(self._folders):
                _sync_folder(path)
        except OSError as error:
            raise _failed(self.folder, error) from error

    def keep(self) -> None:
        """The transaction is committed: let go of what it no longer names."""
        unwanted = self._unwanted
        self._clear()
        _remove(unwanted)

    def undo(self, *, is_certain: bool) -> None:
        """The transaction failed; unless ``is_certain`` it may still count, and `sweep` removes what it wrote."""
        made = self._made
        self._clear()
        if is_certain:
            _remove(made)

    def sweep(self, named: Collection[str]) -> int:
        """Remove every file but those of these digests; return how many."""
        return _remove([self.path(name) for name in self.names() if name not in named])

    def names(self) -> set[str]:
        """Return the names of all files."""
        return {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()

    def _sync_open(self) -> None:
        for descriptor in self._open:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # begins to write all of them
        for descriptor in self._open:
            os.fdatasync(descriptor)
        self._close_all()

    def _close_all(self) -> None:
        for descriptor in self._open:
            os.close(descriptor)
        self._open = []

    def _clear(self) -> None:
        self._close_all()
        self._folders, self._made, self._unwanted, self._offered = set(), [], [], {}


def files_of(connection: Connection) -> Files:
    """Return the files of the store to which a connection belongs."""
    found = connection.get_execution_options()["files"]
    assert isinstance(found, Files)  # noqa: S101 - the store's own
    return found


def write_at(descriptor: int, data: Data, at: int) -> None:
    """Write all of it at this place."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, at)
        view, at = view[written:], at + written


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(paths: Iterable[Path]) -> int:
    """Remove files; one that cannot be is left to the next start."""
    count = 0
    for path in paths:
        with suppress(OSError):
            path.unlink()
            count += 1
    return count


def _failed(path: Path, error: OSError) -> FilesFailed:
    return FilesFailed(f"{path}: {error.strerror or error}")
