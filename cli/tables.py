"""Tables of commands: with borders on a terminal, as plain aligned columns in a pipe or a file."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from rich.table import Table

from fedfleet.cli.terminal import Terminal
from fedfleet.protocol.printable import printable

__all__ = ["Column", "ago", "figure", "kilobytes", "moment", "show"]


@dataclass(frozen=True)
class Column:
    """A heading; numbers stand to the right."""

    heading: str
    is_number: bool = False


def show(console: Terminal, title: str, columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; without a terminal a heading and lines in which nothing is cut off."""
    found = [[printable(cell) for cell in row] for row in rows]
    if console.is_terminal:
        view = Table(title=title, expand=False)
        for column in columns:
            view.add_column(printable(column.heading), justify="right" if column.is_number else "left")
        for row in found:
            view.add_row(*row)
        console.print(view)
        return
    lines = [[printable(column.heading) for column in columns], *found]
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
    for line in lines:
        cells = [
            text.rjust(width) if column.is_number else text.ljust(width)
            for text, width, column in zip(line, widths, columns, strict=True)
        ]
        console.say("  ".join(cells).rstrip())


def figure(value: float | None, digits: int = 2) -> str:
    """Return a number, or a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def kilobytes(size: float | None) -> str:
    """Return a size in kB, or a dash."""
    return "–" if size is None else f"{size / 1000:.1f}"


def moment(at_s: float | None) -> str:
    """Return a time in UTC, or a dash."""
    return "–" if not at_s else datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S")


def ago(at_s: float | None, now_s: float) -> str:
    """Return how long ago something was, in its largest unit; a dash for never."""
    if not at_s:
        return "–"
    seconds = max(0.0, now_s - at_s)
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
