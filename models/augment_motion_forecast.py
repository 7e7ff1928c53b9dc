"""Variations of `motion_forecast` samples in training (torch): mirrored, and the same way driven at another speed.

Both keep history and future in the agent frame: origin and heading stay where they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedfleet.models.settings import Augment
from fedfleet.protocol.errors import UsageError

__all__ = ["augment"]

SPEEDS = 0.9, 1.1


def augment(
    inputs: Tensor, targets: Tensor, *, kind: Augment, chance: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Vary histories f32[N, 20, 2] and futures f32[N, 30, 2] alike, each sample by its own draw from `chance`.

    mirror: y to -y with probability 1/2. mirror-speed: that, and all distances times a factor of 0.9 to 1.1.
    Raises UsageError for another kind.
    """
    if kind not in {"none", "mirror", "mirror-speed"}:
        raise UsageError(
            f"task motion_forecast offers no augmentation {kind}: expected mirror or mirror-speed"
        )
    factor = torch.ones(len(inputs), 1, 2)
    if kind != "none":
        factor[:, 0, 1] -= 2.0 * (torch.rand(len(inputs), generator=chance) < 1 / 2)
    if kind == "mirror-speed":
        slow, fast = SPEEDS
        factor *= slow + (fast - slow) * torch.rand(len(inputs), 1, 1, generator=chance)
    return inputs * factor, targets * factor
