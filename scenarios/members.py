"""The files of a folder of recordings, whether they lie there or in zip archives; read one at a time.

May live here: the one opener of archives, and the limits that a damaged or hostile one meets before anything is
unpacked. Names inside are read as unzip does: with slashes for backslashes, without what Finder adds. Nothing is ever
extracted to disk. What a file means is its reader's business.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import BinaryIO, Final, cast

from fedfleet.scenarios.csv_dialect import dialect_of
from fedfleet.scenarios.records import ScenarioError
from fedfleet.scenarios.text import MAX_RATIO, is_packed, open_text, utf8, without_packing
from fedfleet.scenarios.tree import INDEX_NAME, is_harmless

__all__ = [
    "HEAD_BYTES",
    "MAX_MEMBERS",
    "MAX_MEMBER_BYTES",
    "MAX_RATIO",
    "Archive",
    "Head",
    "Member",
    "Stream",
    "head",
    "is_zip",
    "members",
    "open_archive",
    "open_streams",
    "plain_file",
    "read_entry",
    "zip_members",
]

HEAD_BYTES: Final = 65536
"""So much of a file is looked at to tell its format."""

MAX_MEMBER_BYTES: Final = 16 * 2**20
MAX_STREAM_BYTES: Final = 64 * 2**30
MAX_MEMBERS: Final = 1_000_000

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
        except _DAMAGED as error:
            text = f"{self.where}: expected {self.size_bytes} bytes, cannot be unpacked: {_words(error)}"
            raise ScenarioError("damaged-member", text) from error
        if len(data) != self.size_bytes:
            text = f"{self.where}: expected {self.size_bytes} bytes, got {len(data)}"
            raise ScenarioError("damaged-member", text)
        return data

    def text(self) -> bytes:
        """Its text as UTF-8 without a mark (`text.utf8`), unpacked where its name says so; raises as `read`."""
        data = self.read()
        if not is_packed(self.where):
            return utf8(data, self.where)
        with open_text(lambda: io.BytesIO(data), self.where, len(data)) as file:
            found = file.read(MAX_MEMBER_BYTES + 1)
        if len(found) > MAX_MEMBER_BYTES:
            text = f"{self.where}: more than {MAX_MEMBER_BYTES / 1e6:.1f} MB unpacked"
            raise ScenarioError("member-too-large", text)
        return found


@dataclass(frozen=True)
class Stream:
    """A file that is read piece by piece, however large it is; `open` starts it anew."""

    where: str
    name: str
    size_bytes: int
    open: Callable[[], BinaryIO]

    def text(self) -> BinaryIO:
        """Its text from the start, as `text.open_text` gives it."""
        return open_text(self.open, self.where, self.size_bytes)


@dataclass(frozen=True)
class Head:
    """The name of a file or member and its first HEAD_BYTES bytes of text; none of a damaged one."""

    name: str
    start: bytes
    is_damaged: bool = False

    @cached_property
    def columns(self) -> frozenset[str]:
        """The names in the header of a CSV file, in small letters; none where there is no header."""
        try:
            return frozenset(name.lower() for name in dialect_of(self.start, self.name).names if name)
        except ScenarioError:
            return frozenset()

    def has(self, columns: Iterable[str], enough: int) -> bool:
        """Whether so many of these columns are in its header, in letters of any case."""
        return len(self.columns & {name.lower() for name in columns}) >= enough


@dataclass(frozen=True)
class Archive:
    """An opened zip: its files by their names, as unzip would write them; nobody's files are left out."""

    path: Path
    zip: zipfile.ZipFile
    entries: dict[str, zipfile.ZipInfo]

    def ending(self, suffix: str) -> dict[str, zipfile.ZipInfo]:
        """The files of that ending, in letters of any case, packed once more or not."""
        return {name: entry for name, entry in self.entries.items() if _has_ending(name, suffix)}


def is_zip(path: Path) -> bool:
    """Whether a file is named as a zip."""
    return path.name.lower().endswith(".zip")


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
def _head(path: Path, suffix: str, stamp: tuple[int, int]) -> Head | None:
    name = path.name
    try:
        if not is_zip(path):
            with open_text(lambda: path.open("rb"), name, stamp[0]) as file:
                return Head(name, file.read(HEAD_BYTES))
        archive = open_archive(path)
        with archive.zip:
            inside = [
                each for each in archive.ending(suffix) if not INDEX_NAME.match(each.rpartition("/")[2])
            ]
            if not inside:
                return None
            entry = archive.entries[inside[0]]
            with open_text(
                lambda: cast("BinaryIO", archive.zip.open(entry)), inside[0], entry.file_size
            ) as file:
                return Head(inside[0], file.read(HEAD_BYTES))
    except (*_DAMAGED, ScenarioError):
        return Head(name, b"", is_damaged=True)


def plain_file(folder: Path, path: Path, suffix: str) -> Member:
    """A file that lies in the folder or below it."""
    where = path.relative_to(folder).as_posix()
    return Member(where, _stem(path.name, suffix), path.stat().st_size, path.read_bytes)


