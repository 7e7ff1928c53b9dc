"""The scenario table, version 1: scenarios in a Parquet file (only this module imports pyarrow).

One row per (scenario, track), strictly ascending by (region, drive, scenario, track). Columns as in `SCHEMA`;
`dx_cm` and `dy_cm` hold one entry per frame from `first_frame` to the last observed frame: first the absolute
position in centimetres, then differences to the last observed frame; null = not observed (a gap).

Table hash: SHA-256 over "fedfleet.scenarios 1" and a line feed, then per row region, drive, scenario, track,
kind (each u32 byte length, then UTF-8), rate_hz f4, t0_s f8, frames i2, first_frame i2, u32 entry count,
dx_cm i4[], dy_cm i4[], all little-endian, null as -2^31. Parquet's encoding does not enter it.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fedfleet.scenarios.records import Scenario, ScenarioError
from fedfleet.scenarios.table_columns import Columns
from fedfleet.scenarios.table_rows import NAMES, NULL, VERSION, digest, rows, table_sha256

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["MAX_FILE_BYTES", "MAX_ROWS", "MAX_VALUES", "SCHEMA", "read_table", "table_sha256", "write_table"]

MAX_FILE_BYTES: Final = 256 * 2**20
MAX_ROWS: Final = 2_000_000
MAX_VALUES: Final = 100_000_000

_KEY: Final = b"fedfleet.scenarios"

SCHEMA: Final = pa.schema(
    [
        ("scenario", pa.string()),
        ("region", pa.string()),
        ("drive", pa.string()),
        ("track", pa.string()),
        ("kind", pa.string()),
        ("rate_hz", pa.float32()),
        ("t0_s", pa.float64()),
        ("frames", pa.int16()),
        ("first_frame", pa.int16()),
        ("dx_cm", pa.list_(pa.int32())),
        ("dy_cm", pa.list_(pa.int32())),
    ],
    metadata={_KEY: json.dumps({"version": VERSION, "unit": "cm"}, separators=(",", ":")).encode()},
)

_ENCODING: Final[dict[str, Any]] = {
    "use_dictionary": [
        "scenario",
        "region",
        "drive",
        "track",
        "kind",
        "rate_hz",
        "t0_s",
        "frames",
        "first_frame",
    ],
    "column_encoding": {
        "dx_cm.list.element": "DELTA_BINARY_PACKED",
        "dy_cm.list.element": "DELTA_BINARY_PACKED",
    },
    "write_statistics": False,
}


def write_table(path: Path, scenarios: Iterable[Scenario]) -> str:
    """Write the table sorted, through a temporary file that replaces `path`; return its table hash.

    Coordinates are rounded to centimetres. Raises ScenarioError for two scenarios of the same name and
    drive; after any failure `path` is as it was.
    """
    ordered = list(rows(scenarios))
    table = pa.table(
        {field.name: _column(field, [getattr(row, field.name) for row in ordered]) for field in SCHEMA},
        schema=SCHEMA,
    )
    temporary = path.with_name(path.name + ".part")
    try:
        pq.write_table(table, temporary, compression="zstd", compression_level=19, **_ENCODING)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return digest(ordered)


def read_table(path: Path, *, drives: Collection[str] | None = None) -> list[Scenario]:
    """Scenarios of one file in table order, all of them or only those of the named drives.

    The whole file is checked either way: size, schema, version, then values. Raises ScenarioError naming
    file, row and track, what was expected and what was found.
    """
    columns = _columns(path, _load(path))
    columns.check()
    return list(columns.scenarios(drives))


def _column(field: pa.Field, values: list[Any]) -> pa.Array:
    if not pa.types.is_list(field.type):
        return pa.array(values, type=field.type)
    flat = np.concatenate([*values, np.empty(0, dtype=np.int32)])
    offsets = np.cumsum([0, *(len(v) for v in values)], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat, mask=flat == NULL))


def _load(path: Path) -> pa.Table:
    """Check size, footer, schema and version before any column is read."""
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ScenarioError(
                "file-too-large", f"{path} is {size / 1e6:.1f} MB, limit {MAX_FILE_BYTES / 1e6:.1f} MB"
            )
        with contextlib.closing(pq.ParquetFile(path)) as file:
            _check_footer(path, file)
            return file.read()
    except FileNotFoundError:
        raise ScenarioError("no-such-file", f"{path} does not exist") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        text = f"{path}: expected a Parquet file, got: {str(error).splitlines()[0]:.160}"
        raise ScenarioError("not-parquet", text) from None


def _check_footer(path: Path, file: pq.ParquetFile) -> None:
    raw = (file.metadata.metadata or {}).get(_KEY)
    if raw is None:
        text = f"{path} is Parquet without metadata {_KEY.decode()!r}, expected a fedfleet scenario table"
        raise ScenarioError("not-a-scenario-table", text)
    try:
        version = json.loads(raw)["version"]
    except (ValueError, KeyError, TypeError):
        version = raw[:40]
    if version != VERSION or isinstance(version, bool):
        raise ScenarioError("unknown-version", f"{path}: expected table version {VERSION}, got {version!r}")
    got = {field.name: str(field.type).replace("element:", "item:") for field in file.schema_arrow}
    for field in SCHEMA:
        if field.name not in got:
            raise ScenarioError(
                "missing-column", f"{path}: expected column {field.name!r}, got {', '.join(got)}"
            )
        if got[field.name] != str(field.type):
            text = f"{path}: column {field.name!r} must be {field.type}, got {got[field.name]}"
            raise ScenarioError("wrong-column-type", text)
    rows, values = file.metadata.num_rows, _value_count(file.metadata)
    if rows > MAX_ROWS or values > MAX_VALUES:
        text = (
            f"{path} has {rows} rows and {values} positions, limit {MAX_ROWS} rows and {MAX_VALUES} positions"
        )
        raise ScenarioError("table-too-large", text)


def _value_count(metadata: pq.FileMetaData) -> int:
    """Largest number of values that any column holds, over all row groups."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    return max((sum(g.column(c).num_values for g in groups) for c in range(metadata.num_columns)), default=0)


def _columns(path: Path, table: pa.Table) -> Columns:
    for name in SCHEMA.names:
        if table[name].null_count:
            row = table[name].is_null().to_pylist().index(True)
            raise ScenarioError("missing-value", f"{path} row {row}: {name} is null, expected a value")
    return Columns(
        path,
        names={name: table[name].to_pylist() for name in NAMES},
        numbers={name: table[name].to_numpy() for name in ("rate_hz", "t0_s", "frames", "first_frame")},
        lists={name: _flatten(table[name]) for name in ("dx_cm", "dy_cm")},
    )


def _flatten(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Offsets int64[rows + 1] and values int64[entries] of a list column, null as -2^31."""
    lengths = column.combine_chunks().value_lengths().to_numpy(zero_copy_only=False)
    values = [chunk.flatten().fill_null(NULL).to_numpy(zero_copy_only=False) for chunk in column.chunks]
    flat = np.concatenate([*values, np.empty(0, dtype=np.int32)]).astype(np.int64)
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), flat
