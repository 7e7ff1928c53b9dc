"""Which tensors of a network are learned, and how they lie in the flat vector (torch).

They are the float32 tensors of the state dict, in its order. Weights that two layers share are one tensor: it lies in
the vector once, under the first of its names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from fedfleet.models.task import Floats, Task
from fedfleet.protocol.errors import UsageError

__all__ = [
    "batch_norms",
    "check_tensors",
    "dtype_name",
    "learned",
    "load_vector",
    "materialise",
    "pieces",
    "places",
    "running_statistics",
    "second_names",
    "unlearned",
    "vector",
]

COUNTER: Final = "num_batches_tracked"
"""Of a batch norm, int64: without effect on what the network answers."""


def learned(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that are in the vector, by name, in its order; writing into one writes into the network."""
    return {names[0]: tensor for names, tensor in _by_tensor(model)}


def second_names(model: nn.Module) -> dict[str, str]:
    """The other names of tensors that have several (tied weights) -> the name in the vector."""
    return {name: names[0] for names, _ in _by_tensor(model) for name in names[1:]}


def unlearned(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers that are not in the vector, by name; without the counters of batch norms."""
    held = {id(tensor) for tensor in learned(model).values()}
    counters = {f"{name}.{COUNTER}".lstrip(".") for name, _ in batch_norms(model)}
    found = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor for name, tensor in found.items() if id(tensor) not in held and name not in counters}


def batch_norms(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers that keep running statistics of batches (batch norm and its kin), by name."""
    return [(name, layer) for name, layer in model.named_modules() if isinstance(layer, _NormBase)]


def running_statistics(model: nn.Module) -> tuple[str, ...]:
    """Names of the learned tensors that are running statistics, by the type of their layer, in order."""
    held = {id(buffer) for _, layer in batch_norms(model) for buffer in layer.buffers(recurse=False)}
    return tuple(name for name, tensor in learned(model).items() if id(tensor) in held)


def vector(model: nn.Module) -> Floats:
    """The learned tensors as one f32[M]; a copy."""
    parts = [tensor.detach().reshape(-1).numpy() for tensor in learned(model).values()]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.float32)


def load_vector(model: nn.Module, weights: Floats) -> None:
    """Write f32[M] into the learned tensors; UsageError when the length differs."""
    with torch.no_grad():
        for tensor, piece in zip(learned(model).values(), pieces(model, weights), strict=True):
            tensor.copy_(piece)


def pieces(model: nn.Module, weights: Floats) -> list[Tensor]:
    """f32[M] cut into tensors of the shapes of the learned ones, in their order; UsageError for another length."""
    tensors = list(learned(model).values())
    size = sum(tensor.numel() for tensor in tensors)
    if weights.shape != (size,) or weights.dtype != np.float32:
        raise UsageError(f"base vector: expected float32[{size}], got {weights.dtype}{list(weights.shape)}")
    flat = torch.from_numpy(np.array(weights))
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def places(model: nn.Module, chosen: Callable[[str], bool]) -> NDArray[np.bool_]:
    """Where in the vector the tensors are whose name is chosen, bool[M]."""
    parts = [np.full(tensor.numel(), chosen(name)) for name, tensor in learned(model).items()]
    return np.concatenate([np.empty(0, dtype=np.bool_), *parts])


def materialise(model: nn.Module, task: Task) -> None:
    """Let lazy layers (`nn.LazyLinear`) make their parameters, by one forward pass of zeros.

    Raises UsageError when the pass fails or leaves one without a shape.
    """
    if not any(is_lazy(each) for each in (*model.parameters(), *model.buffers())):
        return
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            model(torch.zeros((2, *task.specification.input_shape)))
    except Exception as error:
        raise UsageError(
            f"network of {task.name}: its lazy layers cannot be made: {_first_line(error)}"
        ) from error
    model.train(was_training)
    left = [name for name, each in (*model.named_parameters(), *model.named_buffers()) if is_lazy(each)]
    if left:
        raise UsageError(f"network of {task.name}: tensor {left[0]} has no shape after a forward pass")


def check_tensors(model: nn.Module, task: Task) -> None:
    """Raise UsageError unless what learns by gradients is float32, and no two tensors share only their memory."""
    state = {id(tensor) for tensor in _state(model).values()}
    for name, parameter in model.named_parameters():
        where = f"network of {task.name}: tensor {name}"
        if parameter.requires_grad and parameter.dtype != torch.float32:
            raise UsageError(
                f"{where} is {dtype_name(parameter)}, expected float32: nothing else is sent, so what a vehicle learns "
                "there would be lost"
            )
        if parameter.requires_grad and parameter.numel() and id(parameter) not in state:
            raise UsageError(
                f"{where} learns, but is not in the state dict: what is learned there would be lost"
            )
    first: dict[int, str] = {}
    for name, tensor in learned(model).items():
        other = first.setdefault(tensor.untyped_storage().data_ptr(), name)
        if other != name:
            raise UsageError(
                f"network of {task.name}: {other} and {name} share their memory without being one tensor: assign "
                "the parameter itself (second.weight = first.weight), or copy it"
            )


def dtype_name(tensor: Tensor) -> str:
    """The name of a tensor's type, such as float64."""
    return str(tensor.dtype).removeprefix("torch.")


def _by_tensor(model: nn.Module) -> Iterator[tuple[list[str], Tensor]]:
    """Give each learned tensor with all its names, in the order of the first."""
    names: dict[int, list[str]] = {}
    tensors: dict[int, Tensor] = {}
    for name, tensor in _state(model).items():
        if tensor.dtype == torch.float32 and tensor.numel():
            tensors[id(tensor)] = tensor
            names.setdefault(id(tensor), []).append(name)
    return ((names[key], tensor) for key, tensor in tensors.items())


def _state(model: nn.Module) -> Mapping[str, Tensor]:
    """The state dict's tensors themselves, not detached; without what is no tensor (`get_extra_state`)."""
    state = model.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
