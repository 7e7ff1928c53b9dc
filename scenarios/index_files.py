"""Index files beside recordings: which scenario belongs to which drive, for formats whose files do not tell.

Several formats have an index of that name. A reader takes `index-FORMAT.csv`, or an `index.csv` whose columns are its
own; it speaks for the recordings in its folder and below, the nearest one first.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from fedfleet.scenarios.csv_dialect import dialect_of
from fedfleet.scenarios.members import HEAD_BYTES, head
from fedfleet.scenarios.records import ScenarioError
from fedfleet.scenarios.text import utf8
from fedfleet.scenarios.tree import INDEX_NAME, Tree

__all__ = ["find_indexes", "index_rows", "nearest"]

MAX_INDEX_BYTES: Final = 128 * 2**20
_ENOUGH: Final = 2


def find_indexes(tree: Tree, name: str, columns: Collection[str]) -> list[Path]:
    """The index files of a format: those named for it, and others that have at least two of its columns."""
    found = []
    for path in tree.ending(".csv"):
        if not INDEX_NAME.match(path.name):
            continue
        low = path.name.lower()
        if low == f"index-{name}.csv":
            found.append(path)
        elif low == "index.csv":
            first = head(path, ".csv")
            if first is not None and first.has(columns, _ENOUGH):
                found.append(path)
    return found


def nearest(indexes: Sequence[Path], path: Path) -> Path | None:
    """The index that speaks for a recording: in its folder, or the next one above; one named for the format first."""
    by_folder: dict[Path, Path] = {}
    for index in sorted(indexes, key=lambda each: len(each.name)):
        by_folder[index.parent] = index
    return next((by_folder[above] for above in path.parents if above in by_folder), None)


def index_rows(path: Path, needed: Sequence[str]) -> Iterator[tuple[int, Mapping[str, str]]]:
    """The rows of an index with their line numbers, by column as `needed` spells it; others as the file does.

    Raises ScenarioError for a file that is too large, no CSV, or lacks a column.
    """
    size = path.stat().st_size
    if size > MAX_INDEX_BYTES:
        text = f"{path.name} is {size / 1e6:.1f} MB, limit {MAX_INDEX_BYTES / 1e6:.1f} MB"
        raise ScenarioError("file-too-large", text)
    data = utf8(path.read_bytes(), path.name)
    written = dialect_of(data[:HEAD_BYTES], path.name)
    missing = [name for name in needed if not written.has(name)]
    if missing:
        shown = written.delimiter.join(written.names)[:120]
        raise ScenarioError("missing-column", f"{path.name}: expected column {missing[0]!r}, got {shown!r}")
    places = written.columns(needed)
    others = {name: at for at, name in enumerate(written.names) if name and at not in places.values()}
    try:
        lines = data[written.head_bytes :].decode().splitlines()
        rows = csv.reader(lines, delimiter=written.delimiter, strict=True)
        for cells in rows:
            if "".join(cells).strip():
                row = {
                    name: cells[at].strip() if at < len(cells) else ""
                    for name, at in {**others, **places}.items()
                }
                yield written.head_lines + rows.line_num, row
    except (csv.Error, UnicodeDecodeError) as error:
        text = f"{path.name}: expected a CSV of one scenario a row, got other text in it"
        raise ScenarioError("malformed-csv", text) from error
