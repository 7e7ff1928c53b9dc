"""Text of recordings as UTF-8 without a byte order mark, whatever editor or tool wrote it: one opener for all readers.

May live here: encodings, and text that was packed as a whole (`.gz`, `.zst`), piece by piece and within limits. What
the text says is its reader's business.
"""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from fedfleet.scenarios.records import ScenarioError

__all__ = ["MAX_RATIO", "is_packed", "open_text", "utf8", "without_packing"]

MAX_RATIO: Final = 200
"""Text of recordings packs 5 to 10 times; what unpacks to more than this is not one of recordings."""
_SLACK_BYTES: Final = 2**20
_PIECE: Final = 65536
_PACKED_PIECE: Final = 1024
"""So little is unpacked at once: a frame of Zstandard may unpack to 32,768 times its size."""
_MARKS: Final = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_PACKED: Final = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd", ".zstd": b"\x28\xb5\x2f\xfd"}


def is_packed(name: str) -> bool:
    """Whether a name says that its file was packed as a whole."""
    return name.lower().endswith(tuple(_PACKED))


def without_packing(name: str) -> str:
    """The name before it was packed: `a.csv` of `a.csv.gz`."""
    return name[: name.rindex(".")] if is_packed(name) else name


def utf8(data: bytes, where: str) -> bytes:
    """The text as UTF-8 without a mark; ScenarioError for bytes that are not of the encoding that their mark names."""
    encoding, mark = _encoding(data[:4])
    if encoding == "utf-8":
        return data[len(mark) :]
    try:
        return data[len(mark) :].decode(encoding).encode()
    except UnicodeDecodeError as error:
        raise _not_text(where, encoding) from error


def open_text(start: Callable[[], BinaryIO], where: str, size_bytes: int) -> BinaryIO:
    """A file of that size as `utf8` would have it, unpacked where its name says so, read piece by piece.

    Reading raises ScenarioError for what is damaged, is not of its encoding, or unpacks to more than MAX_RATIO times.
    """
    file = start()
    if is_packed(where):
        file = _buffered(_Unpacked(file, where, size_bytes))
    first = file.read(4)
    encoding, mark = _encoding(first)
    rest = first[len(mark) :]
    if encoding == "utf-8":
        return _buffered(_Joined(rest, file))
    return _buffered(_Recoded(_Joined(rest, file), where, encoding))


def _encoding(first: bytes) -> tuple[str, bytes]:
    """The encoding and the mark that says so; text of two bytes a letter is told without one."""
    for mark, encoding in _MARKS:
        if first.startswith(mark):
            return encoding, mark
    if len(first) == 4 and first[1] == first[3] == 0 and first[0] and first[2]:
        return "utf-16-le", b""
    if len(first) == 4 and first[0] == first[2] == 0 and first[1] and first[3]:
        return "utf-16-be", b""
    return "utf-8", b""


def _not_text(where: str, encoding: str) -> ScenarioError:
    return ScenarioError("bad-encoding", f"{where}: begins as {encoding.upper()} text, and does not go on so")


def _buffered(raw: io.RawIOBase) -> BinaryIO:
    return cast("BinaryIO", io.BufferedReader(raw, _PIECE))


class _Pieces(io.RawIOBase):
    """A file that is made piece by piece: `_next` gives one, nothing at the end."""

    def __init__(self, file: Any) -> None:  # noqa: ANN401 - anything with read and close
        self._file, self._left = file, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - a buffer
        if not self._left:
            self._left = self._next()
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()

    def _next(self) -> bytes:
        raise NotImplementedError


class _Joined(_Pieces):
    """What was read already, then the rest of the file."""

    def __init__(self, before: bytes, file: BinaryIO) -> None:
        super().__init__(file)
        self._left = before

    def _next(self) -> bytes:
        return bytes(self._file.read(_PIECE))


class _Recoded(_Pieces):
    """Text of another encoding as UTF-8."""

    def __init__(self, file: io.RawIOBase, where: str, encoding: str) -> None:
        super().__init__(file)
        self._where, self._encoding = where, encoding
        self._decoder = codecs.getincrementaldecoder(encoding)()

    def _next(self) -> bytes:
        while True:
            data = self._file.read(_PIECE)
            try:
                text = self._decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                raise _not_text(self._where, self._encoding) from error
            if text or not data:
                return text.encode()


class _Unpacked(_Pieces):
    """What a packed file holds, as long as it is not more than MAX_RATIO times its size."""

    def __init__(self, file: BinaryIO, where: str, size_bytes: int) -> None:
        super().__init__(file)
        self._where, self._made = where, 0
        self._limit = MAX_RATIO * size_bytes + _SLACK_BYTES
        self._unpacking = self._begin(where)

    def _begin(self, where: str) -> Any:  # noqa: ANN401 - anything with read
        if Path(where).suffix.lower() == ".gz":
            return gzip.GzipFile(fileobj=self._file, mode="rb")
        return _Zstandard(self._file)

    def _next(self) -> bytes:
        import zstandard

        try:
            data = bytes(self._unpacking.read(_PIECE))
        except (zlib.error, EOFError, OSError, zstandard.ZstdError) as error:
            text = f"{self._where}: cannot be unpacked: it is damaged or cut"
            raise ScenarioError("damaged-member", text) from error
        self._made += len(data)
        if self._made > self._limit:
            raise ScenarioError("zip-bomb", f"{self._where}: unpacks to more than {MAX_RATIO} times its size")
        return data


class _Zstandard:
    """Frames of Zstandard one after the other; EOFError where the last is cut, which the library would not tell."""

    def __init__(self, file: BinaryIO) -> None:
        import zstandard

        self._file, self._rest = file, b""
        self._new = zstandard.ZstdDecompressor(max_window_size=2**27).decompressobj
        self._frame = self._new()
        self._is_begun = False

    def read(self, _size: int) -> bytes:
        """What the next piece holds; nothing at the end."""
        while True:
            piece = self._rest or self._file.read(_PACKED_PIECE)
            self._rest = b""
            if not piece:
                if self._is_begun:
                    raise EOFError("the last frame is cut")
                return b""
            data = bytes(self._frame.decompress(piece))
            self._is_begun = not self._frame.eof
            if self._frame.eof:
                self._rest, self._frame = self._frame.unused_data, self._new()
            if data:
                return data
