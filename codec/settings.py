"""Which of the format's modes the encoder uses: one frozen value, valid when it exists."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedfleet.protocol.errors import UsageError

__all__ = ["EFFORTS", "INDEX_MODES", "VALUE_MODES", "Settings"]

INDEX_MODES = ("rice", "dense", "common")
EFFORTS = ("full", "quick")
VALUE_MODES = ("sign", "int2", "int3", "int4", "int8", "float32", "stochastic4")


@dataclass(frozen=True)
class Settings:
    """How an update is encoded.

    `index` "rice" sends the `density` share of each part's coordinates with the largest magnitudes, named in the
    fewest bytes; "common" sends the coordinates that the round's plan names, "dense" all of them (`density` is then
    without effect).

    `value` "sign" sends one mean magnitude and a sign per coordinate (sparse ternary compression, Sattler et al.
    2019); "int2", "int3", "int4" a sign and one of 2, 4, 8 magnitudes of a table; "int8" eight bits and one scale;
    "float32" the exact values, not with index "rice". "stochastic4", only with index "dense", rounds every
    coordinate at random to one of 15 levels, so that the mean of many is exact and no residual is needed; `density`
    is then the expected share of levels that are not zero, 0.1 for about 0.6 bit per coordinate.

    `layer_floor` is the share of each tensor in a sparse part that is sent at least, under index "rice".

    `effort` "quick" leaves out the index mode that takes both sides most of their time, row by row; a decoder reads
    what either makes.
    Raises UsageError for an unknown mode, effort or pair of modes, a density outside (0, 1], a floor outside [0, 1].
    """

    index: str = "rice"
    value: str = "sign"
    density: float = 0.01
    layer_floor: float = 0.0
    effort: str = "full"

    def __post_init__(self) -> None:
        if self.index not in INDEX_MODES:
            raise UsageError(f'codec index: expected one of {", ".join(INDEX_MODES)}, got "{self.index}"')
        if self.value not in VALUE_MODES:
            raise UsageError(f'codec value: expected one of {", ".join(VALUE_MODES)}, got "{self.value}"')
        if self.effort not in EFFORTS:
            raise UsageError(f'codec effort: expected one of {", ".join(EFFORTS)}, got "{self.effort}"')
        if not (math.isfinite(self.density) and 0.0 < self.density <= 1.0):
            raise UsageError(f"codec density: expected a number above 0 and up to 1, got {self.density}")
        if not (math.isfinite(self.layer_floor) and 0.0 <= self.layer_floor <= 1.0):
            raise UsageError(f"codec layer_floor: expected a number from 0 to 1, got {self.layer_floor}")
        if self.value == "float32" and self.index == "rice":
            raise UsageError(f'codec value "float32" needs index "dense", got index "{self.index}"')
        if self.value == "stochastic4" and self.index != "dense":
            raise UsageError(f'codec value "stochastic4" needs index "dense", got index "{self.index}"')

    @property
    def is_stateless(self) -> bool:
        """Whether what an update does not carry is not to be kept: the errors of many updates cancel instead."""
        return self.value == "stochastic4"

    def count(self, size: int) -> int:
        """Return how many of `size` coordinates are sent at most: all, or max(1, round(density * size))."""
        return size if self.index == "dense" else max(1, round(self.density * size))
