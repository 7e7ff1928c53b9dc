"""Fine-tuning on one vehicle (torch): from a base vector and samples to a delta.

Deterministic: one thread, every random choice drawn from the seed. Runs in the trainer process, or anywhere in a test.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedfleet.models import batches
from fedfleet.models.checkpoint import Arrays, optimizer_arrays, restore_optimizer
from fedfleet.models.correction import Control, Correction, check_control
from fedfleet.models.frugal import bytes_of_a_sample, freeze_body
from fedfleet.models.settings import Augment, TrainSettings
from fedfleet.models.task import Floats, Samples, Task, resolve
from fedfleet.models.tensors import batch_norms, check_tensors, load_vector, materialise, vector
from fedfleet.protocol.errors import UsageError

__all__ = [
    "FineTuning",
    "Progress",
    "Trained",
    "TrainingError",
    "fine_tune",
    "load_vector",
    "network",
    "vector",
]

LOSS_SAMPLES, LOSS_FEW = 4096, 16
"""The loss before and after is measured on at most so many samples, evenly spaced, and on no more than the training
sees, but for a few: where a round is two batches, measuring must not cost more than learning."""
LOSS_NUMBERS = 2**22
"""So many numbers of the input go through the network at once: 16 MiB as float32."""

AUGMENT_STREAM = 0x6175676D656E74
"""Added to the seed for the chance of the augmentation."""

Vary = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class TrainingError(Exception):
    """Training cannot give a usable delta: no samples, or a loss or weight that is not finite."""


@dataclass(frozen=True)
class Trained:
    """What came out: delta f32[M] = trained - base, finite; `examples` = samples seen at least once in `steps`.

    `control` f32[M] is the step c_k⁺ - c_k of the vehicle's control variate, where one was given.
    """

    delta: Floats
    steps: int
    examples: int
    loss_before: float
    loss_after: float
    control: Floats | None = None


@dataclass(frozen=True)
class Progress:
    """Where a running training is: steps done of how many, and the loss of the last batch."""

    step: int
    steps: int
    loss: float


class FineTuning:
    """One fine-tuning, batch by batch: call `advance` until it returns None, or stop early; then take `result`.

    With `proximal_mu` μ above 0 it minimises loss + (μ / 2) ‖w - base‖² (FedProx, Li et al. 2020, equation 2): the
    gradient has μ (w - base) added before it is clipped. With `control` (SCAFFOLD, Karimireddy et al. 2020, algorithm
    1, option II) each step goes along g - c_k + c, g clipped, and c_k⁺ = c_k - c + (base - w) / Σ_j η_j, which is
    the mean of the g; settings.correction must be "scaffold", the optimizer sgd without momentum.
    `snapshot` and `restore` let another one go on where this is; it ends with the same bytes.

    Raises UsageError when base or samples do not fit the task, it offers no augmentation and one is asked for, or
    batches are too small for a batch norm; TrainingError for no samples, one where a batch norm needs two, and a loss
    or a weight that is not finite; then there is no result.
    """

    def __init__(
        self,
        task: Task,
        base: Floats,
        samples: Samples,
        settings: TrainSettings,
        *,
        seed: int,
        control: Control | None = None,
    ) -> None:
        torch.set_num_threads(1)
        _check(task, samples)
        check_control(settings, control, base)
        self._base, self._size = base, len(samples)
        self._model = network(task, seed=seed)
        check_tensors(self._model, task)
        load_vector(self._model, base)
        self._learns = freeze_body(task, self._model) if settings.trainable == "head" else None
        self._loss = cast("Callable[[Tensor, Tensor], Tensor]", resolve(task.loss))
        self._inputs, self._targets = (
            torch.from_numpy(np.array(a)) for a in (samples.inputs, samples.targets)
        )
        self._settings = settings = self._fitting(settings)
        self._correction = Correction(self._model, settings, control)
        self._optimizer = _optimizer(self._model, settings)
        self._chance = torch.Generator().manual_seed(seed)
        self._vary, self._varied = _augmentation(task, settings.augment, seed=seed)
        self._per_epoch = batches.count(self._size, settings.batch_size)
        _check_batches(task, self._model, self._inputs, size=self._size, most=settings.batch_size)
        self.steps = settings.epochs * self._per_epoch
        if settings.max_steps:
            self.steps = min(self.steps, settings.max_steps)
        self._done = 0
        self._order = torch.empty(0, dtype=torch.int64)
        self._loss_before = self._measure()

    def advance(self) -> Progress | None:
        """Train on the next batch; None when all are done."""
        if self._done == self.steps:
            return None
        rate = self._settings.learning_rate_at(self._done / self.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        at = self._done % self._per_epoch
        if at == 0:
            self._order = torch.randperm(self._size, generator=self._chance)
        start, end = batches.bounds(at, self._size, self._settings.batch_size)
        batch = self._order[start:end]
        self._optimizer.zero_grad()
        inputs, targets = self._vary(self._inputs[batch].float(), self._targets[batch])
        loss = self._loss(self._model(inputs), targets)
        value = _finite(loss.item(), f"the loss of step {self._done + 1}")
        loss.backward()  # type: ignore[no-untyped-call]
        self._correction.apply(rate)
        self._optimizer.step()
        self._done += 1
        return Progress(self._done, self.steps, value)

    @property
    def learns(self) -> NDArray[np.bool_]:
        """Where in the vector something learns, bool[M]."""
        return np.ones(self._base.size, dtype=np.bool_) if self._learns is None else self._learns.copy()

    @property
    def weights(self) -> Floats:
        """The weights f32[M] as they are now, copied; NaN and infinite ones are not refused here."""
        return vector(self._model).copy()

    def result(self) -> Trained:
        """What the batches done so far have changed."""
        delta = vector(self._model) - self._base
        if not np.isfinite(delta).all():
            raise TrainingError(f"weights are not finite after {self._done} steps")
        examples = batches.seen(self._done, self._size, self._settings.batch_size)
        control = self._correction.control_step(delta)
        if self._learns is not None:
            delta[~self._learns] = 0  # statistics of the body move without a gradient
            if control is not None:
                control[~self._learns] = 0
        return Trained(delta, self._done, examples, self._loss_before, self._measure(), control)

    def snapshot(self) -> Arrays:
        """Where this is: weights, optimizer, place in the order, chance; copies."""
        return {
            "done": np.array(self._done),
            "loss_before": np.array(self._loss_before),
            "rates": np.array(self._correction.rates),
            "order": self._order.numpy().copy(),
            "chance": self._chance.get_state().numpy().copy(),
            "varied": self._varied.get_state().numpy().copy(),
            "global": torch.get_rng_state().numpy().copy(),
            **{f"model.{name}": tensor.numpy().copy() for name, tensor in self._kept().items()},
            **optimizer_arrays(self._optimizer),
        }

    def restore(self, arrays: Arrays) -> None:
        """Go on from a snapshot of a fine-tuning with the same arguments; ValueError or KeyError for any other."""
        state = {name: torch.from_numpy(np.array(a)) for name, a in arrays.items()}
        held = self._kept()
        if any(state[f"model.{name}"].shape != tensor.shape for name, tensor in held.items()):
            raise ValueError("checkpoint: tensors of another model")
        done = int(arrays["done"])
        if not 0 <= done <= self.steps or (done and arrays["order"].shape != (self._size,)):
            raise ValueError(f"checkpoint: {done} of {self.steps} steps")
        restore_optimizer(self._optimizer, arrays)
        with torch.no_grad():
            for name, tensor in held.items():
                tensor.copy_(state[f"model.{name}"])
        self._done, self._order = done, state["order"]
        self._loss_before, self._correction.rates = float(arrays["loss_before"]), float(arrays["rates"])
        self._chance.set_state(state["chance"])
        self._varied.set_state(state["varied"])
        torch.set_rng_state(state["global"])

    def _kept(self) -> dict[str, Tensor]:
        """What a snapshot holds of the network: the state dict, but for types that numpy has none for."""
        state = self._model.state_dict()
        return {
            name: tensor
            for name, tensor in state.items()
            if isinstance(tensor, Tensor) and tensor.dtype != torch.bfloat16
        }

    def _fitting(self, settings: TrainSettings) -> TrainSettings:
        """Return the settings with batches no larger than their memory allows."""
        if not settings.batch_bytes:
            return settings
        most = settings.batch_bytes // max(1, bytes_of_a_sample(self._model, self._inputs[:1]))
        most = max(1, min(settings.batch_size, most))
        if most < settings.batch_size:
            most = batches.fitting(self._size, most)
        return settings.model_copy(update={"batch_size": most})

    def _measure(self) -> float:
        most = min(LOSS_SAMPLES, max(LOSS_FEW, self.steps * self._settings.batch_size))
        step = max(1, math.ceil(self._size / most))
        inputs, targets = self._inputs[::step], self._targets[::step]
        each = max(1, LOSS_NUMBERS // max(1, inputs[0].numel()))
        self._model.eval()
        with torch.no_grad():
            parts = [
                (self._loss(self._model(some.float()), wanted).item(), len(some))
                for some, wanted in zip(torch.split(inputs, each), torch.split(targets, each), strict=True)
            ]
        self._model.train()
        value = sum(loss * count for loss, count in parts) / len(inputs) if len(parts) > 1 else parts[0][0]
        return _finite(value, f"the loss after {self._done} steps")


def fine_tune(  # noqa: PLR0913 (what a training needs)
    task: Task,
    base: Floats,
    samples: Samples,
    settings: TrainSettings,
    *,
    seed: int,
    control: Control | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Trained:
    """Fine-tune from `base` f32[M]; the same arguments give the same bytes.

    `should_stop` is asked between batches; when it says yes the work so far counts. Raises as `FineTuning` does.
    """
    tuning = FineTuning(task, base, samples, settings, seed=seed, control=control)
    while not should_stop() and tuning.advance() is not None:
        pass
    return tuning.result()


def network(task: Task, *, seed: int) -> nn.Module:
    """The task's network with the initial weights of `seed`."""
    torch.manual_seed(seed)
    make = resolve(task.network)
    try:
        model = make()
    except Exception as error:
        told = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UsageError(f"network of {task.name}: {task.network} fails: {told}") from error
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"network of {task.name}: {task.network} gave {type(model).__name__}, expected nn.Module"
        )
    materialise(model, task)
    return model


