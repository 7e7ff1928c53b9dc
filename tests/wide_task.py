"""The tiny task with a network of 72,000 parameters, 288 kB: its models and dense updates travel in pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tiny_task import TinyTask, generate, loss

if TYPE_CHECKING:
    from torch import nn

__all__ = ["TASK", "generate", "loss", "network"]


class WideTask(TinyTask):
    name = "wide"
    network = "wide_task:network"
    loss = "wide_task:loss"


TASK = WideTask()


def network() -> nn.Module:
    from torch import nn

    return nn.Sequential(nn.Linear(4, 12_000), nn.Tanh(), nn.Linear(12_000, 1))
