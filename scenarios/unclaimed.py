"""What no reader claims, named: each file or group of files with the reason that its name or its first bytes tell.

May live here: the rest of a folder, when readers have taken theirs, in words and with the way out (`try --task …`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Final

from fedfleet.scenarios.account import Account
from fedfleet.scenarios.donkey_files import has_tub, tub_folders
from fedfleet.scenarios.impostors import Verdict, by_content, by_name
from fedfleet.scenarios.members import head, is_zip, open_archive
from fedfleet.scenarios.records import ScenarioError
from fedfleet.scenarios.tree import INDEX_NAME, Tree, is_harmless

__all__ = ["Claims", "leave_members", "leave_rest", "tub_claims"]

Claims = Mapping[Path, str]
"""What another task would read, files or whole folders, and the words for it."""

_LOOKED_INTO: Final = 2_000
"""So many unclaimed files are opened; of more, the name alone speaks."""
_SHOWN_ALONE: Final = 5
_TABLES: Final = (".csv", ".csv.gz", ".csv.zst", ".csv.zstd")
_NOT_IN_ZIPS: Final = re.compile(r"\.(mcap|db3|parquet|bag)\Z|tfrecord|\.zarray\Z", re.IGNORECASE)
_OLD_RECORD: Final = re.compile(r"record_\d+\.json\Z")
_OLD_TUB: Final = (
    "old-tub",
    "is of a Donkey tub of version 1, which is not read: convert it (convert_to_tub_v2)",
)


def tub_claims(tree: Tree) -> Claims:
    """The tubs of a tree, folders and zips, as what another task reads."""
    words = "is a Donkey tub, of another task: try --task camera_steering"
    zips = [path for path in tree.ending(".zip") if has_tub(path)]
    return dict.fromkeys([*tub_folders(tree), *zips], words)


def leave_rest(tree: Tree, claimed: Collection[Path], others: Claims, account: Account) -> None:
    """Add a row for whatever of the tree is neither in `claimed` (files, or folders with all below them) nor harmless.

    What another task claims (`others`) is named as that, a folder as one row.
    """
    for path, reason, detail in tree.unread:
        account.leave(_where(tree, path), reason, detail)
    foreign: dict[Path, int] = defaultdict(int)
    groups: dict[tuple[Verdict, Path, str], list[Path]] = defaultdict(list)
    looked = 0
    for path in tree.files:
        if _owner(path, tree.folder, claimed) is not None:
            continue
        owner = _owner(path, tree.folder, others)
        if owner is not None:
            foreign[owner] += 1
            continue
        looked += 1
        verdict = _verdict(path, is_looked_into=looked <= _LOOKED_INTO)
        if verdict is not None:
            groups[verdict, path.parent, path.suffix.lower()].append(path)
    _leave_foreign(tree, foreign, others, account)
    for (verdict, home, ending), paths in groups.items():
        if len(paths) <= _SHOWN_ALONE:
            for path in paths:
                account.leave(_where(tree, path), *verdict)
        else:
            text = f"holds {len(paths)} files {ending or 'without an ending'} ({paths[0].name} …), each {verdict[1]}"
            account.leave(_where(tree, home), verdict[0], text, files=len(paths))


def _leave_foreign(tree: Tree, foreign: Mapping[Path, int], others: Claims, account: Account) -> None:
    """A row for each that another task claims; for many of a kind in one folder, one."""
    groups: dict[tuple[str, Path], list[Path]] = defaultdict(list)
    for owner in foreign:
        groups[others[owner], owner.parent].append(owner)
    for (words, home), owners in groups.items():
        if len(owners) <= _SHOWN_ALONE:
            for owner in owners:
                account.leave(_where(tree, owner), "other-task", words, files=foreign[owner])
        else:
            text = f"holds {len(owners)} ({owners[0].name} …), each of which {words}"
            account.leave(_where(tree, home), "other-task", text, files=sum(foreign[one] for one in owners))


def leave_members(path: Path, claims: re.Pattern[str], account: Account, where: str) -> None:
    """Add a row for each member of a claimed zip that its reader does not take."""
    try:
        archive = open_archive(path)
    except ScenarioError:
        return  # its reader said so
    with archive.zip:
        rest = [name for name in archive.entries if not claims.search(name)]
    for name in rest[:_SHOWN_ALONE]:
        account.leave(f"{where}: {name}", "unknown-file", "is of no format that is read")
    if len(rest) > _SHOWN_ALONE:
        text = f"holds {len(rest) - _SHOWN_ALONE} more files of no format that is read"
        account.leave(where, "unknown-file", text, files=len(rest) - _SHOWN_ALONE)


def _where(tree: Tree, path: Path) -> str:
    return tree.where(path) if path != tree.folder else "."


def _owner(path: Path, folder: Path, claims: Collection[Path]) -> Path | None:
    """The claim that a path is, or lies below."""
    if path in claims:
        return path
    for above in path.parents:
        if above in claims:
            return above
        if above == folder:
            return None
    return None


def _verdict(path: Path, *, is_looked_into: bool) -> Verdict | None:
    """Why a file is not read; None for one that only goes with another."""
    if path.name.lower().endswith(".dvc") and path.with_name(path.name[:-4]).exists():
        return None
    is_table = path.name.lower().endswith(_TABLES) and is_looked_into
    told = (by_content(path) if is_looked_into else None) or (None if is_table else by_name(path))
    if told is not None or _OLD_RECORD.match(path.name):
        return told or _OLD_TUB
    if is_zip(path) and is_looked_into:
        return _of_zip(path)
    if INDEX_NAME.match(path.name):
        return "unused-index", "is an index, and of no format that lies here"
    return _of_table(path) if is_table else ("unknown-file", "is of no format that is read")


def _of_table(path: Path) -> Verdict:
    first = head(path, ".csv")
    if first is not None and first.is_damaged:
        return "damaged-file", "cannot be unpacked: it is damaged or cut"
    shown = ",".join(sorted(first.columns))[:80] if first is not None else ""
    return "unknown-file", f"has the columns of no format that is read: {shown!r}"


def _of_zip(path: Path) -> Verdict:
    try:
        archive = open_archive(path)
    except ScenarioError as error:
        return error.reason, error.detail.partition(": ")[2]
    with archive.zip:
        names = sorted(archive.entries)
    if not names:
        return "empty-archive", "is a zip with no recording in it"
    alone = [name for name in names if _NOT_IN_ZIPS.search(name)]
    if alone:
        return "packed", f"is a zip of files that are read only unpacked ({_some(alone)}): unpack it first"
    shown = _some(name for name in names if not is_harmless(name))
    return "unknown-file", f"is a zip with nothing in it that is read: {shown}"


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return ", ".join(listed[:3]) + more
