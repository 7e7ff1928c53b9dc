"""The files of a Donkey tub, whether it is a folder or a zip; read one at a time, each within a limit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedfleet.scenarios.account import STRICT, Account
from fedfleet.scenarios.members import MAX_MEMBER_BYTES, open_archive, read_entry
from fedfleet.scenarios.records import ScenarioError
from fedfleet.scenarios.text import utf8
from fedfleet.scenarios.tree import Tree

__all__ = ["MANIFEST", "Files", "Take", "has_tub", "open_files", "tub_folders"]

MANIFEST: Final = "manifest.json"
_TEXT: Final = (".json", ".catalog")

Take = Callable[[str], bytes | None]
"""Gives a file of the tub by its path in it; None when there is none, ScenarioError when it is damaged or too large."""


@dataclass(frozen=True)
class Files:
    """Where a tub lies: a folder, or a zip and the folder inside it (`inside` ends with a slash, or is empty).

    Manifest and catalogs are given as UTF-8 without a mark.
    """

    name: str
    path: Path
    inside: str = ""

    @contextmanager
    def opened(self) -> Iterator[Take]:
        """Open it as long as the block runs; ScenarioError for a zip that is none."""
        if self.path.is_dir():
            yield self._from_folder
            return
        archive = open_archive(self.path)
        with archive.zip:

            def take(name: str) -> bytes | None:
                if self.inside + name not in archive.entries:
                    return None
                data = read_entry(archive, self.inside + name, f"{self.name}: {self.inside}{name}")
                return utf8(data, name) if name.endswith(_TEXT) else data

            yield take

    def names(self) -> list[str]:
        """The files directly in the tub, sorted; ScenarioError for a zip that cannot be opened."""
        if self.path.is_dir():
            return sorted(path.name for path in self.path.iterdir() if path.is_file())
        archive = open_archive(self.path)
        with archive.zip:
            found = [
                name.removeprefix(self.inside) for name in archive.entries if name.startswith(self.inside)
            ]
        return sorted(name for name in found if name and "/" not in name)

    def _from_folder(self, name: str) -> bytes | None:
        path = self.path / name
        try:
            if path.stat().st_size > MAX_MEMBER_BYTES:
                raise ScenarioError("member-too-large", f"{self.name}: {name}: {path.stat().st_size} bytes")
            data = path.read_bytes()
            return utf8(data, f"{self.name}: {name}") if name.endswith(_TEXT) else data
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            text = f"{self.name}: {name}: cannot be read: {error.strerror}"
            raise ScenarioError("damaged-member", text) from error


def tub_folders(tree: Tree) -> list[Path]:
    """The folders that are tubs: with a manifest, and images or a catalog beside it."""
    found = [path.parent for path in tree.named(MANIFEST)]
    return [
        home
        for home in found
        if home == tree.folder or (home / "images").is_dir() or any(home.glob("catalog_*.catalog"))
    ]


def has_tub(path: Path) -> bool:
    """Whether a zip has a tub in it; a damaged one has none."""
    try:
        return bool(_manifests(path))
    except ScenarioError:
        return False


def open_files(tree: Tree, account: Account = STRICT) -> list[Files]:
    """The tubs of a folder, sorted by name: itself, folders in it, zips in it (the tub anywhere inside).

    A zip that cannot be opened is refused.
    """
    found = [Files(home.resolve().name, home) for home in tub_folders(tree)]
    for path in tree.ending(".zip"):
        with account.refusing(tree.where(path)):
            inside = _manifests(path)
            found += [
                Files(_name(path, name, alone=len(inside) == 1), path, name[: -len(MANIFEST)])
                for name in inside
            ]
    return sorted(found, key=lambda files: (files.name, files.path))


def _manifests(path: Path) -> list[str]:
    archive = open_archive(path)
    with archive.zip:
        return sorted(name for name in archive.entries if name.rpartition("/")[2] == MANIFEST)


def _name(path: Path, manifest: str, *, alone: bool) -> str:
    """The tub's name: the zip's, or where it holds several, that of the folder inside."""
    return path.stem if alone else (manifest.split("/")[-2] if "/" in manifest else path.stem)
