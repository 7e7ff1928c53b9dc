"""Variations of `camera_steering` samples in training (torch): the road mirrored, in another light."""

from __future__ import annotations

import torch
from torch import Tensor

from fedfleet.models.settings import Augment
from fedfleet.protocol.errors import UsageError

__all__ = ["augment"]

LIGHT = 0.6, 1.4


def augment(
    inputs: Tensor, targets: Tensor, *, kind: Augment, chance: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Vary images f32[N, 3, rows, columns] and angles f32[N, 1], each sample by its own draws from `chance`.

    mirror: left and right change places, and the angle its sign, with probability 1/2. mirror-light: that, and all
    pixels times a factor of 0.6 to 1.4, within 0 … 255. Raises UsageError for another kind.
    """
    if kind == "none":
        return inputs, targets
    if kind not in {"mirror", "mirror-light"}:
        raise UsageError(
            f"task camera_steering offers no augmentation {kind}: expected mirror or mirror-light"
        )
    turned = torch.rand(len(inputs), generator=chance) < 1 / 2
    images = torch.where(turned[:, None, None, None], inputs.flip(3), inputs)
    if kind == "mirror-light":
        dark, bright = LIGHT
        factor = dark + (bright - dark) * torch.rand(len(inputs), 1, 1, 1, generator=chance)
        images = (images * factor).clamp(0.0, 255.0)
    return images, torch.where(turned[:, None], -targets, targets)
