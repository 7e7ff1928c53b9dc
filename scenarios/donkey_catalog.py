"""Manifest and catalogs of a Donkey tub: which frames there are, and how each was steered.

The manifest is five lines of JSON (fields, types, metadata, about, state); the last names the catalogs and the records
that the driver deleted. A catalog has one record a line. A line that is not a record is counted and left out. Catalogs
that lie in the tub are read whether or not the manifest names them: it is older than they are after a power loss.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

from fedfleet.scenarios.donkey_files import MANIFEST, Files, Take
from fedfleet.scenarios.records import ScenarioError

__all__ = ["BAD_RECORD", "CUT_MANIFEST", "MANIFEST", "MAX_RECORDS", "Record", "read_records"]

MAX_RECORDS: Final = 1_000_000
MAX_CATALOGS: Final = 10_000
MAX_LINE: Final = 64 * 1024
NO_CATALOG: Final = "no-catalog"
BAD_RECORD: Final = "malformed-record"
DELETED: Final = "deleted"
CUT_MANIFEST: Final = "damaged-manifest"
"""A manifest that is cut or empty beside whole catalogs: they are read; which frames were deleted is not known."""
DRIVER: Final = "user"
"""`user/mode` while a person steers; in the others (`local_angle`, `local`) `user/angle` is the untouched stick."""
_CATALOG: Final = re.compile(r"catalog_(\d+)\.catalog\Z")


@dataclass(frozen=True)
class Record:
    """One frame: its number, when it was taken, where its image is, and the driver's angle, NaN where there is none.

    With ``is_autopilot`` the car steered itself, and the angle says nothing about what it did.
    """

    index: int
    time_ms: int
    image: str
    angle: float
    is_autopilot: bool = False


def read_records(files: Files) -> tuple[tuple[Record, ...], Counter[str]]:
    """The records of a tub in the order of their numbers, and what was left out, by reason.

    Raises ScenarioError for a damaged manifest without a catalog beside it, an unreadable file, and a tub beyond the
    limits.
    """
    problems: Counter[str] = Counter()
    records: dict[int, Record] = {}
    with files.opened() as take:
        catalogs, deleted = _catalogs(take, files, problems)
        for name in catalogs:
            data = take(name)
            if data is None:
                problems[NO_CATALOG] += 1
                continue
            for line in data.splitlines():
                record = _record(line)
                if record is None or record.index in records:
                    problems[BAD_RECORD] += bool(line.strip())
                elif record.index in deleted:
                    problems[DELETED] += 1
                else:
                    records[record.index] = record
            if len(records) > MAX_RECORDS:
                raise ScenarioError("too-many-records", f"{files.name}: more than {MAX_RECORDS} records")
    return tuple(record for _, record in sorted(records.items())), problems


def _catalogs(take: Take, files: Files, problems: Counter[str]) -> tuple[list[str], frozenset[int]]:
    """Return the names of the catalogs, those of the manifest first, and the numbers of the deleted records."""
    present = sorted(filter(_CATALOG.match, files.names()), key=lambda name: (len(name), name))
    lines = [line for line in (take(MANIFEST) or b"").splitlines() if line.strip(b" \t\0")]
    state = _json(lines[-1]) if lines else None
    named = state.get("paths") if isinstance(state, dict) else None
    deleted = state.get("deleted_indexes", []) if isinstance(state, dict) else None
    if not (isinstance(named, list) and isinstance(deleted, list)):
        if not present:
            got = bytes(lines[-1][:60]).decode(errors="replace") if lines else "nothing"
            expected = (
                f"{MANIFEST}: expected catalogs in `paths` of its last line, or catalog_*.catalog beside it"
            )
            raise ScenarioError("malformed-manifest", f"{files.name}: {expected}, got {got!r}")
        problems[CUT_MANIFEST] += 1
        named, deleted = [], []
    catalogs = list(dict.fromkeys([each for each in named if _is_file(each)] + present))
    if len(catalogs) > MAX_CATALOGS:
        text = f"{files.name}: {len(catalogs)} catalogs, limit {MAX_CATALOGS}"
        raise ScenarioError("malformed-manifest", text)
    return catalogs, frozenset(number for number in deleted if isinstance(number, int))


def _record(line: bytes) -> Record | None:
    found = _json(line) if len(line) <= MAX_LINE else None
    if not isinstance(found, dict):
        return None
    index, time_ms, image = (found.get(key) for key in ("_index", "_timestamp_ms", "cam/image_array"))
    if not (_is_count(index) and _is_count(time_ms) and _is_file(image)):
        return None
    mode = found.get("user/mode")
    is_autopilot = mode is not None and mode != DRIVER
    return Record(index, time_ms, image, _angle(found.get("user/angle")), is_autopilot)


def _angle(value: object) -> float:
    """Return the angle; NaN for what is no number, or too large for one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return float(value) if abs(value) <= sys.float_info.max else math.nan


def _json(line: bytes) -> Any:  # noqa: ANN401 - whatever JSON holds
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_file(value: object) -> TypeGuard[str]:
    """Whether this names a file right there: no folder, no way out of the tub."""
    return (
        isinstance(value, str) and 0 < len(value) <= 200 and not set(value) & set("/\\\0") and value != ".."
    )
