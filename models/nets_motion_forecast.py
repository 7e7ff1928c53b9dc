"""Network and loss of `motion_forecast` (torch): constant velocity plus what a small MLP adds to it.

The graph does all of it, so that the vehicle feeds plain positions. The last layers start at zero: version 0 is
constant velocity, exactly. There is one last layer per speed range: a fleet in the city then hardly moves what one on
the motorway has learned. With plain SGD, which leaves alone what its data do not touch (Adam does not), this is what
lets every region gain from the average.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedfleet.models.motion_forecast import BACK, FUTURE, PAST

__all__ = ["MotionForecastNet", "loss", "network"]

WIDTH = 200
STEP_S = 0.1
RANGES_MPS = (0.0, 7.0, 14.0, 28.0)
"""Centres of the speed ranges: standing, turning, city, motorway."""
RANGE_WIDTH_MPS = 5.0
OUTPUT_SCALE = 0.2
"""Network units -> metres per step of 0.1 s by which the mean velocity until then differs from the last one."""


class MotionForecastNet(nn.Module):
    """`history` f32[N, 20, 2] -> `future` f32[N, 30, 2], agent frame, metres; 97,840 parameters."""

    back: Tensor
    ahead: Tensor
    ranges: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(2 * PAST, WIDTH)
        self.enter_norm = nn.LayerNorm(WIDTH)
        self.hidden = nn.Linear(WIDTH, WIDTH)
        self.hidden_norm = nn.LayerNorm(WIDTH)
        self.leave_norm = nn.LayerNorm(WIDTH)
        self.leave = nn.Linear(WIDTH, len(RANGES_MPS) * 2 * FUTURE)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)
        # Not persistent: constants of the graph, no part of the state dict and so of the flat vector.
        self.register_buffer("back", torch.arange(1 - PAST, 0.0)[:, None], persistent=False)
        self.register_buffer("ahead", torch.arange(1.0, FUTURE + 1)[:, None], persistent=False)
        self.register_buffer("ranges", torch.tensor(RANGES_MPS), persistent=False)

    def forward(self, history: Tensor) -> Tensor:
        """Return the future of each track."""
        last = history[:, -1:]
        step = (last - history[:, -1 - BACK : -BACK]) / BACK
        bend = history[:, :-1] - last - step * self.back  # metres off the straight line at constant velocity
        seen = torch.cat([bend, step], dim=1).flatten(1)
        inner = functional.silu(self.enter_norm(self.enter(seen)))
        inner = inner + functional.silu(self.hidden_norm(self.hidden(inner)))
        each = self.leave(self.leave_norm(inner)).unflatten(1, (len(RANGES_MPS), 2 * FUTURE))
        change: Tensor = (each * self._share(step)).sum(1).unflatten(1, (FUTURE, 2))
        return last + (step + change * OUTPUT_SCALE) * self.ahead

    def _share(self, step: Tensor) -> Tensor:
        """How much each speed range has to say, [N, ranges, 1], for steps [N, 1, 2]; together 1."""
        speed = (step.square().sum(2) + 1e-6).sqrt() / STEP_S
        off = (speed - self.ranges) / RANGE_WIDTH_MPS
        return torch.softmax(-off.square(), dim=1)[:, :, None]


def network() -> nn.Module:
    """The network of version 0; its weights are drawn from torch's generator."""
    return MotionForecastNet()


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean Huber loss (delta 1 m) of the coordinates: equals that of the residual to constant velocity."""
    return functional.smooth_l1_loss(outputs, targets)
