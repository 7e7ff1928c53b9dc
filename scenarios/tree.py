"""Every file below a folder of recordings, found once and in order, to a bounded depth and number.

May live here: walking, and which names belong to nobody because they say so themselves (a readme, a map, what Finder,
Explorer, Emacs or git leave behind). What a file holds is its reader's business.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

__all__ = [
    "INDEX_NAME",
    "MAX_DEPTH",
    "MAX_FILES",
    "PACKED",
    "Tree",
    "is_harmless",
    "stamp",
    "tree_of",
    "walk",
]

MAX_DEPTH: Final = 8
"""So many folders below the given one are looked into."""
MAX_FILES: Final = 1_000_000
MAX_STAMPED: Final = 10_000
PACKED: Final = (".gz", ".zst", ".zstd")
"""Endings of a text file that was packed as a whole; the text is read through them."""
INDEX_NAME: Final = re.compile(r"index(?:-[a-z0-9]+)?\.csv\Z", re.IGNORECASE)

_HARMLESS: Final = re.compile(
    r"""
    (?: readme | licen[cs]e | copying | copyright | notice | changelog | citation | authors | credits
      | checksums | (?:sha\d*|md5)sums ) (?: [-_. ].* )? |
    \._.* | \.\#.* | \#.*\# | ~\$.* | \.~lock\..*\# | .*~ | \..*\.sw[a-p] |
    \.ds_store | \.localized | \.apdisk | \.volumeicon\.icns | icon\r | thumbs\.db | ehthumbs\.db |
    desktop\.ini | \.directory | \.nomedia | \.gitignore | \.gitattributes | \.gitkeep | \.gitmodules |
    \.keep | \.dvcignore | \.metadata_never_index |
    .* \. (?: md | markdown | rst | pdf | bib | osm | osgb | xodr | net\.xml(?:\.gz)? | sha1 | sha256 | sha512 | md5 ) |
    converted\.json | pack\.json
    """,
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
_HARMLESS_FOLDER: Final = re.compile(
    r"""
    __macosx | \.git | \.svn | \.hg | \.dvc | \.datalad | \.ipynb_checkpoints | \.trash.* | \.trashes |
    \.spotlight-v100 | \.fseventsd | \.temporaryitems | \.documentrevisions-v100 | \.cache | \.venv | \.idea |
    \.vscode | __pycache__ | @eadir | lost\+found | \$recycle\.bin | system\ volume\ information
    """,
    re.IGNORECASE | re.VERBOSE,
)


@dataclass(frozen=True)
class Tree:
    """The files of a folder: `files` can be recordings, sorted; `unread` are (path, reason, detail) of what cannot.

    Names that are nobody's recordings (`is_harmless`) are in neither.
    """

    folder: Path
    files: tuple[Path, ...]
    unread: tuple[tuple[Path, str, str], ...] = ()
    by_ending: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list), repr=False)

    def __post_init__(self) -> None:
        for path in self.files:
            self.by_ending[_ending(path.name.lower())].append(path)

    def ending(self, *endings: str, packed: bool = False) -> list[Path]:
        """The files of these endings, in letters of any case, sorted; with `packed` also those ending in PACKED."""
        wanted = [each + more for each in endings for more in ("", *(PACKED if packed else ()))]
        return sorted(path for each in wanted for path in self.by_ending.get(each, ()))

    def named(self, *names: str) -> list[Path]:
        """The files of exactly these names, sorted."""
        return [path for path in self.files if path.name in names]

    def where(self, path: Path) -> str:
        """The path from the folder on, for messages."""
        return path.relative_to(self.folder).as_posix()


def is_harmless(name: str) -> bool:
    """Whether a path inside a folder or an archive names nobody's recording: a readme, a map, a system's own file."""
    *folders, last = name.replace("\\", "/").split("/")
    return bool(_HARMLESS.fullmatch(last)) or any(_HARMLESS_FOLDER.fullmatch(each) for each in folders)


def walk(folder: Path) -> Tree:
    """Look through a folder; links are followed, but never into a folder above them."""
    found: list[Path] = []
    unread: list[tuple[Path, str, str]] = []
    waiting = [(folder, 0)]
    while waiting:
        here, depth = waiting.pop()
        try:
            with os.scandir(here) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError as error:
            unread.append((here, "unreadable", f"cannot be opened: {error.strerror}"))
            continue
        for entry in entries:
            path = here / entry.name
            if _is_folder(entry):
                if _HARMLESS_FOLDER.fullmatch(entry.name):
                    continue
                if depth == MAX_DEPTH:
                    text = f"lies more than {MAX_DEPTH} folders down: give a folder nearer to it"
                    unread.append((path, "too-deep", text))
                elif entry.is_symlink() and _is_above(path):
                    unread.append((path, "link-loop", "is a link to a folder above it"))
                else:
                    waiting.append((path, depth + 1))
            elif not _HARMLESS.fullmatch(entry.name):
                _sort(entry, path, found, unread)
        if len(found) > MAX_FILES:
            unread.append((here, "too-many-files", f"more than {MAX_FILES} files: the rest is not looked at"))
            break
    return Tree(folder, tuple(sorted(found)), tuple(sorted(unread)))


def tree_of(where: Tree | Path) -> Tree:
    """The tree of a folder; a tree as it is."""
    return where if isinstance(where, Tree) else walk(where)


def stamp(folder: Path) -> tuple[object, ...]:
    """What changes when the folder does: names, sizes and times of its folders and files, the first MAX_STAMPED.

    Of plain CSV files, of which there may be very many, their folder speaks.
    """
    found: list[tuple[str, int, int]] = []
    waiting = [str(folder)]
    looked = 0
    while waiting and looked < MAX_STAMPED:
        here = waiting.pop(0)
        try:
            stat = os.stat(here)  # noqa: PTH116 - called often
            found.append((here, stat.st_size, stat.st_mtime_ns))
            with os.scandir(here) as listed:
                for looked, entry in enumerate(listed, looked + 1):  # noqa: B020 - goes on counting
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    elif not entry.name.endswith(".csv") or INDEX_NAME.match(entry.name):
                        stat = entry.stat(follow_symlinks=not _dangles(entry))
                        found.append((entry.path, stat.st_size, stat.st_mtime_ns))
                    if looked >= MAX_STAMPED:
                        break
        except OSError as error:
            found.append((here, error.errno or 0, 0))
    return tuple(sorted(found))


def _sort(
    entry: os.DirEntry[str], path: Path, found: list[Path], unread: list[tuple[Path, str, str]]
) -> None:
    try:
        if not _dangles(entry) and entry.is_file():
            found.append(path)
        elif entry.is_symlink():
            target = str(path.readlink())
            text = f"is a link to {target:.80}, which is not there: fetch it, or remove the link"
            unread.append((path, "link-to-nothing", text))
        else:
            unread.append((path, "no-file", "is neither a file nor a folder"))
    except OSError as error:
        unread.append((path, "unreadable", f"cannot be opened: {error.strerror}"))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: `_sort` names it
        return False


def _dangles(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)  # noqa: PTH110 - called often


def _is_above(path: Path) -> bool:
    """Whether a link leads to a folder in which it lies."""
    target = path.resolve()
    return target == path.parent.resolve() or target in path.parent.resolve().parents


def _ending(name: str) -> str:
    """`.csv` of `a.csv`, `.csv.gz` of `a.csv.gz`; of a name in small letters."""
    stem, dot, last = name.rpartition(".")
    if not dot:
        return ""
    ending = dot + last
    if ending in PACKED and "." in stem:
        return "." + stem.rpartition(".")[2] + ending
    return ending
