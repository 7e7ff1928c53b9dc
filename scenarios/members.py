"""The files of a folder of recordings, whether they lie there or in zip archives; read one at a time.

May live here: finding them, and the limits that a damaged or hostile archive meets before anything is unpacked.
Nothing is ever extracted to disk. What a file means is its reader's business.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedfleet.scenarios.records import ScenarioError

__all__ = ["MAX_MEMBERS", "MAX_MEMBER_BYTES", "MAX_RATIO", "Member", "plain_files", "zip_members"]

MAX_MEMBER_BYTES: Final = 16 * 2**20
MAX_MEMBERS: Final = 1_000_000
MAX_RATIO: Final = 200
"""Text of recordings packs 5 to 10 times; an archive that unpacks to more than this is not one of recordings."""

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


def plain_files(folder: Path, suffix: str) -> Iterator[Member]:
    """The files of that ending in the folder and one level below it, sorted by path."""
    for path in sorted([*folder.glob(f"*{suffix}"), *folder.glob(f"*/*{suffix}")]):
        if path.is_file():
            where = path.relative_to(folder).as_posix()
            yield Member(where, path.name.removesuffix(suffix), path.stat().st_size, path.read_bytes)


def zip_members(path: Path, suffix: str) -> list[Member]:
    """The members of that ending, in the archive's order; only its directory is read, and it stays open.

    Raises ScenarioError for a file that is no zip, is truncated, encrypted, packed in an unknown way, holds too many
    members or unpacks to too much.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        text = f"{path.name}: expected a whole zip archive, got {path.stat().st_size} bytes that are none ({error})"
        raise ScenarioError("not-a-zip", text) from error
    found = [entry for entry in archive.infolist() if not entry.is_dir() and entry.filename.endswith(suffix)]
    try:
        _check(path, found)
    except ScenarioError:
        archive.close()
        raise
    return [_member(path, archive, entry, suffix) for entry in found]


def _member(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, suffix: str) -> Member:
    def take() -> bytes:
        with archive.open(
            entry
        ) as file:  # reads no further than the size the directory tells, then checks the CRC
            return file.read(MAX_MEMBER_BYTES + 1)

    stem = entry.filename.rpartition("/")[2].removesuffix(suffix)
    return Member(f"{path.name}: {entry.filename}", stem, entry.file_size, take)


def _check(path: Path, found: list[zipfile.ZipInfo]) -> None:
    if len(found) > MAX_MEMBERS:
        raise ScenarioError("too-many-members", f"{path.name}: {len(found)} members, limit {MAX_MEMBERS}")
    for entry in found:
        if entry.flag_bits & _ENCRYPTED:
            raise ScenarioError("encrypted-member", f"{path.name}: {entry.filename} needs a password")
        if entry.compress_type not in _METHODS:
            text = f"{path.name}: {entry.filename}: expected stored or deflated, got method {entry.compress_type}"
            raise ScenarioError("unknown-compression", text)
        if entry.file_size > MAX_MEMBER_BYTES:
            limit = f"{entry.file_size / 1e6:.1f} MB unpacked, limit {MAX_MEMBER_BYTES / 1e6:.1f} MB"
            raise ScenarioError("member-too-large", f"{path.name}: {entry.filename}: {limit}")
    size, total = path.stat().st_size, sum(entry.file_size for entry in found)
    if total > MAX_RATIO * size:
        text = f"{path.name}: {size / 1e6:.2f} MB unpack to {total / 1e6:.1f} MB, limit {MAX_RATIO} times"
        raise ScenarioError("zip-bomb", text)
