"""How frames of `camera_steering` are cut: by which way the driver steered, and by light. Plain functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedfleet.models.task import Samples, Slicer

__all__ = ["SLICES", "light", "steering"]

STRAIGHT: Final = 0.1
SHARP: Final = 0.5
LIGHTS: Final = (60.0, 120.0, 180.0)
LIGHT_NAMES: Final = ("000-059", "060-119", "120-179", "180-255")
ROWS: Final = 256
"""Images whose mean is taken at once."""


def steering(samples: Samples) -> NDArray[np.str_]:
    """Name where the driver steered: sharp-left (below −0.5 of full lock), left, straight (within 0.1), and so on."""
    angle = np.asarray(samples.targets)[:, 0]
    names = np.array(["sharp-left", "left", "straight", "right", "sharp-right"])
    return names[np.searchsorted([-SHARP, -STRAIGHT, STRAIGHT, SHARP], angle)]


def light(samples: Samples) -> NDArray[np.str_]:
    """Name the band of the image's mean value, 0 (black) to 255."""
    parts = [
        samples.inputs[start : start + ROWS].mean(axis=(1, 2, 3), dtype=np.float64)
        for start in range(0, len(samples), ROWS)
    ]
    return np.array(LIGHT_NAMES)[np.searchsorted(LIGHTS, np.concatenate([np.empty(0), *parts]), side="right")]


SLICES: Final[Mapping[str, Slicer]] = {"steering": steering, "light": light}
