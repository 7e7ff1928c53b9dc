"""Reads a folder of Argoverse 2 motion forecasting: `<id>/scenario_<id>.parquet`, one scenario of 11 s at 10 Hz each.

The columns are those of the publisher's `scenario_serialization.py` (argoverse/av2-api). A region is the city, a drive
the `slice_id`: the log that scenarios were cut from. Judged are the focal and the scored tracks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from fedfleet.models.task import Drive
from fedfleet.scenarios.account import STRICT, Account
from fedfleet.scenarios.places import place_ids
from fedfleet.scenarios.records import Scenario, ScenarioError
from fedfleet.scenarios.tree import Tree, tree_of
from fedfleet.scenarios.windows import Observations, single

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Argoverse2", "detect", "scan"]

MAX_FILE_BYTES: Final = 16 * 2**20
MAX_ROWS: Final = 500_000
RATE_HZ: Final = 10.0
_ONCE: Final = ("scenario_id", "city", "slice_id", "start_timestamp", "end_timestamp", "num_timestamps")
_EACH: Final = ("track_id", "object_type", "object_category", "timestep", "position_x", "position_y")
_JUDGED: Final = (2, 3)
"""Categories: 0 fragment, 1 unscored, 2 scored, 3 focal."""
_TYPES: Final = {
    "vehicle": "vehicle",
    "bus": "bus",
    "motorcyclist": "motorcycle",
    "cyclist": "cyclist",
    "pedestrian": "pedestrian",
    "static": "static",
    "construction": "static",
    "riderless_bicycle": "static",
}


@dataclass(frozen=True)
class Argoverse2:
    """An opened folder: its drives by `region/drive`; files are read drive by drive, and not kept."""

    folder: Path
    drives: Mapping[str, Drive]
    files: Mapping[str, tuple[Path, ...]]
    is_lazy: bool = True
    problems: Mapping[str, int] = field(default_factory=dict)
    account: Account = field(default=STRICT, repr=False)

    def read(self, drive: str) -> Iterator[Scenario]:
        """Read the scenarios of one drive, by id; each is refused by itself, naming the file."""
        for path in self.files[drive]:
            where = path.relative_to(self.folder).as_posix()
            with self.account.refusing(where):
                yield _scenario(_table(path, where, (*_ONCE, *_EACH)), where, self.drives[drive])


def detect(where: Tree | Path) -> tuple[Path, ...]:
    """The files `scenario_*.parquet`; all of that name are taken for this format."""
    tree = tree_of(where)
    return tuple(path for path in tree.ending(".parquet") if path.name.lower().startswith("scenario_"))


def scan(folder: Path, sources: Sequence[Path], account: Account = STRICT) -> Argoverse2:
    """Find the city, log and length of each file; refused is what is none, and an id that appears twice."""
    found: dict[tuple[str, str], list[tuple[str, Path, float]]] = defaultdict(list)
    seen: dict[str, str] = {}
    for path in sources:
        where = path.relative_to(folder).as_posix()
        with account.refusing(where):
            table = _table(path, where, _ONCE)
            once = {name: _one(table, name, where) for name in _ONCE}
            name = str(once["scenario_id"])
            if name in seen:
                text = f"scenario {name} is in {seen[name]} and again in {where}"
                raise ScenarioError("duplicate-scenario", text)
            seen[name] = where
            place = str(once["city"]), str(once["slice_id"])
            found[place].append((name, path, int(once["num_timestamps"]) / RATE_HZ))
    regions, trips = place_ids(city for city, _ in found), place_ids(log for _, log in found)
    drives, files = {}, {}
    for (city, log), each in sorted(found.items()):
        drive = Drive(regions[city], trips[log], len(each), sum(seconds for _, _, seconds in each))
        drives[drive.key], files[drive.key] = drive, tuple(path for _, path, _ in sorted(each))
    return Argoverse2(folder, dict(sorted(drives.items())), files, account=account)


def _table(path: Path, where: str, columns: Sequence[str]) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        text = f"{where} is {size / 1e6:.1f} MB, limit {MAX_FILE_BYTES / 1e6:.1f} MB"
        raise ScenarioError("file-too-large", text)
    try:
        with closing(pq.ParquetFile(path)) as file:
            names = file.schema_arrow.names
            missing = [name for name in columns if name not in names]
            if missing:
                text = f"{where}: expected column {missing[0]!r}, got {', '.join(names)[:120]}"
                raise ScenarioError("missing-column", text)
            if file.metadata.num_rows > MAX_ROWS:
                text = f"{where}: {file.metadata.num_rows} rows, limit {MAX_ROWS}"
                raise ScenarioError("table-too-large", text)
            return file.read(columns=list(columns), use_threads=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        text = (
            f"{where}: expected a whole Parquet file, got {size} bytes that are none, or only a part of one"
        )
        raise ScenarioError("not-parquet", text) from error


def _one(table: pa.Table, name: str, where: str) -> Any:  # noqa: ANN401 - a text or a number
    values = table[name].unique().to_pylist()
    if len(values) != 1 or values[0] is None:
        text = f"{where}: expected one {name} in all rows, got {', '.join(map(str, values))[:80] or 'no row'}"
        raise ScenarioError("uneven-scenario", text)
    return values[0]


def _scenario(table: pa.Table, where: str, drive: Drive) -> Scenario:
    for name in _EACH:
        if table[name].null_count:
            raise ScenarioError(
                "nan-value", f"{where}: expected a {name} in each row, got {table[name].null_count} without"
            )
    column = table["track_id"].combine_chunks().dictionary_encode()
    names, track = column.dictionary.to_pylist(), column.indices.to_numpy().astype(np.int64)
    first = np.unique(track, return_index=True)[1]
    category = table["object_category"].to_numpy()
    kinds = table["object_type"].take(first).to_pylist()
    frame = table["timestep"].to_numpy().astype(np.int64)
    frames = int(_one(table, "num_timestamps", where))
    if frame.min() < 0 or frame.max() >= frames:
        got = f"{frame.min()} to {frame.max()}"
        raise ScenarioError("frames-outside", f"{where}: expected timestep 0 to {frames - 1}, got {got}")
    _check_clock(table, frames, where)
    seen = Observations(
        where,
        drive.region,
        drive.drive,
        RATE_HZ,
        float(_one(table, "start_timestamp", where)) * 1e-9,
        names,
        tuple(_TYPES.get(kind, "unknown") for kind in kinds),
        track,
        frame,
        np.stack([table["position_x"].to_numpy(), table["position_y"].to_numpy()], axis=1).astype(np.float64),
        av=names.index("AV") if "AV" in names else None,
        targets={i for i, row in enumerate(first) if int(category[row]) in _JUDGED},
    )
    return single(seen, str(_one(table, "scenario_id", where)), frames)


def _check_clock(table: pa.Table, frames: int, where: str) -> None:
    """First and last time are as many frames apart as there are."""
    start, end = (float(_one(table, name, where)) * 1e-9 for name in ("start_timestamp", "end_timestamp"))
    if abs((end - start) * RATE_HZ - (frames - 1)) > 0.02 * frames:
        text = f"expected {frames} frames at {RATE_HZ:g} Hz, got {end - start:.2f} s from first to last"
        raise ScenarioError("two-rates", f"{where}: {text}")
