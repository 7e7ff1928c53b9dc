"""Variations of `camera_steering` samples in training (torch): the road mirrored, in another light, moved a little."""

from __future__ import annotations

import torch
from torch import Tensor

from fedfleet.models.settings import Augment
from fedfleet.protocol.errors import UsageError

__all__ = ["augment"]

LIGHT = 0.6, 1.4
MOVED_ROWS, MOVED_COLUMNS = 3, 6
"""Most pixels by which an image is moved: as if the camera sat or looked a little differently."""
OFFERED = "mirror", "mirror-light", "mirror-shift"


def augment(
    inputs: Tensor, targets: Tensor, *, kind: Augment, chance: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Vary images f32[N, 3, rows, columns] and angles f32[N, 1], each sample by its own draws from `chance`.

    mirror: left and right change places, and the angle its sign, with probability 1/2. mirror-light: that, and all
    pixels times a factor of 0.6 to 1.4, within 0 … 255. mirror-shift: that, and the image moved by up to 3 rows and 6
    columns, where what comes in repeats the edge; the angle stays. Raises UsageError for another kind.
    """
    if kind == "none":
        return inputs, targets
    if kind not in OFFERED:
        expected = f"{', '.join(OFFERED[:-1])} or {OFFERED[-1]}"
        raise UsageError(f"task camera_steering offers no augmentation {kind}: expected {expected}")
    turned = torch.rand(len(inputs), generator=chance) < 1 / 2
    images = torch.where(turned[:, None, None, None], inputs.flip(3), inputs)
    if kind != "mirror":
        dark, bright = LIGHT
        factor = dark + (bright - dark) * torch.rand(len(inputs), 1, 1, 1, generator=chance)
        images = (images * factor).clamp(0.0, 255.0)
    if kind == "mirror-shift":
        images = _moved(images, chance)
    return images, torch.where(turned[:, None], -targets, targets)


def _moved(images: Tensor, chance: torch.Generator) -> Tensor:
    count, _, rows, columns = images.shape
    down = torch.randint(-MOVED_ROWS, MOVED_ROWS + 1, (count, 1), generator=chance)
    right = torch.randint(-MOVED_COLUMNS, MOVED_COLUMNS + 1, (count, 1), generator=chance)
    from_row = (torch.arange(rows) - down).clamp(0, rows - 1)
    from_column = (torch.arange(columns) - right).clamp(0, columns - 1)
    each = torch.arange(count)[:, None, None]
    # indexed dimensions come first: [N, rows, columns, 3]
    return images[each, :, from_row[:, :, None], from_column[:, None, :]].permute(0, 3, 1, 2).contiguous()
