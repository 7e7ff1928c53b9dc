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
from fedfleet.scenarios.drives import Drives
from fedfleet.scenarios.kitti_tracks import RATE_HZ, REGION, Text, observations
from fedfleet.scenarios.members import Member, plain_file, zip_members
from fedfleet.scenarios.records import Scenario, ScenarioError
from fedfleet.scenarios.windows import cut, window_frames

__all__ = ["detect", "scan"]

_PARTS: Final = {"label": "label", "label_02": "label", "oxts": "oxts", "calib": "calib"}
_FILE: Final = re.compile(r"(?:\A|.*/)(label|label_02|oxts|calib)/(\d{4})\.txt\Z")
_NAMES: Final = re.compile(r"kitti|data_tracking", re.IGNORECASE)


def detect(folder: Path) -> tuple[Path, ...]:
    """The zips and folders with such files, if there are labels among them; damaged zips by their name."""
    found: dict[Path, set[str]] = {}
    for path in sorted(folder.glob("*.zip")):
        try:
            found[path] = {part for part, _ in map(_part, zip_members(path, ".txt")) if part}
        except ScenarioError:
            found[path] = {"label"} if _NAMES.search(path.name) else set()
    for inside in (folder, folder / "training"):
        for name, part in _PARTS.items():
            if any(
                _FILE.match(each.relative_to(folder).as_posix()) for each in (inside / name).glob("*.txt")
            ):
                found[inside / name] = {part}
    if not any("label" in parts for parts in found.values()):
        return ()
    return tuple(path for path, parts in found.items() if parts)


def scan(folder: Path, sources: Sequence[Path]) -> Drives:
    """Every labelled sequence; ScenarioError for one without pose or calibration, and for one that is there twice."""
    sequences: dict[str, dict[str, Member]] = defaultdict(dict)
    for path in sources:
        for member in _members(folder, path):
            part, number = _part(member)
            before = sequences[number].get(part) if part else None
            if before is not None:
                text = f"{part} of sequence {number} is in {before.where} and again in {member.where}"
                raise ScenarioError("duplicate-drive", text)
            if part:
                sequences[number][part] = member
    found = []
    for number, parts in sorted(sequences.items()):
        if "label" not in parts:
            continue
        missing = sorted({"calib", "oxts"} - set(parts))
        if missing:
            text = f"{parts['label'].where}: expected {missing[0]}/{number}.txt beside it, got none"
            raise ScenarioError("missing-file", text)
        frames = len(parts["oxts"].read().rstrip().splitlines())
        name = f"kitti-{number}"
        pieces = -(-frames // window_frames(RATE_HZ))
        drive = Drive(REGION, name, pieces, frames / RATE_HZ)
        found.append((drive, partial(_read, parts, name), parts["label"].where))
    return Drives.of(found)


def _read(parts: Mapping[str, Member], name: str, problems: Counter[str]) -> Iterator[Scenario]:
    label, oxts, calib = (Text(parts[part].where, parts[part].read()) for part in ("label", "oxts", "calib"))
    yield from cut(observations(label, oxts, calib, drive=name, problems=problems), problems=problems)


def _members(folder: Path, path: Path) -> list[Member]:
    if path.is_dir():
        return [plain_file(folder, each, ".txt") for each in sorted(path.glob("*.txt")) if each.is_file()]
    return zip_members(path, ".txt")


def _part(member: Member) -> tuple[str, str]:
    """Which of the three files of which sequence; ("", "") for another."""
    name = member.where.rpartition(": ")[2]
    match = _FILE.match(name)
    if match is None or "testing" in name.split("/"):
        return "", ""
    return _PARTS[match[1]], match[2]
