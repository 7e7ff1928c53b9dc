"""A camera image from bytes that others wrote: decoded by Pillow, within limits, cut and scaled for the network."""

from __future__ import annotations

import io
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedfleet.scenarios.records import ScenarioError

__all__ = ["HORIZON", "MAX_IMAGE_BYTES", "MAX_PIXELS", "decode"]

MAX_IMAGE_BYTES: Final = 2 * 2**20
MAX_PIXELS: Final = 2_000_000
HORIZON: Final = 1 / 3
"""Share of the rows, from the top, that show room and sky rather than the track."""


def decode(data: bytes, *, rows: int, columns: int) -> NDArray[np.uint8]:
    """The part of a JPEG or PNG below the horizon, scaled to uint8[3, rows, columns], RGB.

    Raises ScenarioError("broken-image") for what is none, is damaged, or is larger than the limits.
    """
    if len(data) > MAX_IMAGE_BYTES:
        raise ScenarioError("broken-image", f"{len(data)} bytes, limit {MAX_IMAGE_BYTES}")
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            width, height = image.size
            if width * height > MAX_PIXELS or min(width, height) < 8:
                raise ScenarioError("broken-image", f"{width}x{height} pixels, expected 8x8 to {MAX_PIXELS}")
            box = (0.0, height * HORIZON, float(width), float(height))
            scaled = image.convert("RGB").resize((columns, rows), Image.Resampling.BILINEAR, box=box)
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError, Image.DecompressionBombError) as error:
        raise ScenarioError("broken-image", f"expected a JPEG or PNG: {error}") from error
    return np.ascontiguousarray(np.asarray(scaled, dtype=np.uint8).transpose(2, 0, 1))
