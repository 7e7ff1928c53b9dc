"""CSV files of tracks, read block by block: however large a file is, memory holds one block and what was kept of it.

May live here: what every table of text meets: delimiter, columns, numbers. What they mean is the reader's business.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv as pc
from numpy.typing import NDArray

from fedfleet.scenarios.csv_dialect import Dialect, dialect_of, whole_text
from fedfleet.scenarios.members import HEAD_BYTES, Stream
from fedfleet.scenarios.records import ScenarioError

__all__ = ["BLOCK_BYTES", "MAX_ROWS", "Block", "Names", "blocks", "collect", "dialect", "table"]

BLOCK_BYTES: Final = 4 * 2**20
MAX_ROWS: Final = 50_000_000
"""Rows kept of one drive: 10 hours of 56 vehicles at 25 Hz."""
MAX_WHOLE: Final = 2**53
"""Whole numbers are read as float64, since spreadsheets and libraries write 2 as 2.0; up to here that is exact."""
_TEXT: Final = pa.dictionary(pa.int32(), pa.string())
_TYPES: Final = {"text": _TEXT, "id": _TEXT, "number": pa.float64(), "whole": pa.float64()}
_BAD_CELL: Final = re.compile(
    r"In CSV column #(\d+): (?:Row #(\d+): )?CSV conversion error to \w+.*?: invalid value '(.*)'", re.DOTALL
)
_BAD_ROW: Final = re.compile(r"(?:Row #(\d+): )?Expected (\d+) columns, got (\d+)")


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


def dialect(stream: Stream) -> Dialect:
    """How a file is written, and its columns."""
    with stream.text() as file:
        return dialect_of(file.read(HEAD_BYTES), stream.where)


def blocks(stream: Stream, columns: Mapping[str, str], *, block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """The wanted columns ("text", "id" = text, "number" = float64, "whole" = int64) of a file, block by block.

    Names are found in letters of any case; rows without a single cell are passed over. Raises ScenarioError naming file
    and line for a missing column, a row of another width, what is no number, an empty cell or a NaN.
    """
    written = dialect(stream)
    places = written.columns(columns)
    if not written.has_rows:
        return
    line = written.head_lines + 1
    try:
        with stream.text() as file:
            file.read(written.head_bytes)
            for batch in _open(
                file, written, {places[name]: kind for name, kind in columns.items()}, block_bytes
            ):
                yield _block(batch, columns, stream.where, line)
                line += batch.num_rows
    except (pa.ArrowException, ValueError, OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise ScenarioError("malformed-csv", f"{stream.where}{_words(error, written, line)}") from error


def table(data: bytes, where: str, columns: Mapping[str, str]) -> pa.Table:
    """The wanted columns of a small file that is text as `Member.text` gives it; empty cells are null.

    Raises ScenarioError as `blocks`, but for empty cells and NaN.
    """
    written = dialect_of(data[:HEAD_BYTES], where)
    places = written.columns(columns)
    body = data[written.head_bytes :]
    if not written.has_rows:
        return pa.table({name: pa.array([], _TYPES[kind]) for name, kind in columns.items()})
    options = pc.ReadOptions(
        # One block: a row is never longer than the file, and pyarrow starts no thread.
        use_threads=False,
        block_size=len(body) + 1,
        column_names=_unique(written),
    )
    try:
        found = pc.read_csv(
            pa.BufferReader(body),
            read_options=options,
            parse_options=pc.ParseOptions(delimiter=written.delimiter),
            convert_options=_convert(written, {places[name]: kind for name, kind in columns.items()}),
        )
    except (pa.ArrowException, ValueError) as error:
        words = _words(error, written, written.head_lines + 1)
        raise ScenarioError("malformed-csv", f"{where}{words}") from error
    return _with_cells(found.rename_columns(list(columns)))


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
        for name in columns:
            values = names[name].codes(block.texts[name]) if name in block.texts else block.numbers[name]
            parts[name].append(values.copy() if mask is None else values[mask])
        rows += len(values)
        if rows > MAX_ROWS:
            raise ScenarioError("table-too-large", f"{stream.where}: more than {MAX_ROWS} rows of one drive")
    empty = {"text": np.int64, "id": np.int64, "whole": np.int64, "number": np.float64}
    return {
        name: np.concatenate([np.empty(0, dtype=empty[columns[name]]), *each]) for name, each in parts.items()
    }


def _open(
    file: BinaryIO, written: Dialect, kinds: Mapping[int, str], block_bytes: int
) -> pc.CSVStreamingReader:
    return pc.open_csv(
        pa.PythonFile(file, mode="r"),
        read_options=pc.ReadOptions(use_threads=False, block_size=block_bytes, column_names=_unique(written)),
        parse_options=pc.ParseOptions(delimiter=written.delimiter),
        convert_options=_convert(written, kinds),
    )


def _unique(written: Dialect) -> list[str]:
    return [str(place) for place in range(len(written.names))]


def _convert(written: Dialect, kinds: Mapping[int, str]) -> pc.ConvertOptions:
    return pc.ConvertOptions(
        column_types={str(place): _TYPES[kind] for place, kind in kinds.items()},
        include_columns=[str(place) for place in kinds],
        strings_can_be_null=True,
        decimal_point=written.decimal,
    )


def _words(error: Exception, written: Dialect, line: int) -> str:
    """What is wrong with a cell or a row, in our words; `line` is that of the first row of the block."""
    text = str(error)
    if found := _BAD_CELL.search(text):
        at = f" line {line - 1 + int(found[2])}" if found[2] else f" after line {line - 1}"
        return f"{at}: expected a number of {written.names[int(found[1])]}, got {found[3]!r:.60}"
    if found := _BAD_ROW.search(text):
        at = f" line {line - 1 + int(found[1])}" if found[1] else f" after line {line - 1}"
        return f"{at}: expected {found[2]} cells, got {found[3]}"
    if "UTF8" in text or "utf-8" in text:
        return f" after line {line - 1}: expected UTF-8 text, got other bytes: save it as UTF-8"
    return f" after line {line - 1}: expected whole rows of cells with {written.delimiter!r} between, up to its end"


def _with_cells(found: Any) -> Any:  # noqa: ANN401 - a table or a batch of pyarrow, which has no types
    """Those rows that have a cell at all: spreadsheets add empty ones at the end."""
    if not found.num_rows or any(not column.null_count for column in found.columns):
        return found
    some = pa.compute.is_valid(found.column(0))
    for column in found.columns[1:]:
        some = pa.compute.or_(some, pa.compute.is_valid(column))
    return found.filter(some)


def _block(batch: pa.RecordBatch, columns: Mapping[str, str], where: str, line: int) -> Block:
    numbers: dict[str, NDArray[Any]] = {}
    texts: dict[str, tuple[NDArray[np.int64], list[str]]] = {}
    batch = _with_cells(batch)
    for place, (name, kind) in enumerate(columns.items()):
        column = batch.column(place)
        if column.null_count:
            row = line + column.is_null().to_pylist().index(True)
            raise ScenarioError("nan-value", f"{where} line {row}: expected a {name}, got none")
        if kind in ("text", "id"):
            found = column.dictionary.to_pylist()
            listed = [whole_text(each) for each in found] if kind == "id" else found
            texts[name] = column.indices.to_numpy().astype(np.int64), listed
            continue
        numbers[name] = values = column.to_numpy(zero_copy_only=False)
        bad = ~np.isfinite(values)
        if bad.any():
            row = line + int(bad.argmax())
            raise ScenarioError(
                "nan-value", f"{where} line {row}: expected a finite {name}, got {values[bad][0]}"
            )
        if kind == "whole":
            numbers[name] = _whole(values, f"{where} line", name, line)
    return Block(line, numbers, texts)


def _whole(values: NDArray[np.float64], where: str, name: str, line: int) -> NDArray[np.int64]:
    bad = np.asarray((values != np.rint(values)) | (np.abs(values) > MAX_WHOLE))
    if bad.any():
        row = line + int(bad.argmax())
        text = f"{where} {row}: expected a whole {name} up to 2^53, got {float(values[bad][0])!r}"
        raise ScenarioError("malformed-csv", text)
    return values.astype(np.int64)
