"""Reads KITTI tracking sequences: zips or folders with `label_02`, `oxts` and `calib` in them, one text file each.

The publisher's three archives lie side by side (`training/label_02/0000.txt` and so on); a copy with `label/` for
`label_02/`, and files unpacked, are read as well. `testing/` has no labels and is left out.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from fedfleet.models.task import Drive
from fedfleet.scenarios.account import STRICT, Account
from fedfleet.scenarios.drives import Drives, Take
from fedfleet.scenarios.kitti_tracks import RATE_HZ, REGION, Text, observations
from fedfleet.scenarios.members import Member, members, open_archive
from fedfleet.scenarios.records import Scenario, ScenarioError
from fedfleet.scenarios.text import without_packing
from fedfleet.scenarios.tree import Tree, tree_of
from fedfleet.scenarios.windows import cut, window_frames

__all__ = ["detect", "scan"]

_PARTS: Final = {"label": "label", "label_02": "label", "oxts": "oxts", "calib": "calib"}
_FILE: Final = re.compile(r"(?:\A|.*/)(label|label_02|oxts|calib)/(\d{4})\.txt\Z", re.IGNORECASE)
_NAMES: Final = re.compile(r"kitti|data_tracking", re.IGNORECASE)


def detect(where: Tree | Path) -> tuple[Path, ...]:
    """The zips and files of such names, if there are labels among them; damaged zips by their name."""
    tree = tree_of(where)
    found: dict[Path, set[str]] = {}
    for path in tree.ending(".zip"):
        try:
            archive = open_archive(path)
        except ScenarioError:
            found[path] = {"label"} if _NAMES.search(path.name) else set()
        else:
            with archive.zip:
                found[path] = {part for part, _ in map(_part, archive.entries) if part}
    for path in tree.ending(".txt", packed=True):
        part, _ = _part(without_packing(tree.where(path)))
        found[path] = {part} if part else set()
    if not any("label" in parts for parts in found.values()):
        return ()
    return tuple(path for path, parts in found.items() if parts)


def scan(folder: Path, sources: Sequence[Path], account: Account = STRICT) -> Drives:
    """Every labelled sequence; refused is one without pose or calibration, and a file that is there twice."""
    sequences: dict[str, dict[str, Member]] = defaultdict(dict)
    for path in sources:
        with account.refusing(path.relative_to(folder).as_posix()):
            for member in members(folder, path, ".txt"):
                part, number = _part(without_packing(member.where.rpartition(": ")[2]))
                with account.refusing(member.where):
                    before = sequences[number].get(part) if part else None
                    if before is not None:
                        text = f"{part} of sequence {number} is in {before.where} and again in {member.where}"
                        raise ScenarioError("duplicate-drive", text)
                    if part:
                        sequences[number][part] = member
    found = []
    for number, parts in sorted(sequences.items()):
        if "label" not in parts:
            for member in parts.values():
                account.leave(
                    member.where, "no-label", "has no label beside it, which says who was seen where"
                )
            continue
        with account.refusing(*(member.where for member in parts.values())):
            found.append(_sequence(number, parts))
    return Drives.of(found, account)


def _sequence(number: str, parts: Mapping[str, Member]) -> tuple[Drive, Take, str]:
    missing = sorted({"calib", "oxts"} - set(parts))
    if missing:
        text = f"{parts['label'].where}: expected {missing[0]}/{number}.txt beside it, got none"
        raise ScenarioError("missing-file", text)
    frames = len(parts["oxts"].text().rstrip().splitlines())
    name = f"kitti-{number}"
    drive = Drive(REGION, name, -(-frames // window_frames(RATE_HZ)), frames / RATE_HZ)
    return drive, partial(_read, parts, name), parts["label"].where


def _read(parts: Mapping[str, Member], name: str, problems: Counter[str]) -> Iterator[Scenario]:
    label, oxts, calib = (Text(parts[part].where, parts[part].text()) for part in ("label", "oxts", "calib"))
    yield from cut(observations(label, oxts, calib, drive=name, problems=problems), problems=problems)


def _part(name: str) -> tuple[str, str]:
    """Which of the three files of which sequence a path is; ("", "") for another."""
    match = _FILE.match(name)
    if match is None or "testing" in name.split("/"):
        return "", ""
    return _PARTS[match[1].lower()], match[2]
