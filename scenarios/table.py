"""The scenario table: scenarios in a Parquet file, version 2 (version 1 has no column `type` and stays readable).

One row per (scenario, track), strictly ascending by (region, drive, scenario, track). Columns as in `SCHEMA`;
`dx_cm` and `dy_cm` hold one entry per frame from `first_frame` to the last observed frame: first the absolute
position in centimetres, then differences to the last observed frame; null = not observed (a gap). A scenario lies in
one row group, so that a file of any size is read and written group by group.

Table hash: SHA-256 over "fedfleet.scenarios 2" and a line feed, then per row region, drive, scenario, track,
kind, type (each u32 byte length, then UTF-8), rate_hz f4, t0_s f8, frames i2, first_frame i2, u32 entry count,
dx_cm i4[], dy_cm i4[], all little-endian, null as -2^31. Parquet's encoding does not enter it. Version 1: "1", no type.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fedfleet.scenarios.records import Scenario, ScenarioError
from fedfleet.scenarios.table_arrays import Arrays, Texts
from fedfleet.scenarios.table_rows import NULL, VERSION, Digest, Row, rows, table_sha256

__all__ = [
    "MAX_FILE_BYTES",
    "MAX_ROWS",
    "MAX_VALUES",
    "SCHEMA",
    "VERSION",
    "Table",
    "TableWriter",
    "read_table",
    "table_sha256",
    "write_table",
]

MAX_FILE_BYTES: Final = 4 * 2**30
MAX_ROWS: Final = 2_000_000
MAX_VALUES: Final = 100_000_000
"""Rows and positions of a row group, and of a file of version 1, which is read at once."""
GROUP_ROWS: Final = 16_384
GROUP_VALUES: Final = 2_000_000

_KEY: Final = b"fedfleet.scenarios"
_LISTS: Final = ("dx_cm", "dy_cm")
_NUMBERS: Final = ("rate_hz", "t0_s", "frames", "first_frame")


def _schema(version: int) -> pa.Schema:
    names = ["scenario", "region", "drive", "track", "kind", *(["type"] if version > 1 else [])]
    numbers = [
        ("rate_hz", pa.float32()),
        ("t0_s", pa.float64()),
        ("frames", pa.int16()),
        ("first_frame", pa.int16()),
    ]
    lists = [(name, pa.list_(pa.int32())) for name in _LISTS]
    meta = json.dumps({"version": version, "unit": "cm"}, separators=(",", ":")).encode()
    return pa.schema([*((name, pa.string()) for name in names), *numbers, *lists], metadata={_KEY: meta})


SCHEMAS: Final = {version: _schema(version) for version in range(1, VERSION + 1)}
SCHEMA: Final = SCHEMAS[VERSION]


class TableWriter:
    """Writes a table scenario by scenario, in table order, through a temporary file that replaces `path` at the end.

    Used as a context: after a failure `path` is as it was.
    """

    def __init__(self, path: Path, *, version: int = VERSION, level: int = 6) -> None:
        self.path, self.version = path, version
        self.digest = Digest(version)
        self._temporary = path.with_name(path.name + ".part")
        self._waiting: list[Row] = []
        self._values = 0
        self._last: tuple[str, str, str] | None = None
        schema = SCHEMAS[version]
        self._writer = pq.ParquetWriter(
            self._temporary,
            schema,
            compression="zstd",
            compression_level=level,
            use_dictionary=[name for name in schema.names if name not in _LISTS],
            column_encoding={f"{name}.list.element": "DELTA_BINARY_PACKED" for name in _LISTS},
            write_statistics=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush()
            self._writer.close()
            if kind is None:
                with self._temporary.open("rb+") as file:
                    os.fsync(file.fileno())
                self._temporary.replace(self.path)
        finally:
            self._temporary.unlink(missing_ok=True)

    def add(self, scenario: Scenario) -> None:
        """Take one more; coordinates are rounded to centimetres. ScenarioError for one out of order, or twice."""
        key = (scenario.region, scenario.drive, scenario.scenario_id)
        if key == self._last:
            text = f"scenario {key[2]!r} of drive {key[1]!r} appears twice, expected once"
            raise ScenarioError("duplicate-scenario", text)
        if self._last is not None and key < self._last:
            text = f"{'/'.join(key)} after {'/'.join(self._last)}, expected rising region, drive and id"
            raise ScenarioError("shuffled-rows", text)
        self._last = key
        made = list(rows([scenario]))
        values = sum(len(row.dx_cm) for row in made)
        if self._waiting and (
            len(self._waiting) + len(made) > GROUP_ROWS or self._values + values > GROUP_VALUES
        ):
            self._flush()
        self._waiting += made
        self._values += values

    def _flush(self) -> None:
        schema = SCHEMAS[self.version]
        for row in self._waiting:
            self.digest.add(row)
        columns = {
            field.name: _column(field, [getattr(row, field.name) for row in self._waiting])
            for field in schema
        }
        self._writer.write_table(pa.table(columns, schema=schema), row_group_size=MAX_ROWS)
        self._waiting, self._values = [], 0


def write_table(path: Path, scenarios: Iterable[Scenario], *, version: int = VERSION) -> str:
    """Write the table sorted, through a temporary file that replaces `path`; return its table hash.

    Coordinates are rounded to centimetres. Raises ScenarioError for two scenarios of the same name and
    drive; after any failure `path` is as it was.
    """
    ordered = sorted(scenarios, key=lambda s: (s.region, s.drive, s.scenario_id))
    with TableWriter(path, version=version, level=19) as table:
        for scenario in ordered:
            table.add(scenario)
    return table.digest.hex()


class Table:
    """An opened file: its footer was checked (size, schema, version, limits), its row groups are read one at a time.

    Raises ScenarioError naming the file, what was expected and what was found.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            size = path.stat().st_size
            if size > MAX_FILE_BYTES:
                limit = f"{size / 1e6:.1f} MB, limit {MAX_FILE_BYTES / 1e6:.1f} MB"
                raise ScenarioError("file-too-large", f"{path} is {limit}")
            with pq.ParquetFile(path) as file:
                self.version = _check_footer(path, file)
                counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        except FileNotFoundError:
            raise ScenarioError("no-such-file", f"{path} does not exist") from None
        except (pa.ArrowException, OSError, ValueError):
            raise _not_parquet(path) from None
        # A file of version 1 may have a scenario in two row groups: it is one group to us, as small as it must be.
        self.group_rows = tuple(counts) if self.version > 1 else (sum(counts),)

    def arrays(self, group: int) -> Arrays:
        """The rows of a group, checked."""
        table = self._read(group, None)
        found = _arrays(self.path, table, sum(self.group_rows[:group]), SCHEMAS[self.version].names)
        found.check()
        return found

    def heads(self, group: int) -> Arrays:
        """The same without tracks and positions, not checked: what lists drives."""
        names = ["scenario", "region", "drive", "rate_hz", "frames"]
        return _arrays(self.path, self._read(group, names), sum(self.group_rows[:group]), names)

    def _read(self, group: int, columns: list[str] | None) -> pa.Table:
        try:
            with pq.ParquetFile(self.path) as file:
                if self.version == 1:
                    return file.read(columns=columns, use_threads=False)
                return file.read_row_group(group, columns=columns, use_threads=False)
        except (pa.ArrowException, OSError, ValueError):
            raise _not_parquet(self.path) from None


