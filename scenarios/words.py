"""What went wrong inside a library, in words of ours: whoever reads them has a file in mind, not our libraries.

May live here: errors that more than one reader meets. The caller says which file, and what was expected of it.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from typing import Any, Final

__all__ = ["in_words"]

_FLOAT: Final = re.compile(
    r"could not convert string to float: (?:b|np\.bytes_\(b|np\.str_\()?(.{1,60})", re.DOTALL
)
_BY_TEXT: Final = (
    ("magic", "its first or last bytes are not those of the format"),
    ("not a database", "it is no SQLite file"),
    ("no such table", "its tables are not those of a bag"),
    ("no such column", "its tables are not those of a bag"),
    ("malformed", "its pages are damaged"),
    ("crc", "a checksum is another"),
    ("checksum", "a checksum is another"),
    ("exceeds limit", "one of its records is larger than is read"),
    ("unsupported compression", "it is packed in an unknown way"),
    ("no element found", "it ends too early"),
    ("unpack requires", "it ends too early"),
    ("utf-8", "its text is not UTF-8"),
    ("encoding", "its text is not of the encoding that it names"),
)


def in_words(error: Exception) -> str:
    """One short clause: where it can be told what, else that the bytes are damaged."""
    for kind, tell in _BY_TYPE:
        if isinstance(error, kind):
            return tell(error)
    if type(error).__name__ == "EndOfFile":
        return "it ends too early"
    text = str(error)
    if number := _FLOAT.search(text):
        return f"expected a number, got {number[1]}"
    low = text.lower()
    known = next((words for mark, words in _BY_TEXT if mark in low), None)
    if known is not None:
        return known
    return (
        text if hasattr(error, "position") else "its bytes are damaged"
    )  # of XML: "mismatched tag: line 1, column 8"


_BY_TYPE: Final[tuple[tuple[Any, Callable[[Any], str]], ...]] = (
    (json.JSONDecodeError, lambda error: f"line {error.lineno} column {error.colno} is not as JSON must be"),
    (UnicodeDecodeError, lambda _: "its text is not UTF-8"),
    (
        KeyError,
        lambda error: f"it has no {error.args[0]!r:.60}" if error.args else "something is missing in it",
    ),
    (RecursionError, lambda _: "it is nested too deeply"),
    (MemoryError, lambda _: "it asks for more memory than there is"),
    ((EOFError, struct.error, IndexError), lambda _: "it ends too early"),
    ((TypeError, AttributeError), lambda _: "a value in it is of another kind than it must be"),
)
