"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fedfleet.cli.terminal import Terminal
from fedfleet.protocol.printable import printable

__all__ = ["Report", "steps"]

Report = Callable[[int, int, str], None]
"""Called with (done, total, what is being done now)."""


@contextmanager
def steps(title: str, console: Terminal | None = None) -> Iterator[Report]:
    """Give a function that shows progress for as long as the block runs."""
    shown = console or Terminal(stderr=True)
    if not shown.is_terminal:
        yield lambda done, total, text: shown.say(f"{title}: {done}/{total} {text}")
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=shown) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total, text: bar.update(
            task, completed=done, total=total, description=f"{title}: {printable(text)}"
        )