def read_table(path: Path, *, drives: Collection[str] | None = None) -> list[Scenario]:
    """Scenarios of one file in table order, all of them or only those of the named drives.

    The whole file is checked either way: size, schema, version, then values. Raises ScenarioError naming
    file, row and track, what was expected and what was found.
    """
    return [each for each in _every(Table(path)) if drives is None or each.drive in drives]


def _every(table: Table) -> Iterator[Scenario]:
    for group in range(len(table.group_rows)):
        yield from table.arrays(group).scenarios()


def _column(field: pa.Field, values: list[Any]) -> pa.Array:
    if not pa.types.is_list(field.type):
        return pa.array(values, type=field.type)
    flat = np.concatenate([*values, np.empty(0, dtype=np.int32)])
    offsets = np.cumsum([0, *(len(v) for v in values)], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat, mask=flat == NULL))


def _not_parquet(path: Path) -> ScenarioError:
    text = f"{path}: expected a whole Parquet file, got one that is none, or only a part of one"
    return ScenarioError("not-parquet", text)


def _check_footer(path: Path, file: pq.ParquetFile) -> int:
    """The version of the table."""
    raw = (file.metadata.metadata or {}).get(_KEY)
    if raw is None:
        text = f"{path} is Parquet without metadata {_KEY.decode()!r}, expected a fedfleet scenario table"
        raise ScenarioError("not-a-scenario-table", text)
    try:
        version = json.loads(raw)["version"]
    except (ValueError, KeyError, TypeError):
        version = raw[:40]
    if isinstance(version, bool) or not isinstance(version, int) or version not in SCHEMAS:
        raise ScenarioError("unknown-version", f"{path}: expected table version 1 or 2, got {version!r}")
    got = {field.name: str(field.type).replace("element:", "item:") for field in file.schema_arrow}
    for field in SCHEMAS[version]:
        if field.name not in got:
            text = f"{path}: expected column {field.name!r}, got {', '.join(got)}"
            raise ScenarioError("missing-column", text)
        if got[field.name] != str(field.type):
            text = f"{path}: column {field.name!r} must be {field.type}, got {got[field.name]}"
            raise ScenarioError("wrong-column-type", text)
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    for part in [groups] if version == 1 else [[group] for group in groups]:
        _check_size(path, part)
    return version


