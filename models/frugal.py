"""How a weak vehicle trains less: only the head of a model, and batches that fit into its memory (torch)."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedfleet.models.task import Task
from fedfleet.models.tensors import learned, places

__all__ = ["bytes_of_a_sample", "freeze_body", "head_names"]

PASSES = 3
"""Activations are kept for the way back, their gradients come on it, and an operation may need a copy."""


def head_names(task: Task, model: nn.Module) -> frozenset[str]:
    """The names of the tensors that are the head: those of the task's ``head``, else the last layer's."""
    names = list(learned(model))
    patterns: Sequence[str] = getattr(task, "head", ())
    found = [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
    if found or not names:
        return frozenset(found)
    last = [name for name, _ in model.named_parameters()][-1].rpartition(".")[0]
    return frozenset(name for name in names if name.rpartition(".")[0] == last)


def freeze_body(task: Task, model: nn.Module) -> NDArray[np.bool_]:
    """Let only the head learn; returns bool[M], where in the vector it is."""
    head = head_names(task, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in head)
    return places(model, head.__contains__)


def bytes_of_a_sample(model: nn.Module, sample: Tensor) -> int:
    """About how many bytes one more sample in a batch takes: its input, and what the layers make of it."""
    numbers = sample.numel()

    def count(_: nn.Module, __: object, output: object) -> None:
        nonlocal numbers
        numbers += output.numel() if isinstance(output, Tensor) else 0

    hooks = [layer.register_forward_hook(count) for layer in model.modules() if not list(layer.children())]
    was_training = model.training
    model.eval()
    with torch.no_grad():
        model(sample.float())
    model.train(was_training)
    for hook in hooks:
        hook.remove()
    return 4 * PASSES * numbers
