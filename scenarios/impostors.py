"""What a file is that is no recording, although it lies among them: told from its name and its first bytes, in words.

May live here: what downloads, version control and other tools put in a recording's place. A reader never needs it: it
is asked when a file was refused, or when nobody claims it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

__all__ = ["Verdict", "by_content", "by_name"]

Verdict = tuple[str, str]
"""Reason (kebab-case), and what to do in words."""

_LOOKED_AT: Final = 4096
_NOTE_BYTES: Final = 1024
_ANNEX: Final = re.compile(rb"(?:\.\./)*(?:\.git)?/?annex/objects/")
_HTML: Final = re.compile(
    rb"\s*(?:<\?xml[^>]*\?>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body)\b",
    re.IGNORECASE | re.DOTALL,
)
_BY_ENDING: Final[tuple[tuple[tuple[str, ...], Verdict], ...]] = (
    ((".bag",), ("ros1-bag", "is a ROS 1 bag, which is not read: convert it to MCAP (rosbags-convert)")),
    (
        (".active",),
        ("unfinished", "is unfinished, its recorder did not close it: recover it (mcap recover) first"),
    ),
    (
        (".part", ".crdownload", ".download", ".partial", ".filepart", ".aria2", ".tmp"),
        ("unfinished", "is an unfinished download or copy: fetch it again"),
    ),
    (
        (".gz", ".zst", ".zstd", ".xz", ".bz2", ".lz4", ".lzma"),
        ("packed", "is packed as a whole, which is not read for this format: unpack it first"),
    ),
    (
        (".tar", ".tgz", ".tbz2", ".txz", ".7z", ".rar"),
        ("packed", "is an archive of a kind that is not read: unpack it first"),
    ),
    ((".dvc",), ("not-fetched", "is DVC's note of a file that is not here: fetch it (dvc pull)")),
    ((".xlsx", ".xls", ".ods"), ("spreadsheet", "is a spreadsheet: save it as CSV")),
    ((".avi", ".mp4", ".mkv", ".mov"), ("video", "is a video, which no reader takes")),
)
_BY_CONTENT: Final[tuple[tuple[Callable[[bytes], object], Verdict], ...]] = (
    (lambda start: not start, ("empty-file", "is empty: 0 bytes")),
    (
        lambda start: start.startswith(b"version https://git-lfs.github.com/spec/"),
        ("not-fetched", "is git LFS's note of a file that is not here: fetch it (git lfs pull)"),
    ),
    (
        lambda start: len(start) < _NOTE_BYTES and _ANNEX.match(start),
        ("not-fetched", "is git-annex's note of a file that is not here: fetch it (git annex get)"),
    ),
    (
        lambda start: _HTML.match(start.removeprefix(b"\xef\xbb\xbf")),
        ("web-page", "is a web page, perhaps of a login: download the file itself"),
    ),
    (
        lambda start: len(start) == _LOOKED_AT and not start.strip(b"\0"),
        ("only-zeros", "begins with nothing but zero bytes: its copy was cut off"),
    ),
)


def by_content(path: Path) -> Verdict | None:
    """What stands in the place of a recording: nothing, a web page, a note of a file to be fetched; else None."""
    try:
        with path.open("rb") as file:
            start = file.read(_LOOKED_AT)
    except OSError as error:
        return "unreadable", f"cannot be opened: {error.strerror}"
    return next((verdict for looks_so, verdict in _BY_CONTENT if looks_so(start)), None)


def by_name(path: Path) -> Verdict | None:
    """What the name alone tells; None for one that tells nothing."""
    name = path.name.lower()
    return next((verdict for endings, verdict in _BY_ENDING if name.endswith(endings)), None)