def _check_size(path: Path, groups: list[pq.RowGroupMetaData]) -> None:
    """Rows, and the largest number of values that any column holds."""
    columns = groups[0].num_columns if groups else 0
    count = sum(group.num_rows for group in groups)
    values = max((sum(g.column(c).num_values for g in groups) for c in range(columns)), default=0)
    if count > MAX_ROWS or values > MAX_VALUES:
        text = f"{path} has {count} rows and {values} positions, limit {MAX_ROWS} rows and {MAX_VALUES} positions"
        raise ScenarioError("table-too-large", text)


def _arrays(path: Path, table: pa.Table, first_row: int, names: list[str]) -> Arrays:
    for name in names:
        if table[name].null_count:
            row = first_row + table[name].is_null().to_pylist().index(True)
            raise ScenarioError("missing-value", f"{path} row {row}: {name} is null, expected a value")
    texts = [name for name in names if name not in (*_NUMBERS, *_LISTS)]
    return Arrays(
        path,
        first_row,
        names={name: _texts(table[name]) for name in texts},
        numbers={name: table[name].to_numpy() for name in _NUMBERS if name in names},
        lists={name: _flatten(table[name]) for name in _LISTS if name in names},
    )


def _texts(column: pa.ChunkedArray) -> Texts:
    encoded = column.combine_chunks().dictionary_encode()
    return Texts(encoded.indices.to_numpy().astype(np.int64), tuple(encoded.dictionary.to_pylist()))


def _flatten(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Offsets int64[rows + 1] and values int64[entries] of a list column, null as -2^31."""
    lengths = column.combine_chunks().value_lengths().to_numpy(zero_copy_only=False)
    values = [chunk.flatten().fill_null(NULL).to_numpy(zero_copy_only=False) for chunk in column.chunks]
    flat = np.concatenate([*values, np.empty(0, dtype=np.int32)]).astype(np.int64)
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), flat
