"""The tiny task with tensors that are not alike: a batch norm, and a last layer that is the region's own.

The norm's statistics stay on the vehicle, its scale and all biases are sent whole, the rest is sparse.
As a task: `ruled_task:TASK`, with this folder on PYTHONPATH.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import tiny_task

if TYPE_CHECKING:
    from torch import nn


class RuledTask(tiny_task.TinyTask):
    name = "ruled"
    version = 1
    network = "ruled_task:network"
    tensors: ClassVar = {"1.running_*": "exclude", "1.weight": "dense", "*.bias": "dense"}
    head = ("3.*",)


TASK = RuledTask()


def network() -> nn.Module:
    from torch import nn

    return nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
