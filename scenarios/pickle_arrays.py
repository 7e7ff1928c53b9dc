"""The few names that a pickle of arrays may hold, and what stands for them: arrays made from checked bytes.

May live here: how numpy pickles an array (`_reconstruct` and a state, or `_frombuffer`), a dtype and a scalar, by
numpy/_core/multiarray.py and numpy/_core/src/multiarray/methods.c. None of numpy's own functions for it is used.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["NAMES", "Called", "Name", "Pending", "Waiting", "call"]

MAX_AXES: Final = 8
_CODE: Final = re.compile(r"b1|[iu][1248]|f[248]")


class Name(Enum):
    """What a pickle may name."""

    INT = "int"
    DEFAULTDICT = "defaultdict"
    NDARRAY = "ndarray"
    DTYPE = "dtype"
    RECONSTRUCT = "_reconstruct"
    FROM_BUFFER = "_frombuffer"
    SCALAR = "scalar"


NAMES: Final = {
    "builtins.int": Name.INT,
    "__builtin__.int": Name.INT,
    "__builtin__.long": Name.INT,
    "collections.defaultdict": Name.DEFAULTDICT,
    "numpy.ndarray": Name.NDARRAY,
    "numpy.dtype": Name.DTYPE,
    "numpy.core.multiarray._reconstruct": Name.RECONSTRUCT,
    "numpy._core.multiarray._reconstruct": Name.RECONSTRUCT,
    "numpy.core.multiarray.scalar": Name.SCALAR,
    "numpy._core.multiarray.scalar": Name.SCALAR,
    "numpy.core.numeric._frombuffer": Name.FROM_BUFFER,
    "numpy._core.numeric._frombuffer": Name.FROM_BUFFER,
}


class Called(Exception):  # noqa: N818 - it is told to the machine, which tells the user
    """A name is called as no array is made."""


@dataclass
class Waiting:
    """A dtype whose byte order comes with its state: numbers and truth values only, no fields, no objects."""

    code: str
    order: str = "<"

    def finish(self, state: Any) -> None:  # noqa: ANN401 - as the pickle has it
        """Take the byte order; ValueError for a dtype of anything but plain numbers."""
        if type(state) is not tuple or len(state) < 5 or state[1] not in ("<", ">", "|", "="):
            raise ValueError("a dtype whose state is none")
        if any(part is not None for part in state[2:5]):
            raise ValueError("a dtype with fields or a shape, expected plain numbers")
        self.order = "<" if state[1] in "|=" else state[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype."""
        return np.dtype(self.order + self.code)


@dataclass
class Pending:
    """An array whose bytes come with its state; `keys` are where the machine remembers it."""

    keys: list[int] = field(default_factory=list)

    def finish(self, state: Any) -> NDArray[Any]:  # noqa: ANN401 - as the pickle has it
        """The array; ValueError unless there are exactly as many bytes as the shape needs."""
        if type(state) is not tuple or len(state) != 5:
            raise ValueError("an array whose state is none")
        _, shape, dtype, is_fortran, data = state
        return _array(data, dtype, shape, "F" if is_fortran else "C")


def call(name: Name, arguments: tuple[Any, ...]) -> Any:  # noqa: ANN401 - what the name makes
    """What stands for the result of a call; Called for any but those that make an array or an empty dictionary."""
    match name, arguments:
        case Name.DEFAULTDICT, () | (None | Name.INT,):
            return {}
        case Name.RECONSTRUCT, (Name.NDARRAY, tuple(), bytes() | str()):
            return Pending()
        case Name.DTYPE, (str(code), *_) if _CODE.fullmatch(code):
            return Waiting(code)
        case Name.SCALAR, (Waiting() as dtype, bytes(data)):
            return _array(data, dtype, (), "C").item()
        case Name.FROM_BUFFER, (bytes(data), Waiting() as dtype, tuple(shape), str(order)):
            return _array(data, dtype, shape, order)
        case _:
            shown = ", ".join(
                f"{each!r:.40}" if isinstance(each, str) else type(each).__name__ for each in arguments
            )
            raise Called(f"({shown:.100})")


def _array(data: Any, dtype: Any, shape: Any, order: str) -> NDArray[Any]:  # noqa: ANN401 - as the pickle has it
    if not isinstance(dtype, Waiting) or type(data) is not bytes or order not in ("C", "F"):
        raise ValueError("an array of something else than bytes of numbers")
    if type(shape) is not tuple or len(shape) > MAX_AXES or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError("an array whose shape is none")
    expected = math.prod(shape) * dtype.dtype.itemsize
    if len(data) != expected:
        raise ValueError(f"an array of {expected} bytes, got {len(data)}")
    return np.frombuffer(data, dtype.dtype).reshape(shape, order=order)  # type: ignore[call-overload,no-any-return]
