"""The files of a Donkey tub, whether it is a folder or a zip; read one at a time, each within a limit."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedfleet.scenarios.members import MAX_MEMBER_BYTES, MAX_MEMBERS
from fedfleet.scenarios.records import ScenarioError

__all__ = ["MANIFEST", "Files", "Take", "open_files"]

MANIFEST: Final = "manifest.json"
_ENCRYPTED: Final = 0x1

Take = Callable[[str], bytes | None]
"""Gives a file of the tub by its path in it; None when there is none, ScenarioError when it is damaged or too large."""


@dataclass(frozen=True)
class Files:
    """Where a tub lies: a folder, or a zip and the folder inside it (`inside` ends with a slash, or is empty)."""

    name: str
    path: Path
    inside: str = ""

    @contextmanager
    def opened(self) -> Iterator[Take]:
        """Open it as long as the block runs; ScenarioError for a zip that is none."""
        if self.path.is_dir():
            yield self._from_folder
            return
        with _zip(self.path) as archive:
            known = {entry.filename: entry for entry in archive.infolist()}

            def take(name: str) -> bytes | None:
                entry = known.get(self.inside + name)
                return None if entry is None else _member(archive, entry, self.name)

            yield take

    def names(self) -> list[str]:
        """The files directly in the tub, sorted; ScenarioError for a zip that cannot be opened."""
        if self.path.is_dir():
            return sorted(path.name for path in self.path.iterdir() if path.is_file())
        with _zip(self.path) as archive:
            inside = [
                entry.filename.removeprefix(self.inside)
                for entry in archive.infolist()
                if entry.filename.startswith(self.inside)
            ]
        return sorted(name for name in inside if name and "/" not in name)

    def _from_folder(self, name: str) -> bytes | None:
        path = self.path / name
        try:
            if path.stat().st_size > MAX_MEMBER_BYTES:
                raise ScenarioError("member-too-large", f"{self.name}: {name}: {path.stat().st_size} bytes")
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            text = f"{self.name}: {name}: cannot be read: {error.strerror}"
            raise ScenarioError("damaged-member", text) from error


def open_files(folder: Path) -> list[Files]:
    """The tubs of a folder, sorted by name: itself, folders in it, zips in it (the tub anywhere inside)."""
    if (folder / MANIFEST).is_file():
        return [Files(folder.resolve().name, folder)]
    found = [Files(path.parent.name, path.parent) for path in folder.glob(f"*/{MANIFEST}")]
    for path in folder.glob("*.zip"):
        with _zip(path) as archive:
            names = [entry.filename for entry in archive.infolist()]
        if len(names) > MAX_MEMBERS:
            raise ScenarioError("too-many-members", f"{path.name}: {len(names)} members, limit {MAX_MEMBERS}")
        inside = sorted(name for name in names if name.rpartition("/")[2] == MANIFEST)
        found += [
            Files(_name(path, name, alone=len(inside) == 1), path, name[: -len(MANIFEST)]) for name in inside
        ]
    return sorted(found, key=lambda files: files.name)


def _name(path: Path, manifest: str, *, alone: bool) -> str:
    """The tub's name: the zip's, or where it holds several, that of the folder inside."""
    return path.stem if alone else (manifest.split("/")[-2] if "/" in manifest else path.stem)


def _zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ScenarioError("not-a-zip", f"{path.name}: expected a whole zip archive ({error})") from error


def _member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str) -> bytes:
    where = f"{name}: {entry.filename}"
    if entry.flag_bits & _ENCRYPTED:
        raise ScenarioError("encrypted-member", f"{where} needs a password")
    if entry.file_size > MAX_MEMBER_BYTES:
        raise ScenarioError("member-too-large", f"{where}: {entry.file_size} bytes, limit {MAX_MEMBER_BYTES}")
    try:
        with archive.open(
            entry
        ) as file:  # no further than the size that the directory tells, then checks the CRC
            return file.read(MAX_MEMBER_BYTES + 1)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise ScenarioError("damaged-member", f"{where}: cannot be unpacked: {error}") from error
