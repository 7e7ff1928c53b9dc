"""What a little training shows of a network before a fleet gets it: all that training changes must be in the vector.

A vehicle makes the network anew for each training, from another seed, and sends the vector. So what is drawn by chance
or changed by training outside of it would differ from vehicle to vehicle, and from the model that is published. Torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from fedfleet.models import training
from fedfleet.models.task import Task
from fedfleet.models.tensors import (
    check_tensors,
    dtype_name,
    learned,
    load_vector,
    running_statistics,
    unlearned,
    vector,
)
from fedfleet.protocol.errors import UsageError

__all__ = ["statistics_of"]

SAMPLES = 8
STEPS = 2
RATE = 1e-3
SPREAD = 3.0
"""Of the random inputs; as those of the parity check."""


def statistics_of(task: Task, *, seed: int) -> tuple[str, ...]:
    """Train a fresh network a little; return the names of learned tensors that are statistics, in their order.

    These are the running statistics of batch norms, and other buffers that a pass in training changes. Raises
    UsageError, which names the tensor, for one that training changes or chance draws outside of the vector, unless
    the task's `tensors` exclude it.
    """
    with torch.random.fork_rng(devices=[]):
        first, second = training.network(task, seed=seed), training.network(task, seed=seed + 1)
        check_tensors(first, task)
        inputs = torch.randn((SAMPLES, *task.specification.input_shape)) * SPREAD
        _check_complete(first, task, inputs)
        _check_same(first, second, task, inputs, why="is drawn by chance")
        before = {name: tensor.detach().clone() for name, tensor in learned(first).items()}
        _train(first, task, inputs)
        _check_same(first, second, task, inputs, why="changes in training")
    parameters = {name for name, _ in first.named_parameters()}
    moved = {
        name
        for name, tensor in learned(first).items()
        if name not in parameters and not torch.equal(tensor, before[name])
    }
    return tuple(name for name in learned(first) if name in moved | set(running_statistics(first)))


def _check_complete(model: nn.Module, task: Task, inputs: Tensor) -> None:
    names = set(learned(model))
    _answers(model, inputs)
    if late := sorted(set(learned(model)) - names):
        raise UsageError(
            f"network of {task.name}: tensor {late[0]} comes into being in the first forward pass: make it in "
            "__init__, or use a lazy layer of torch"
        )


def _answers(model: nn.Module, inputs: Tensor) -> Tensor:
    model.eval()
    with torch.no_grad():
        answers: Tensor = model(inputs)
    return answers


def _train(model: nn.Module, task: Task, inputs: Tensor) -> None:
    """Take a few steps; the network's own outputs are all the loss that this needs."""
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    model.train()
    try:
        for _ in range(STEPS):
            optimizer.zero_grad()
            _scalar(model(inputs)).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UsageError(f"network of {task.name}: cannot be trained: {line}") from error


def _check_same(first: nn.Module, second: nn.Module, task: Task, inputs: Tensor, *, why: str) -> None:
    """Raise UsageError unless the second network with the first one's vector is the same network."""
    load_vector(second, vector(first))
    codings: Mapping[str, str] = getattr(task, "tensors", {})
    excluded = [pattern for pattern, coding in codings.items() if coding == "exclude"]
    others, is_told = unlearned(second), False
    for name, tensor in unlearned(first).items():
        other = others.get(name)
        if other is None or not _equal(tensor, other):
            if any(fnmatchcase(name, pattern) for pattern in excluded):
                is_told = True
                continue
            raise UsageError(f"network of {task.name}: {_told(first, name, tensor, why)}")
    ours, theirs = (_answers(model, inputs) for model in (first, second))
    if not is_told and not torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5, equal_nan=True):
        raise UsageError(
            f"network of {task.name}: something {why} that is no parameter or buffer of it: vehicles would not get it"
        )


def _told(model: nn.Module, name: str, tensor: Tensor, why: str) -> str:
    """Say what is wrong with a tensor outside of the vector."""
    if tensor.dtype != torch.float32:
        return (
            f"tensor {name} is {dtype_name(tensor)}, expected float32: it {why}, and nothing else is sent "
            f'(or tensors = {{"{name}": "exclude"}} in the task)'
        )
    kind = "parameter" if name in dict(model.named_parameters()) else "buffer"
    return (
        f"{kind} {name} {why}, but is not in the state dict, so it would not be sent: make it persistent "
        f'(or tensors = {{"{name}": "exclude"}} in the task)'
    )


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(torch.nan_to_num(one), torch.nan_to_num(other))


def _scalar(outputs: Any) -> Tensor:  # noqa: ANN401 - a network may answer with several tensors in training
    if isinstance(outputs, Tensor):
        return outputs.square().mean()
    parts = list(outputs.values()) if isinstance(outputs, Mapping) else list(outputs)
    return torch.stack([_scalar(part) for part in parts]).sum()
