"""Network and loss of `camera_steering` (torch): PilotNet (Bojarski et al. 2016, figure 4).

The graph takes pixels 0 … 255 as they are and normalises them itself, as the paper's first layer does: here each image
to mean 0 and variance 1, because places differ in light more than in tracks. RGB rather than YUV: the first
convolution can learn that change of axes. The paper names no nonlinearity; here it is ELU (Clevert et al. 2016): with
ReLU, whose units can fall silent for good, a fleet's few large steps taught nothing for long. Weights start as He et
al. 2015 (equation 10) have it: with torch's own start, each layer halves what it is given, and the first passes learn
next to nothing. The last layer starts at zero: version 0 steers straight ahead.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["PilotNet", "loss", "network"]

QUIET = 25.0
"""Added to the variance of the pixels, so that an even image is not blown up to noise."""
BETA = 0.1
"""Angle off up to which the loss is a square; beyond, it grows as the MAE does."""


class PilotNet(nn.Module):
    """`image` f32[N, 3, 66, 200], RGB 0 … 255 -> `angle` f32[N, 1], -1 … 1 of full lock; 252,219 parameters."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ((3, 24, 5, 2), (24, 36, 5, 2), (36, 48, 5, 2), (48, 64, 3, 1), (64, 64, 3, 1))
        self.see = nn.ModuleList(nn.Conv2d(*size) for size in sizes)
        self.steer = nn.ModuleList(nn.Linear(*size) for size in ((1152, 100), (100, 50), (50, 10)))
        self.angle = nn.Linear(10, 1)
        for layer in (*self.see, *self.steer):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.angle.weight)
        nn.init.zeros_(self.angle.bias)

    def forward(self, image: Tensor) -> Tensor:
        """Return the angle for each image."""
        middle = image.mean((1, 2, 3), keepdim=True)
        spread = (image - middle).square().mean((1, 2, 3), keepdim=True)
        inner = (image - middle) / (spread + QUIET).sqrt()
        inner = inner.contiguous(memory_format=torch.channels_last)  # trains a quarter faster on a CPU
        for layer in self.see:
            inner = functional.elu(layer(inner))
        inner = inner.flatten(1)
        for layer in self.steer:
            inner = functional.elu(layer(inner))
        angle: Tensor = self.angle(inner)
        return angle


def network() -> nn.Module:
    """The network of version 0; its weights are drawn from torch's generator."""
    return PilotNet()


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean Huber loss of the angle (delta 0.1)."""
    return functional.smooth_l1_loss(outputs, targets, beta=BETA)