def members(folder: Path, path: Path, suffix: str) -> list[Member]:
    """A file, or the members of that ending of a zip; raises as `zip_members`."""
    return zip_members(path, suffix) if is_zip(path) else [plain_file(folder, path, suffix)]


def zip_members(path: Path, suffix: str) -> list[Member]:
    """The members of that ending, in the archive's order; only its directory is read, and it stays open.

    Raises ScenarioError for a file that is no zip, is truncated, encrypted, packed in an unknown way, holds too many
    members or unpacks to too much.
    """
    archive = open_archive(path)
    found = archive.ending(suffix)
    try:
        _check(path, found, member_bytes=MAX_MEMBER_BYTES)
    except ScenarioError:
        archive.zip.close()
        raise
    return [_member(archive, name, suffix) for name in found]


def open_archive(path: Path) -> Archive:
    """Open a zip; ScenarioError for a file that is none, is cut, or holds too many files."""
    try:
        archive = zipfile.ZipFile(path)
    except _DAMAGED as error:
        size = path.stat().st_size if path.is_file() else 0
        text = f"{path.name}: expected a whole zip archive, got {size} bytes that are none, or only a part of one"
        raise ScenarioError("not-a-zip", text) from error
    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        name = entry.filename.replace("\\", "/").removeprefix("./").lstrip("/")
        if name and not name.endswith("/") and not is_harmless(name):
            entries[name] = entry
    if len(entries) > MAX_MEMBERS:
        archive.close()
        raise ScenarioError("too-many-members", f"{path.name}: {len(entries)} members, limit {MAX_MEMBERS}")
    return Archive(path, archive, entries)


def open_streams(folder: Path, path: Path, suffix: str) -> list[Stream]:
    """A file, or the members of that ending of a zip, checked as `zip_members` but for the size of one member."""
    if not is_zip(path):
        where = path.relative_to(folder).as_posix()
        return [Stream(where, without_packing(path.name), path.stat().st_size, lambda: path.open("rb"))]
    archive = open_archive(path)
    found = archive.ending(suffix)
    _check(path, found, member_bytes=MAX_STREAM_BYTES)
    return [_stream(archive, name) for name in found]


def _stream(archive: Archive, inside: str) -> Stream:
    entry, where = archive.entries[inside], f"{archive.path.name}: {inside}"

    def start() -> BinaryIO:
        try:
            return cast("BinaryIO", archive.zip.open(entry))
        except _DAMAGED as error:
            raise ScenarioError("damaged-member", f"{where}: cannot be unpacked: {_words(error)}") from error

    return Stream(where, without_packing(inside.rpartition("/")[2]), entry.file_size, start)


def _member(archive: Archive, inside: str, suffix: str) -> Member:
    entry = archive.entries[inside]

    def take() -> bytes:
        with archive.zip.open(
            entry
        ) as file:  # reads no further than the size the directory tells, then checks the CRC
            return file.read(MAX_MEMBER_BYTES + 1)

    stem = _stem(inside.rpartition("/")[2], suffix)
    return Member(f"{archive.path.name}: {inside}", stem, entry.file_size, take)


def read_entry(archive: Archive, inside: str, where: str) -> bytes:
    """One file of an archive, at most MAX_MEMBER_BYTES; ScenarioError naming `where` as `Member.read`."""
    entry = archive.entries[inside]
    if entry.flag_bits & _ENCRYPTED:
        raise ScenarioError("encrypted-member", f"{where} needs a password")
    return replace(_member(archive, inside, ""), where=where).read()


def _has_ending(name: str, suffix: str) -> bool:
    low = name.lower()
    return low.endswith(suffix) or (bool(suffix) and without_packing(low).endswith(suffix))


def _stem(name: str, suffix: str) -> str:
    plain = without_packing(name)
    return plain[: len(plain) - len(suffix)] if plain.lower().endswith(suffix) else plain


def _words(error: Exception) -> str:
    """What went wrong in an archive, in our words."""
    text = str(error).lower()
    if "password" in text or "encrypted" in text:
        return "it needs a password"
    return "its bytes are not what the archive's directory says" if "crc" in text else "its bytes are damaged"


def _check(path: Path, found: Mapping[str, zipfile.ZipInfo], *, member_bytes: int) -> None:
    for name, entry in found.items():
        if entry.flag_bits & _ENCRYPTED:
            raise ScenarioError("encrypted-member", f"{path.name}: {name} needs a password")
        if entry.compress_type not in _METHODS:
            text = f"{path.name}: {name}: expected stored or deflated, got method {entry.compress_type}"
            raise ScenarioError("unknown-compression", text)
        if entry.file_size > member_bytes:
            limit = f"{entry.file_size / 1e6:.1f} MB unpacked, limit {member_bytes / 1e6:.1f} MB"
            raise ScenarioError("member-too-large", f"{path.name}: {name}: {limit}")
    size, total = path.stat().st_size, sum(entry.file_size for entry in found.values())
    if total > MAX_RATIO * size:
        text = f"{path.name}: {size / 1e6:.2f} MB unpack to {total / 1e6:.1f} MB, limit {MAX_RATIO} times"
        raise ScenarioError("zip-bomb", text)
