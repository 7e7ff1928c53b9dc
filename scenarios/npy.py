"""Arrays of numbers in numpy's own file format, checked before anything is allocated; objects are never read.

May live here: the format of numpy/lib/format.py, versions 1 and 2, by numpy's reader of its header.
"""

from __future__ import annotations

import io
import math
from typing import Any, Final

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from fedfleet.scenarios.records import ScenarioError

__all__ = ["array"]

_HEADER_BYTES: Final = 4096


def array(data: bytes, where: str, *, columns: int | None) -> NDArray[np.float64]:
    """The array in a file: float64[N], or float64[N, columns].

    Raises ScenarioError naming `where` for what is no such file, another shape, anything but numbers, and a NaN.
    """
    try:
        shape, is_fortran, dtype, start = _header(data)
    except (ValueError, EOFError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError) as error:
        text = f"{where}: expected a numpy file: {str(error).splitlines()[0]:.120}" if str(error) else where
        raise ScenarioError("malformed-npy", text) from error
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
    file = io.BytesIO(data)
    version = npy.read_magic(file)
    if version == (1, 0):
        shape, is_fortran, dtype = npy.read_array_header_1_0(file, max_header_size=_HEADER_BYTES)
    elif version == (2, 0):
        shape, is_fortran, dtype = npy.read_array_header_2_0(file, max_header_size=_HEADER_BYTES)
    else:
        raise ValueError(f"expected version 1 or 2, got {version}")
    if any(n < 0 for n in shape):
        raise ValueError(f"shape {shape}")
    return shape, is_fortran, dtype, file.tell()
