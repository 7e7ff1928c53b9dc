"""CSV files of tracks, read block by block: however large a file is, memory holds one block and what was kept of it.

May live here: what every table of text meets: delimiter, columns, numbers. What they mean is the reader's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
from numpy.typing import NDArray

from fedfleet.scenarios.members import HEAD_BYTES, Stream
from fedfleet.scenarios.records import ScenarioError

__all__ = ["BLOCK_BYTES", "MAX_ROWS", "Block", "Names", "blocks", "collect", "header"]

BLOCK_BYTES: Final = 4 * 2**20
MAX_ROWS: Final = 50_000_000
"""Rows kept of one drive: 10 hours of 56 vehicles at 25 Hz."""
_TYPES: Final = {"text": pa.dictionary(pa.int32(), pa.string()), "number": pa.float64(), "whole": pa.int64()}
_OTHERS: Final = (";", "\t", "|")


@dataclass
class Names:
    """Texts numbered as they come, over all blocks of a file."""

    numbers: dict[str, int] = field(default_factory=dict)

    def codes(self, column: tuple[NDArray[np.int64], list[str]]) -> NDArray[np.int64]:
        """The number of each text of a block's column."""
        places, texts = column
        known = [self.numbers.setdefault(text, len(self.numbers)) for text in texts]
        return np.asarray(known, dtype=np.int64)[places]


@dataclass(frozen=True)
class Block:
    """Consecutive rows: number columns as arrays, text columns as (place of each row, texts); `line` is the first's."""

    line: int
    numbers: Mapping[str, NDArray[Any]]
    texts: Mapping[str, tuple[NDArray[np.int64], list[str]]]


def header(stream: Stream) -> list[str]:
    """The names in the first line."""
    with stream.open() as file:
        line = file.read(HEAD_BYTES).partition(b"\n")[0]
    return [name.strip().strip('"') for name in line.decode("utf-8-sig", errors="replace").strip().split(",")]


def blocks(stream: Stream, columns: Mapping[str, str], *, block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """The wanted columns ("text", "number" = float64, "whole" = int64) of a file, block by block.

    Raises ScenarioError naming file and line for another delimiter, a missing column, a row of another width, what is
    no number, an empty cell or a NaN.
    """
    _check_header(stream, columns)
    line = 2
    try:
        with stream.open() as file:
            for batch in _open(file, columns, block_bytes):
                yield _block(batch, columns, stream.where, line)
                line += batch.num_rows
    except (pa.ArrowException, ValueError, OSError, EOFError) as error:
        text = f"{stream.where} after line {line - 1}: expected rows of numbers: {str(error).splitlines()[0][:160]}"
        raise ScenarioError("malformed-csv", text) from error


def collect(
    stream: Stream,
    columns: Mapping[str, str],
    names: Mapping[str, Names],
    *,
    keep: Callable[[Block], NDArray[np.bool_]] | None = None,
) -> dict[str, NDArray[Any]]:
    """The wanted columns of all rows, or of those to keep; of texts their numbers in `names`.

    Raises ScenarioError as `blocks`, and for more than MAX_ROWS rows.
    """
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in columns}
    rows = 0
    for block in blocks(stream, columns):
        mask = None if keep is None else keep(block)
        if mask is not None and not mask.any():
            continue
        for name, kind in columns.items():
            values = names[name].codes(block.texts[name]) if kind == "text" else block.numbers[name]
            parts[name].append(values.copy() if mask is None else values[mask])
        rows += len(values)
        if rows > MAX_ROWS:
            raise ScenarioError("table-too-large", f"{stream.where}: more than {MAX_ROWS} rows of one drive")
    empty = {"text": np.int64, "whole": np.int64, "number": np.float64}
    return {
        name: np.concatenate([np.empty(0, dtype=empty[columns[name]]), *each]) for name, each in parts.items()
    }


def _open(file: BinaryIO, columns: Mapping[str, str], block_bytes: int) -> pc.CSVStreamingReader:
    return pc.open_csv(
        pa.PythonFile(file, mode="r"),
        read_options=pc.ReadOptions(use_threads=False, block_size=block_bytes),
        convert_options=pc.ConvertOptions(
            column_types={name: _TYPES[kind] for name, kind in columns.items()},
            include_columns=list(columns),
            strings_can_be_null=True,
        ),
    )


def _check_header(stream: Stream, columns: Mapping[str, str]) -> None:
    names = header(stream)
    shown = ",".join(names)[:120]
    other = next(
        (mark for mark in _OTHERS if len(names) < 3 and shown.count(mark) >= max(len(columns) - 1, 1)), None
    )
    if other is not None:
        raise ScenarioError("wrong-delimiter", f"{stream.where}: expected commas, got {other!r} in {shown!r}")
    missing = [name for name in columns if names.count(name) != 1]
    if missing:
        text = f"{stream.where}: expected column {missing[0]} once, got {shown!r}"
        raise ScenarioError("missing-column", text)


def _block(batch: pa.RecordBatch, columns: Mapping[str, str], where: str, line: int) -> Block:
    numbers: dict[str, NDArray[Any]] = {}
    texts: dict[str, tuple[NDArray[np.int64], list[str]]] = {}
    for name, kind in columns.items():
        column = batch.column(name)
        if column.null_count:
            row = line + column.is_null().to_pylist().index(True)
            raise ScenarioError("nan-value", f"{where} line {row}: expected a {name}, got none")
        if kind == "text":
            texts[name] = column.indices.to_numpy().astype(np.int64), column.dictionary.to_pylist()
            continue
        numbers[name] = values = column.to_numpy(zero_copy_only=False)
        bad = ~np.isfinite(values)
        if bad.any():
            row = line + int(bad.argmax())
            raise ScenarioError(
                "nan-value", f"{where} line {row}: expected a finite {name}, got {values[bad][0]}"
            )
    return Block(line, numbers, texts)
