"""Tries a task's loss on a few made-up samples, before a fleet trains with it; torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedfleet.models.task import Task, resolve
from fedfleet.protocol.errors import UsageError

__all__ = ["check_loss"]

_COUNT = 4


def check_loss(task: Task, model: nn.Module) -> None:
    """Raise UsageError unless the loss of the model's outputs is one number that a gradient can be taken of.

    Targets have the shape of the outputs; where the loss does not take such, one number for each sample will do.
    """
    loss = cast("Callable[[Tensor, Tensor], Any]", resolve(task.loss))
    shape = task.specification
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        inputs = torch.rand((_COUNT, *shape.input_shape))
        outputs = model(inputs)
        first = ""
        for inner in (shape.output_shape, (1,), ()):
            wrong = _wrong(loss, outputs, torch.randint(0, 2, (_COUNT, *inner)).float())
            if not wrong:
                return
            first = first or wrong
    raise UsageError(f"loss of {task.name}: {task.loss} {first}")


def _wrong(loss: Callable[[Tensor, Tensor], Any], outputs: Tensor, targets: Tensor) -> str:
    try:
        value = loss(outputs, targets)
    except Exception as error:  # noqa: BLE001 - whatever a plug-in raises
        told = " ".join(str(error).split())
        return f"fails on {_COUNT} made-up samples: {type(error).__name__}: {told}"
    if not isinstance(value, Tensor):
        return f"gave {type(value).__name__}, expected a tensor of one number"
    if value.numel() != 1:
        return f"gave a tensor of shape {list(value.shape)}, expected one number: take the mean"
    if not value.requires_grad:
        return "gave a tensor without a gradient: it is detached from the outputs"
    return ""
