"""The files of a folder of recordings, whether they lie there or in zip archives; read one at a time.

May live here: finding them, and the limits that a damaged or hostile archive meets before anything is unpacked.
Nothing is ever extracted to disk. What a file means is its reader's business.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Final, cast

from fedfleet.scenarios.records import ScenarioError

__all__ = [
    "HEAD_BYTES",
    "MAX_MEMBERS",
    "MAX_MEMBER_BYTES",
    "MAX_RATIO",
    "Head",
    "Member",
    "Stream",
    "head",
    "open_streams",
    "plain_file",
    "zip_members",
]

HEAD_BYTES: Final = 65536
"""So much of a file is looked at to tell its format."""

MAX_MEMBER_BYTES: Final = 16 * 2**20
MAX_STREAM_BYTES: Final = 64 * 2**30
MAX_MEMBERS: Final = 1_000_000
MAX_RATIO: Final = 200
"""Text of recordings packs 5 to 10 times; an archive that unpacks to more than this is not one of recordings."""

_DAMAGED: Final = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    ValueError,
    RuntimeError,
    NotImplementedError,
)
_ENCRYPTED: Final = 0x1
_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclass(frozen=True)
class Member:
    """One file: `where` names it in messages (`MIA.zip: MIA/4.csv`), `stem` is its name without folder and ending."""

    where: str
    stem: str
    size_bytes: int
    take: Callable[[], bytes]

    def read(self) -> bytes:
        """Its content, at most MAX_MEMBER_BYTES; ScenarioError when it is damaged or cannot be read."""
        if self.size_bytes > MAX_MEMBER_BYTES:
            text = f"{self.where}: {self.size_bytes / 1e6:.1f} MB, limit {MAX_MEMBER_BYTES / 1e6:.1f} MB"
            raise ScenarioError("member-too-large", text)
        try:
            data = self.take()
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
            text = f"{self.where}: expected {self.size_bytes} bytes, cannot be unpacked: {error}"
            raise ScenarioError("damaged-member", text) from error
        if len(data) != self.size_bytes:
            text = f"{self.where}: expected {self.size_bytes} bytes, got {len(data)}"
            raise ScenarioError("damaged-member", text)
        return data


@dataclass(frozen=True)
class Head:
    """The name of a file or member and its first HEAD_BYTES bytes; none of a damaged one."""

    name: str
    start: bytes
    is_damaged: bool = False

    @property
    def line(self) -> str:
        """Its first line."""
        return self.start.partition(b"\n")[0].decode(errors="replace").strip()


def head(path: Path, suffix: str) -> Head | None:
    """The head of a file, or of the first member of that ending of a zip; None when there is none such.

    Of an archive that cannot be opened it is a damaged one, named as the archive.
    """
    try:
        stat = path.stat()
    except OSError:
        return None
    return _head(path, suffix, (stat.st_size, stat.st_mtime_ns))


@lru_cache(maxsize=256)
def _head(path: Path, suffix: str, stamp: tuple[int, int]) -> Head | None:  # noqa: ARG001 - the key
    name = path.name
    try:
        if path.suffix != ".zip":
            with path.open("rb") as file:
                return Head(name, file.read(HEAD_BYTES))
        with zipfile.ZipFile(path) as archive:
            entries = (entry for entry in archive.infolist() if entry.filename.endswith(suffix))
            first = next((entry for entry in entries if not entry.is_dir()), None)
            if first is None:
                return None
            name = first.filename
            with archive.open(first) as file:
                return Head(name, file.read(HEAD_BYTES))
    except _DAMAGED:
        return Head(name, b"", is_damaged=True)


def plain_file(folder: Path, path: Path, suffix: str) -> Member:
    """A file that lies in the folder or below it."""
    where = path.relative_to(folder).as_posix()
    return Member(where, path.name.removesuffix(suffix), path.stat().st_size, path.read_bytes)


def zip_members(path: Path, suffix: str) -> list[Member]:
    """The members of that ending, in the archive's order; only its directory is read, and it stays open.

    Raises ScenarioError for a file that is no zip, is truncated, encrypted, packed in an unknown way, holds too many
    members or unpacks to too much.
    """
    archive, found = _directory(path, suffix)
    try:
        _check(path, found, member_bytes=MAX_MEMBER_BYTES)
    except ScenarioError:
        archive.close()
        raise
    return [_member(path, archive, entry, suffix) for entry in found]


def _directory(path: Path, suffix: str) -> tuple[zipfile.ZipFile, list[zipfile.ZipInfo]]:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        text = f"{path.name}: expected a whole zip archive, got {path.stat().st_size} bytes that are none ({error})"
        raise ScenarioError("not-a-zip", text) from error
    names = (entry for entry in archive.infolist() if entry.filename.endswith(suffix))
    return archive, [entry for entry in names if not entry.is_dir()]


@dataclass(frozen=True)
class Stream:
    """A file that is read piece by piece, however large it is; `open` starts it anew."""

    where: str
    name: str
    size_bytes: int
    open: Callable[[], BinaryIO]


def open_streams(folder: Path, path: Path, suffix: str) -> list[Stream]:
    """A file, or the members of that ending of a zip, checked as `zip_members` but for the size of one member."""
    if path.suffix != ".zip":
        where = path.relative_to(folder).as_posix()
        return [Stream(where, path.name, path.stat().st_size, lambda: path.open("rb"))]
    archive, found = _directory(path, suffix)
    _check(path, found, member_bytes=MAX_STREAM_BYTES)
    return [_stream(path, archive, entry) for entry in found]


def _stream(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Stream:
    def start() -> BinaryIO:
        try:
            return cast("BinaryIO", archive.open(entry))
        except _DAMAGED as error:
            raise ScenarioError("damaged-member", f"{path.name}: {entry.filename}: {error}") from error

    name = entry.filename.rpartition("/")[2]
    return Stream(f"{path.name}: {entry.filename}", name, entry.file_size, start)


def _member(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, suffix: str) -> Member:
    def take() -> bytes:
        with archive.open(
            entry
        ) as file:  # reads no further than the size the directory tells, then checks the CRC
            return file.read(MAX_MEMBER_BYTES + 1)

    stem = entry.filename.rpartition("/")[2].removesuffix(suffix)
    return Member(f"{path.name}: {entry.filename}", stem, entry.file_size, take)


def _check(path: Path, found: list[zipfile.ZipInfo], *, member_bytes: int) -> None:
    if len(found) > MAX_MEMBERS:
        raise ScenarioError("too-many-members", f"{path.name}: {len(found)} members, limit {MAX_MEMBERS}")
    for entry in found:
        if entry.flag_bits & _ENCRYPTED:
            raise ScenarioError("encrypted-member", f"{path.name}: {entry.filename} needs a password")
        if entry.compress_type not in _METHODS:
            text = f"{path.name}: {entry.filename}: expected stored or deflated, got method {entry.compress_type}"
            raise ScenarioError("unknown-compression", text)
        if entry.file_size > member_bytes:
            limit = f"{entry.file_size / 1e6:.1f} MB unpacked, limit {member_bytes / 1e6:.1f} MB"
            raise ScenarioError("member-too-large", f"{path.name}: {entry.filename}: {limit}")
    size, total = path.stat().st_size, sum(entry.file_size for entry in found)
    if total > MAX_RATIO * size:
        text = f"{path.name}: {size / 1e6:.2f} MB unpack to {total / 1e6:.1f} MB, limit {MAX_RATIO} times"
        raise ScenarioError("zip-bomb", text)
