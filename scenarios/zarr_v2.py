"""Arrays of a zarr store on disk, version 2 (zarr-specs, "Zarr storage specification version 2"), read by ranges.

One-dimensional arrays of records (a structured dtype), C order, without filters; chunks are raw or Blosc, which
`numcodecs` (extra `[formats]`) unpacks after their size was checked. Memory holds one chunk of an array and what is
asked for.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedfleet.scenarios.records import ScenarioError
from fedfleet.scenarios.words import in_words

__all__ = ["ZarrArray", "attributes", "open_array"]

MAX_META_BYTES: Final = 2**20
MAX_CHUNK_BYTES: Final = 512 * 2**20
MAX_ROWS: Final = 2**40
_BLOSC_HEADER: Final = struct.Struct("<BBBBIII")


@dataclass
class ZarrArray:
    """An array of `rows` records; the last chunk that was read is kept."""

    where: str
    path: Path
    rows: int
    chunk_rows: int
    dtype: np.dtype[Any]
    is_packed: bool
    _last: tuple[int, NDArray[Any]] | None = field(default=None, repr=False)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows `start` up to `stop`; ScenarioError when they are outside, or a chunk is absent or damaged."""
        if not 0 <= start <= stop <= self.rows:
            text = f"{self.where}: expected rows within 0 to {self.rows}, got {start} to {stop}"
            raise ScenarioError("rows-outside", text)
        parts = [np.empty(0, dtype=self.dtype)]
        for number in range(start // self.chunk_rows, -(-stop // self.chunk_rows)):
            base = number * self.chunk_rows
            parts.append(self._chunk(number)[max(start - base, 0) : stop - base])
        return np.concatenate(parts)

    def _chunk(self, number: int) -> NDArray[Any]:
        if self._last is None or self._last[0] != number:
            self._last = number, np.frombuffer(self._bytes(number), dtype=self.dtype)
        return self._last[1]

    def _bytes(self, number: int) -> bytes:
        path, size = self.path / str(number), self.chunk_rows * self.dtype.itemsize
        where = f"{self.where}/{number}"
        try:
            packed_bytes = path.stat().st_size
            if packed_bytes > size + 2**20:
                text = f"{where}: {packed_bytes} bytes, expected at most {size} of a chunk"
                raise ScenarioError("member-too-large", text)
            data = path.read_bytes()
        except FileNotFoundError:
            raise ScenarioError("missing-file", f"{where}: expected a chunk, got none") from None
        if self.is_packed:
            data = _unpacked(data, size, where)
        if len(data) != size:
            raise ScenarioError("damaged-member", f"{where}: expected {size} bytes, got {len(data)}")
        return data


def open_array(folder: Path, where: str) -> ZarrArray:
    """Open an array by its `.zarray`; ScenarioError for what this module does not read."""
    meta = _meta(folder / ".zarray", where)
    try:
        version, order, filters = meta["zarr_format"], meta["order"], meta["filters"]
        (rows,), (chunk_rows,), packer = meta["shape"], meta["chunks"], meta["compressor"]
        dtype = np.dtype([(name, kind, *(map(tuple, shape))) for name, kind, *shape in meta["dtype"]])
        packed = None if packer is None else packer["id"]
        rows, chunk_rows = int(rows), int(chunk_rows)
    except (KeyError, TypeError, ValueError) as error:
        text = f"{where}/.zarray: expected a list of records of version 2: {in_words(error)}"
        raise ScenarioError("unknown-version", text) from error
    if version != 2 or order != "C" or filters or packed not in (None, "blosc") or dtype.hasobject:
        got = f"version {version}, order {order}, filters {filters}, compressor {packed}"
        text = f"{where}/.zarray: expected version 2, order C, no filter, Blosc or nothing, got {got:.120}"
        raise ScenarioError("unknown-version", text)
    if not (0 <= rows <= MAX_ROWS and 0 < chunk_rows * dtype.itemsize <= MAX_CHUNK_BYTES):
        text = (
            f"{where}/.zarray: {rows} rows in chunks of {chunk_rows}, limit {MAX_CHUNK_BYTES} bytes a chunk"
        )
        raise ScenarioError("member-too-large", text)
    return ZarrArray(where, folder, rows, chunk_rows, dtype, packed is not None)


def attributes(folder: Path, where: str) -> dict[str, Any]:
    """The attributes of a group."""
    return _meta(folder / ".zattrs", where)


def _meta(path: Path, where: str) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_META_BYTES:
            raise ScenarioError("file-too-large", f"{where}/{path.name}: above {MAX_META_BYTES} bytes")
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ScenarioError("missing-file", f"{where}: expected {path.name}, got none") from None
    except ValueError as error:
        raise ScenarioError(
            "malformed-json", f"{where}/{path.name}: expected JSON: {in_words(error)}"
        ) from error
    if not isinstance(found, dict):
        raise ScenarioError("malformed-json", f"{where}/{path.name}: expected an object")
    return found


def _unpacked(data: bytes, size: int, where: str) -> bytes:
    """Unpack a Blosc 1 chunk: its 16-byte header tells both sizes (c-blosc, README_CHUNK_FORMAT)."""
    try:
        from numcodecs import blosc
    except ImportError as error:
        text = f"{where}: Blosc chunks need numcodecs: pip install 'fedfleet[formats]'"
        raise ScenarioError("missing-library", text) from error
    if len(data) < _BLOSC_HEADER.size:
        raise ScenarioError("damaged-member", f"{where}: expected a Blosc chunk, got {len(data)} bytes")
    *_, unpacked, _, packed = _BLOSC_HEADER.unpack_from(data)
    if unpacked != size or packed != len(data):
        text = f"{where}: expected {size} bytes in {len(data)}, got a header of {unpacked} in {packed}"
        raise ScenarioError("damaged-member", text)
    try:
        return bytes(blosc.decompress(data))
    except (RuntimeError, ValueError) as error:
        raise ScenarioError("damaged-member", f"{where}: cannot be unpacked: {in_words(error)}") from error
