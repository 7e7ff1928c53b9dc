"""Arrays of numbers in numpy's own file format, checked before anything is allocated; objects are never read.

May live here: the format of numpy/lib/format.py, versions 1 and 2, with plain headers: no structures.
"""

from __future__ import annotations

import math
import re
import struct
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedfleet.scenarios.records import ScenarioError

__all__ = ["array"]

_HEADER_BYTES: Final = 4096
_HEADER: Final = re.compile(
    rb"\{'descr': '([<>|=]?[a-zA-Z]\d{0,4})', 'fortran_order': (True|False), "
    rb"'shape': \(((?:\d{1,18},? ?){0,8})\), \}\s*"
)


def array(data: bytes, where: str, *, columns: int | None) -> NDArray[np.float64]:
    """The array in a file: float64[N], or float64[N, columns].

    Raises ScenarioError naming `where` for what is no such file, another shape, anything but numbers, and a NaN.
    """
    try:
        shape, is_fortran, dtype, start = _header(data)
    except (ValueError, TypeError, struct.error) as error:
        raise ScenarioError("malformed-npy", f"{where}: expected a numpy file: {error!s:.200}") from error
    if dtype.kind not in "fiu" or dtype.fields is not None:
        raise ScenarioError("malformed-npy", f"{where}: expected numbers, got {dtype.str:.20}")
    expected = math.prod(shape) * dtype.itemsize
    if len(data) - start != expected:
        raise ScenarioError(
            "malformed-npy", f"{where}: expected {expected} bytes of numbers, got {len(data) - start}"
        )
    if len(shape) != (1 if columns is None else 2) or (columns is not None and shape[1] != columns):
        wanted = "[N]" if columns is None else f"[N, {columns}]"
        raise ScenarioError("malformed-npy", f"{where}: expected an array {wanted}, got {list(shape)}")
    values = np.frombuffer(data, dtype, offset=start).reshape(shape, order="F" if is_fortran else "C")
    found = np.asarray(values, dtype=np.float64)
    bad = ~np.isfinite(found)
    if bad.any():
        row = int(np.argwhere(bad)[0][0])
        raise ScenarioError("nan-value", f"{where}: row {row}: expected finite numbers, got {found[row]}")
    return found


def _header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, order, dtype and where the numbers begin, from the header as numpy writes it; nothing is evaluated."""
    if data[:6] != b"\x93NUMPY" or data[6:8] not in (b"\1\0", b"\2\0"):
        raise ValueError(f"magic and version 1 or 2, got {data[:8]!r}")
    form = "<H" if data[6] == 1 else "<I"
    start = 8 + struct.calcsize(form)
    size = int(struct.unpack_from(form, data, 8)[0])
    match = _HEADER.fullmatch(data[start : start + min(size, _HEADER_BYTES)])
    if match is None:
        raise ValueError(f"a header of descr, fortran_order and shape, got {data[start : start + 80]!r}")
    shape = tuple(int(number) for number in match[3].decode().split(",") if number.strip())
    return shape, match[2] == b"True", np.dtype(match[1].decode()), start + size
