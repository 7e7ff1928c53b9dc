"""The one way to the terminal: text is shown, never obeyed, whoever wrote it."""

import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.text import Text

from fedfleet.protocol.printable import printable

__all__ = ["Terminal", "survive_encodings"]


class Terminal(Console):
    """A console for which strings are text: no markup, no emoji codes, no control characters, in tables neither.

    Our own style is given as `Text` or by a column's style.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **how: Any) -> Text:  # noqa: ANN401 - Rich's own options
        """Return the string as text that shows all of itself; line breaks stay, for the cells of a table."""
        return super().render_str(printable(text, keep="\n"), **{**how, "markup": False, "emoji": False})

    def say(self, text: str, *, mark: str = "", style: str = "bold") -> None:
        """Print one line, however long, after a mark of our own in this style."""
        parts = [(f"{mark} ", style)] if mark else []
        self.print(Text.assemble(*parts, printable(text)), soft_wrap=True)

    def say_all(self, lines: Iterable[str]) -> None:
        """Print these lines."""
        for line in lines:
            self.say(line)


def survive_encodings() -> None:
    """Let a terminal or pipe that cannot show a character show its escape instead of ending the command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
