"""Network and loss of `hospitals` (torch): a small network on the logarithms of the measurements."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Diagnosis", "loss", "network"]

# Usual values of ln(0.001 + measurement), and how far they spread, to one decimal: mean, error and worst of radius,
# texture, perimeter, area, smoothness, compactness, concavity, concave points, symmetry, fractal dimension.
USUAL = (
    *(2.6, 2.9, 4.5, 6.4, -2.3, -2.4, -2.9, -3.4, -1.7, -2.8),
    *(-1.1, 0.1, 0.9, 3.4, -4.9, -3.8, -3.7, -4.5, -3.9, -5.4),
    *(2.7, 3.2, 4.6, 6.6, -2.0, -1.5, -1.7, -2.4, -1.3, -2.5),
)
SPREAD = (
    *(0.2, 0.2, 0.3, 0.5, 0.1, 0.5, 1.2, 1.0, 0.1, 0.1),
    *(0.5, 0.4, 0.5, 0.7, 0.3, 0.6, 0.9, 0.6, 0.3, 0.4),
    *(0.3, 0.2, 0.3, 0.6, 0.2, 0.6, 1.2, 0.9, 0.2, 0.2),
)


class Diagnosis(nn.Module):
    """`measurements` f32[N, 30] -> `logit` f32[N, 1] of being malignant; 513 parameters."""

    usual: Tensor
    spread: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(len(USUAL), 16)
        self.leave = nn.Linear(16, 1)
        # Constants of the graph, no part of the state dict and so of what is learned.
        self.register_buffer("usual", torch.tensor(USUAL), persistent=False)
        self.register_buffer("spread", torch.tensor(SPREAD), persistent=False)

    def forward(self, measurements: Tensor) -> Tensor:
        """Return the logit of each patient."""
        inner = (torch.log(measurements.clamp(min=0.0) + 1e-3) - self.usual) / self.spread
        logit: Tensor = self.leave(torch.tanh(self.enter(inner)))
        return logit


def network() -> nn.Module:
    """The network of version 0; its weights are drawn from torch's generator."""
    return Diagnosis()


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy."""
    return functional.binary_cross_entropy_with_logits(outputs, targets)
