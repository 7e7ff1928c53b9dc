"""Files beside the store: the sealed bytes of large updates, and the pieces of those that are not complete.

A row of the store names a file, and a transaction that wrote files is committed only when they and their folder are
on the disk. So a row never lacks its file. A file may lack its row, when a transaction was undone or its process was
killed: `Files.sweep` removes those when a server starts. Unfinished pieces are kept apart, since what a row names is
never written again.
"""

import os
from collections.abc import Collection, Iterable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from sqlalchemy import Connection

from fedfleet.protocol.errors import PeerError

__all__ = ["FILE_BYTES", "PIECES", "UPDATES", "Files", "FilesFailed", "files_of"]

UPDATES, PIECES = "updates", "pieces"
FILE_BYTES = 100_000
"""A sealed update of this size or more is kept in a file."""
Data = bytes | memoryview


class FilesFailed(Exception):  # noqa: N818 - the state of a disk, not a mistake of anyone
    """A file cannot be written (a full disk, a failing one)."""


class Files:
    """The files of one store's folder. What a transaction writes counts once ``sync`` and its commit are done.

    An update's file has the SHA-256 of its content as its name. ``sync``, then ``keep`` or ``undo`` end a transaction.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._unsynced: dict[Path, int] = {}
        self._folders: set[Path] = set()
        self._made: list[Path] = []
        self._unwanted: list[Path] = []
        self._whole: dict[str, Path] = {}

    def path(self, digest: str) -> Path:
        """Return where the update with this digest is, or would be."""
        return self.folder / UPDATES / digest

    def put(self, digest: str, sealed: Data) -> None:
        """Write an update; one that `joined` gave is not written again but gets its second name."""
        path = self.path(digest)
        try:
            self._make_folder(path.parent)
            pieces = self._whole.pop(digest, None)
            if pieces is None or not _linked(pieces, path):
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
                self._note(path, descriptor)
                _write(descriptor, sealed, 0)
        except OSError as error:
            raise _failed(path, error) from error
        self._made.append(path)
        self._folders.add(path.parent)

    def read(self, digest: str, *, size_bytes: int, start: int = 0) -> bytes | None:
        """Return an update's bytes from ``start`` on; None unless its file is there, whole and unchanged."""
        try:
            data = self.path(digest).read_bytes()
        except OSError:
            return None
        if len(data) != size_bytes or sha256(data).hexdigest() != digest:
            return None
        return data[start:]

    def begin_pieces(self, vehicle: str, digest: str) -> None:
        """Begin a new file for the pieces of a vehicle's update."""
        path = self._piece_path(vehicle, digest)
        try:
            self._make_folder(path.parent)
            path.unlink(missing_ok=True)  # never write into what an update may have got for its own
            self._note(path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise _failed(path, error) from error
        self._folders.add(path.parent)
        if path in self._unwanted:
            self._unwanted.remove(path)

    def put_piece(self, vehicle: str, digest: str, *, at: int, data: Data) -> bool:
        """Write a piece of a vehicle's update at its place; False when the file of its pieces is not there."""
        path = self._piece_path(vehicle, digest)
        try:
            if path not in self._unsynced:
                self._note(path, os.open(path, os.O_WRONLY | os.O_CLOEXEC))
            _write(self._unsynced[path], data, at)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _failed(path, error) from error
        return True

    def joined(self, vehicle: str, digest: str, *, size_bytes: int) -> bytes | None:
        """Return a vehicle's update, all pieces of which are there; None when the file is not there, or too short.

        Raises PeerError when it is not what it was said to be.
        """
        path = self._piece_path(vehicle, digest)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _failed(path, error) from error
        if len(data) < size_bytes:
            return None
        if len(data) > size_bytes or sha256(data).hexdigest() != digest:
            raise PeerError("digest-mismatch", f"joined chunks are not the message {digest[:12]}…")
        self._whole[digest] = path
        return data

    def drop(self, digests: Iterable[str]) -> None:
        """Remove these updates' files once the transaction is committed."""
        self._unwanted += [self.path(digest) for digest in digests]

    def drop_pieces(self, vehicle: str, digest: str) -> None:
        """Remove the pieces of a vehicle's update once the transaction is committed."""
        self._unwanted.append(self._piece_path(vehicle, digest))

    def sync(self) -> None:
        """Return when everything written is on the disk; FilesFailed when the disk refuses."""
        try:
            for descriptor in self._unsynced.values():
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # begins to write all of them
            for descriptor in self._unsynced.values():
                os.fdatasync(descriptor)
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

    def sweep(self, updates: Collection[str], pieces: Collection[tuple[str, str]]) -> int:
        """Remove every file but those of these digests, and of these (vehicle, digest); return how many."""
        kept = {self.path(digest) for digest in updates} | {self._piece_path(*one) for one in pieces}
        folders = (self.folder / name for name in (UPDATES, PIECES))
        orphans = [
            path for folder in folders if folder.is_dir() for path in folder.iterdir() if path not in kept
        ]
        return _remove(orphans)

    def names(self) -> set[str]:
        """Return the names of all updates' files."""
        folder = self.folder / UPDATES
        return {path.name for path in folder.iterdir()} if folder.is_dir() else set()

    def _piece_path(self, vehicle: str, digest: str) -> Path:
        return self.folder / PIECES / f"{digest}.{vehicle}"

    def _make_folder(self, folder: Path) -> None:
        if not folder.is_dir():
            folder.mkdir(mode=0o700)
            self._folders |= {folder, folder.parent}

    def _note(self, path: Path, descriptor: int) -> None:
        self._forget(path)
        self._unsynced[path] = descriptor

    def _forget(self, path: Path) -> None:
        if (before := self._unsynced.pop(path, None)) is not None:
            os.close(before)

    def _clear(self) -> None:
        for descriptor in self._unsynced.values():
            os.close(descriptor)
        self._unsynced, self._folders, self._made, self._unwanted, self._whole = {}, set(), [], [], {}


def files_of(connection: Connection) -> Files:
    """Return the files of the store to which a connection belongs."""
    found = connection.get_execution_options()["files"]
    assert isinstance(found, Files)  # noqa: S101 - the store's own
    return found


def _linked(pieces: Path, path: Path) -> bool:
    """Give a file its second name; False where the file system knows no such thing."""
    path.unlink(missing_ok=True)
    try:
        path.hardlink_to(pieces)
    except OSError:
        return False
    return True


def _write(descriptor: int, data: Data, at: int) -> None:
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
