"""Which of the format's modes the encoder uses: one frozen value, valid when it exists."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedfleet.protocol.errors import UsageError

__all__ = ["INDEX_MODES", "VALUE_MODES", "Settings"]

INDEX_MODES = ("rice", "dense")
VALUE_MODES = ("sign", "int8", "float32")


@dataclass(frozen=True)
class Settings:
    """How an update is encoded.

    `index` "rice" sends the `density` share of coordinates with the largest magnitudes, "dense" sends all
    (`density` is then without effect). `value` "sign" sends one mean magnitude and a sign per coordinate
    (sparse ternary compression, Sattler et al. 2019), "int8" eight bits per coordinate and one scale,
    "float32" the exact values, and needs index "dense".

    Raises UsageError for an unknown mode, a density outside (0, 1], or float32 with index "rice".
    """

    index: str = "rice"
    value: str = "sign"
    density: float = 0.01

    def __post_init__(self) -> None:
        if self.index not in INDEX_MODES:
            raise UsageError(f'codec index: expected one of {", ".join(INDEX_MODES)}, got "{self.index}"')
        if self.value not in VALUE_MODES:
            raise UsageError(f'codec value: expected one of {", ".join(VALUE_MODES)}, got "{self.value}"')
        if not (math.isfinite(self.density) and 0.0 < self.density <= 1.0):
            raise UsageError(f"codec density: expected a number above 0 and up to 1, got {self.density}")
        if self.value == "float32" and self.index != "dense":
            raise UsageError(f'codec value "float32" needs index "dense", got index "{self.index}"')

    def count(self, size: int) -> int:
        """Return how many of `size` coordinates are sent at most: all, or max(1, round(density * size))."""
        return size if self.index == "dense" else max(1, round(self.density * size))
