"""Writes recordings of any format as scenario tables: one file per region, drive after drive, in flat memory.

What a table does not hold (sizes, headings, maps) is left behind, and positions are rounded to a centimetre; a table
converted again is the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from fedfleet.protocol.errors import UsageError
from fedfleet.scenarios.reading import open_recordings, stream
from fedfleet.scenarios.records import ScenarioError

__all__ = ["RECORD_FILE", "Converted", "convert"]

RECORD_FILE: Final = "converted.json"

Report = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Converted:
    """What was written: by region scenarios, tracks and the table hash; and what readers left out, by reason."""

    version: int
    formats: tuple[str, ...]
    regions: Mapping[str, Mapping[str, Any]]
    problems: Mapping[str, int]


def convert(folder: Path, out: Path, *, report: Report | None = None) -> Converted:
    """Write `<out>/<region>.parquet` for each region of a folder, and `converted.json`; return the same.

    Each file is written whole or not at all. `report` is called with (done, total, drive) before each drive. Raises
    UsageError for an output folder with tables in it or inside the folder, and for what reading the recordings raises.
    """
    from fedfleet.scenarios.table import VERSION, TableWriter  # with pyarrow

    recordings = open_recordings(folder)
    if out.is_dir() and any(out.glob("*.parquet")):
        raise UsageError(f"{out}: expected a folder without tables to write into, got some")
    if folder.resolve() in (out.resolve(), *out.resolve().parents):
        raise UsageError(f"{out}: expected a folder outside {folder}, which is read")
    out.mkdir(parents=True, exist_ok=True)
    done, regions = 0, {}
    for region, keys in groupby(recordings.drives, key=lambda key: recordings.drives[key].region):
        scenarios = tracks = 0
        try:
            with TableWriter(out / f"{region}.parquet") as table:
                for key in keys:
                    if report is not None:
                        report(done, len(recordings.drives), key)
                    done += 1
                    for scenario in stream(folder, [key]):
                        table.add(scenario)
                        scenarios += 1
                        tracks += len(scenario.track_ids)
        except ScenarioError as error:
            raise UsageError(str(error)) from error
        regions[region] = {"scenarios": scenarios, "tracks": tracks, "table_sha256": table.digest.hex()}
    formats = tuple(part.reader.format for part in recordings.parts)
    made = Converted(VERSION, formats, regions, recordings.problems)
    record = {
        "table_version": VERSION,
        "formats": formats,
        "regions": regions,
        "problems": dict(made.problems),
    }
    (out / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return made
