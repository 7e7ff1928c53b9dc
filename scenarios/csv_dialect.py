"""How a CSV file is written: its columns, what stands between cells and its decimal mark, from its first bytes.

May live here: what spreadsheets and libraries do to a table on the way (semicolons, decimal commas, quotes, a `sep=`
line, empty columns at the end, another case of letters). What the columns mean is the reader's business.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from fedfleet.scenarios.records import ScenarioError

__all__ = ["Dialect", "dialect_of", "whole_text"]

MAX_COLUMNS: Final = 10_000
_MARKS: Final = (",", ";", "\t", "|")
_SEP: Final = re.compile(r'"?sep=.{1,2}"?\Z', re.IGNORECASE)
_COMMA: Final = re.compile(r"-?\d+,\d+(?:[eE][+-]?\d+)?\Z")
_DOT: Final = re.compile(r"-?\d*\.\d+(?:[eE][+-]?\d+)?\Z")
_WHOLE: Final = re.compile(r"\d{1,15}\.0*\Z|\d\.\d{0,15}[eE]\+?\d{1,2}\Z")
_ROWS_LOOKED_AT: Final = 50


@dataclass(frozen=True)
class Dialect:
    """Of a CSV file: names of columns ("" where there is none), marks, the bytes and lines before the first row."""

    where: str
    names: tuple[str, ...]
    delimiter: str
    decimal: str
    head_bytes: int
    head_lines: int
    has_rows: bool

    def columns(self, wanted: Iterable[str]) -> Mapping[str, int]:
        """The place of each wanted column, whatever the case of its letters.

        Raises ScenarioError for one that is not there, or not once.
        """
        low = [name.lower() for name in self.names]
        found = {}
        for name in wanted:
            exact = [at for at, each in enumerate(self.names) if each == name]
            places = exact or [at for at, each in enumerate(low) if each == name.lower()]
            if len(places) != 1:
                shown = self.delimiter.join(self.names)[:120]
                text = f"{self.where}: expected column {name} once, got {shown!r}"
                raise ScenarioError("missing-column", text)
            found[name] = places[0]
        return found

    def has(self, name: str) -> bool:
        """Whether there is such a column."""
        return name.lower() in (each.lower() for each in self.names)


def dialect_of(start: bytes, where: str) -> Dialect:
    """Tell it from the first bytes of UTF-8 text without a mark; ScenarioError for a header that is none."""
    lines = start.splitlines(keepends=True)
    at = 0
    while at < len(lines) and (not lines[at].strip() or _SEP.match(_plain(lines[at]))):
        at += 1
    head = _plain(lines[at]) if at < len(lines) else ""
    delimiter = max(_MARKS, key=lambda mark: (len(_cells(head, mark)), -_MARKS.index(mark)))
    names = [name.strip() for name in _cells(head, delimiter)]
    if len(names) > MAX_COLUMNS:
        raise ScenarioError("malformed-csv", f"{where}: more than {MAX_COLUMNS} columns")
    rest = [
        _plain(line) for line in lines[at + 1 : at + 1 + _ROWS_LOOKED_AT] if line.endswith((b"\n", b"\r"))
    ]
    rows = [_cells(line, delimiter) for line in rest if line.strip(delimiter + " \t")]
    return Dialect(
        where,
        _fitted(names, rows),
        delimiter,
        _decimal(rows, delimiter),
        sum(map(len, lines[: at + 1])),
        at + 1,
        any(line.strip() for line in lines[at + 1 :]),
    )


def whole_text(cell: str) -> str:
    """A name that is a whole number, as it was before a library wrote it as 2.0 or 2.0E+00; others as they are."""
    return str(int(float(cell))) if _WHOLE.match(cell) and float(cell).is_integer() else cell


def _fitted(names: list[str], rows: list[list[str]]) -> tuple[str, ...]:
    """The names, as many as the rows have cells, where only empty cells at the end make the difference."""
    widths = {len(row) for row in rows}
    if len(widths) == 1:
        (width,) = widths
        if width > len(names) and all(not "".join(row[len(names) :]).strip() for row in rows):
            return (*names, *[""] * (width - len(names)))
        if width < len(names) and not any(names[width:]):
            return tuple(names[:width])
    return tuple(names)


def _decimal(rows: list[list[str]], delimiter: str) -> str:
    """A comma where cells are numbers with one, and none has a dot."""
    cells = [cell.strip() for row in rows for cell in row]
    if delimiter == "," or any(_DOT.match(cell) for cell in cells):
        return "."
    return "," if any(_COMMA.match(cell) for cell in cells) else "."


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return [line]


def _plain(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\r\n")
