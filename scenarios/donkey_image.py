"""A camera image from bytes that others wrote: decoded by Pillow, within limits, cut and scaled for the network."""

from __future__ import annotations

import io
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fedfleet.scenarios.records import ScenarioError

__all__ = ["BROKEN", "HORIZON", "MAX_IMAGE_BYTES", "MAX_PIXELS", "TOO_LARGE", "decode"]

MAX_IMAGE_BYTES: Final = 16 * 2**20
MAX_PIXELS: Final = 25_000_000
"""A road camera of 4K has 8.3 million pixels; decoding this many takes 75 MB."""
MIN_SIDE: Final = 8
HORIZON: Final = 1 / 3
"""Share of the rows, from the top, that show room and sky rather than the track."""

BROKEN: Final = "broken-image"
TOO_LARGE: Final = "image-too-large"

_DEEP: Final = ("I;16", "I;16B", "I;16L", "I;16N", "I")
"""Pillow's modes of grey images of more than 8 bits; converting them to RGB would cut every value off at 255."""


def decode(data: bytes, *, rows: int, columns: int) -> NDArray[np.uint8]:
    """The part of a JPEG or PNG below the horizon, scaled to uint8[3, rows, columns], RGB.

    Values of 16 bits become their upper 8. An orientation in the image's EXIF data is applied. Raises
    ScenarioError("broken-image") for bytes that are not a whole JPEG or PNG and for an image of less than 8×8 pixels,
    ScenarioError("image-too-large") beyond MAX_IMAGE_BYTES or MAX_PIXELS.
    """
    if len(data) > MAX_IMAGE_BYTES:
        raise ScenarioError(TOO_LARGE, f"{len(data)} bytes, limit {MAX_IMAGE_BYTES}")
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as opened:
            width, height = opened.size
            if width * height > MAX_PIXELS:
                raise ScenarioError(TOO_LARGE, f"{width}x{height} pixels, limit {MAX_PIXELS}")
            if min(width, height) < MIN_SIDE:
                raise ScenarioError(BROKEN, f"{width}x{height} pixels, expected at least 8x8")
            # A JPEG of a large camera is decoded at a half, a quarter or an eighth, never below twice what is needed.
            opened.draft(None, (2 * columns, round(2 * rows / (1 - HORIZON))))
            image = ImageOps.exif_transpose(_eight_bits(opened))
            width, height = image.size
            box = (0.0, height * HORIZON, float(width), float(height))
            scaled = image.convert("RGB").resize((columns, rows), Image.Resampling.BILINEAR, box=box)
    except Image.DecompressionBombError as error:
        raise ScenarioError(TOO_LARGE, str(error)) from error
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:
        raise ScenarioError(BROKEN, f"expected a JPEG or PNG: {error}") from error
    return np.ascontiguousarray(np.asarray(scaled, dtype=np.uint8).transpose(2, 0, 1))


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image with 8 bits a value; one that has them already is returned as it is."""
    if image.mode not in _DEEP:
        return image
    return Image.fromarray((np.clip(np.asarray(image), 0, 0xFFFF) >> 8).astype(np.uint8))