def _optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    if settings.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    return torch.optim.SGD(model.parameters(), lr=settings.learning_rate, momentum=settings.momentum)


def _augmentation(task: Task, kind: Augment, *, seed: int) -> tuple[Vary, torch.Generator]:
    """Return what varies a batch, and its chance, apart from the order's, so that the order is that of "none"."""
    chance = torch.Generator().manual_seed((seed + AUGMENT_STREAM) % 2**63)
    if kind == "none":
        return lambda inputs, targets: (inputs, targets), chance
    name = getattr(task, "augment", "")
    if not name:
        raise UsageError(f"task {task.name} offers no augmentation, asked for {kind}")
    return partial(resolve(name), kind=kind, chance=chance), chance


def _check(task: Task, samples: Samples) -> None:
    expected = task.specification
    shapes = samples.inputs.shape[1:], samples.targets.shape[1:]
    if shapes != (expected.input_shape, expected.output_shape):
        text = f"expected {list(expected.input_shape)} -> {list(expected.output_shape)}"
        got = f"{list(shapes[0])} -> {list(shapes[1])}"
        raise UsageError(f"samples do not match task {task.name}: {text}, got {got}")
    if len(samples) == 0:
        raise TrainingError("no samples to train on")


def _check_batches(task: Task, model: nn.Module, inputs: Tensor, *, size: int, most: int) -> None:
    """Refuse a batch of one sample where a layer takes its statistics: TrainingError for the data, UsageError else."""
    if batches.smallest(size, most) > 1 or not (norms := batch_norms(model)):
        return
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        trial = network(task, seed=0).train()
        try:
            trial(inputs[:1].float())
        except ValueError:
            name, layer = norms[0]
        else:
            return  # each sample has several values of a channel, as images do
    needs = f"expected at least 2 in a batch for {name or 'the network'} ({type(layer).__name__})"
    if size == 1:
        raise TrainingError(f"1 sample to train on, {needs}")
    raise UsageError(f"batch_size {most}: {needs}")


def _finite(value: float, what: str) -> float:
    if not math.isfinite(value):
        raise TrainingError(f"{what} is {value}")
    return value
