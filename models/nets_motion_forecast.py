"""Network and loss of `motion_forecast` (torch): constant velocity plus what a small MLP adds to it.

The graph does all of it, so that the vehicle feeds plain positions. The last layer starts at zero: version 0 is
constant velocity, exactly. The MLP speaks of *accelerations*: each output adds to the rest of the path, so that a few
changed weights of a sparse update already bend whole trajectories.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedfleet.models.motion_forecast import BACK, FUTURE, PAST

__all__ = ["MotionForecastNet", "loss", "network"]

WIDTH = 264
SPEED_SCALE = 0.1
"""Metres per second to network units: 10 m/s is 1."""
STEP_S = 0.1


class MotionForecastNet(nn.Module):
    """`history` f32[N, 20, 2] -> `future` f32[N, 30, 2], agent frame, metres; 97,740 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(2 * PAST, WIDTH)
        self.enter_norm = nn.LayerNorm(WIDTH)
        self.hidden = nn.Linear(WIDTH, WIDTH)
        self.hidden_norm = nn.LayerNorm(WIDTH)
        self.leave = nn.Linear(WIDTH, 2 * FUTURE)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)
        ahead = torch.arange(1, FUTURE + 1, dtype=torch.float32)
        # Double integration: what the velocity change in step j adds to the position after step i.
        reach = (ahead[:, None] - ahead[None, :] + 1).clamp(min=0) * STEP_S
        self.register_buffer("ahead", ahead[:, None], persistent=False)
        self.register_buffer("reach", reach, persistent=False)
        self.ahead: Tensor
        self.reach: Tensor

    def forward(self, history: Tensor) -> Tensor:
        """Return the future of each track."""
        last = history[:, -1:]
        step = (last - history[:, -1 - BACK : -BACK]) / BACK
        velocity = (history[:, 1:] - history[:, :-1]) / STEP_S
        mean = step / STEP_S
        seen = torch.cat([(velocity - mean), mean], dim=1).flatten(1) * SPEED_SCALE
        hidden = functional.silu(self.enter_norm(self.enter(seen)))
        hidden = hidden + functional.silu(self.hidden_norm(self.hidden(hidden)))
        change = self.leave(hidden).unflatten(1, (FUTURE, 2))
        future: Tensor = last + step * self.ahead + self.reach @ change
        return future


def network() -> nn.Module:
    """The network of version 0; seed torch's generator first."""
    return MotionForecastNet()


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean Huber loss (delta 1 m) of the coordinates: equals that of the residual to constant velocity."""
    return functional.smooth_l1_loss(outputs, targets)
