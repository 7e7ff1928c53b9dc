"""Reads a hospital's CSV file of patient records; what is no record is counted, by reason."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.ids import is_id

__all__ = ["MEASUREMENTS", "Patient", "read_hospitals"]

MEASUREMENTS: Final = 30
MAX_BYTES: Final = 64 * 2**20
BAD_ROW: Final = "malformed-record"
BAD_NUMBER: Final = "bad-measurement"


@dataclass(frozen=True)
class Patient:
    """30 measurements of a tumour, in the file's order, and whether it was malignant."""

    measurements: tuple[float, ...]
    malignant: bool


def read_hospitals(folder: Path) -> tuple[Mapping[str, list[Patient]], Counter[str]]:
    """Return the patients by `hospital/day-NN`, sorted, and what was left out; UsageError when there is none."""
    files = sorted(folder.glob("*.csv")) if folder.is_dir() else []
    days: dict[str, list[Patient]] = {}
    problems: Counter[str] = Counter()
    for path in files:
        if not is_id(path.stem) or path.stat().st_size > MAX_BYTES:
            raise UsageError(
                f"{path}: expected a hospital's name of a-z, 0-9 and '-', at most {MAX_BYTES} bytes"
            )
        _read(path, days, problems)
    if not days:
        raise UsageError(f"{folder}: no patient records: expected <hospital>.csv")
    return dict(sorted(days.items())), problems


def _read(path: Path, days: dict[str, list[Patient]], problems: Counter[str]) -> None:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.reader(file)
            header = next(rows, [])
            if len(header) != MEASUREMENTS + 3 or (header[0], header[-1]) != ("day", "malignant"):
                raise UsageError(f"{path}: expected day,patient,{MEASUREMENTS} measurements,malignant")
            for row in rows:
                if len(row) != len(header) or not row[0].isdecimal() or row[-1] not in {"0", "1"}:
                    problems[BAD_ROW] += 1
                    continue
                values = tuple(_number(text) for text in row[2:-1])
                if not all(math.isfinite(value) and value >= 0 for value in values):
                    problems[BAD_NUMBER] += 1
                    continue
                key = f"{path.stem}/day-{int(row[0]):02d}"
                days.setdefault(key, []).append(Patient(values, row[-1] == "1"))
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
