"""What is wrong with a plug-in task, found when it is loaded, or when it has read recordings; numpy only.

A task is tried on a few made-up samples: baseline and metrics are plain functions of arrays. What needs torch is tried
by the export of the first model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedfleet.models.task import Drive, Floats, Frames, Index, Metric, Samples, Specification, Sums, Task
from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.ids import check_id, task_id
from fedfleet.protocol.printable import printable

__all__ = ["check", "check_frames", "check_index", "check_samples"]

_COUNT: Final = 4
_MOST_NAME: Final = 40
_MOST_METRICS: Final = 40
_TENSORS: Final = ("sparse", "dense", "exclude")
_FUNCTIONS: Final = ("network", "loss", "plot", "augment")
_ALWAYS: Final = ("network", "loss")


class _NeedsTraitError(Exception):
    """A metric asks for a trait, which made-up samples have none of."""


class _Traits(dict[str, NDArray[Any]]):
    def __missing__(self, name: str) -> NDArray[Any]:
        raise _NeedsTraitError(name)


def check(task: Task, name: str) -> None:
    """Raise UsageError, with all that is wrong with the task that ``name`` loads."""
    if isinstance(task, type):
        raise UsageError(f"{name} is a class, expected an instance of it: TASK = {task.__name__}()")
    wrong = list(_declared(task))
    if not wrong:
        wrong = list(_tried(task))
    if wrong:
        raise UsageError(f"{name} is not a usable task: {'; '.join(map(printable, wrong))}")


# --- what it declares ---


def _declared(task: Task) -> Iterator[str]:
    yield from _name(task)
    if isinstance(task.version, bool) or not isinstance(task.version, int) or task.version < 0:
        yield f"version: expected a whole number, got {task.version!r}"
    yield from _specification(task.specification)
    yield from _metrics(task.metrics)
    for attribute in _FUNCTIONS:
        if attribute in _ALWAYS or hasattr(task, attribute):
            yield from _function(attribute, getattr(task, attribute))
    for attribute in ("index", "samples", "frames", "score", "score_all", "baseline"):
        if not callable(getattr(task, attribute)):
            yield f"{attribute}: expected a method, got {type(getattr(task, attribute)).__name__}"
    yield from _optional(task)


def _name(task: Task) -> Iterator[str]:
    try:
        task_id(task.name)
    except (UsageError, AttributeError, TypeError) as error:
        yield (
            f"name: {error}" if isinstance(error, UsageError) else f"name: expected a text, got {task.name!r}"
        )


def _specification(told: object) -> Iterator[str]:
    if not isinstance(told, Specification):
        yield f"specification: expected a Specification, got {type(told).__name__}"
        return
    for side, name, shape in (
        ("input", told.input_name, told.input_shape),
        ("output", told.output_name, told.output_shape),
    ):
        if not isinstance(name, str) or not name or not name.isprintable() or " " in name:
            yield f"specification: {side}_name: expected a name without blanks, got {name!r}"
        sizes = shape if isinstance(shape, tuple) else ()
        if not sizes or not all(_is_whole(size) and size > 0 for size in sizes):
            yield f"specification: {side}_shape: expected a tuple of sizes above 0, got {shape!r}"
    if told.input_name == told.output_name:
        yield f"specification: input and output have one name, {told.input_name!r}"


def _metrics(told: object) -> Iterator[str]:
    if not isinstance(told, tuple | list) or not told:
        yield f"metrics: expected a tuple of Metric, got {told!r}"
        return
    if other := [one for one in told if not isinstance(one, Metric)]:
        yield f"metrics: expected a tuple of Metric, got a {type(other[0]).__name__} in it"
        return
    for metric in told:
        yield from _metric(metric)
    names = [metric.name for metric in told]
    if twice := sorted({name for name in names if names.count(name) > 1}, key=str):
        yield f"metrics: {twice[0]} is there twice"
    if len(told) > _MOST_METRICS:
        yield f"metrics: {len(told)}, expected at most {_MOST_METRICS}"
    if told[0].of is not None:
        yield f"metrics: the first, {told[0].name}, decides: expected the mean of a sum, got one made of others (of)"


def _metric(metric: Any) -> Iterator[str]:  # noqa: ANN401 - what a plug-in put into it
    name = metric.name
    if not isinstance(name, str) or not name.strip() or name != name.strip() or not name.isprintable():
        yield f"metrics: expected a name, without blanks around it, got {name!r}"
    elif len(name) > _MOST_NAME:
        yield f"metrics: {name}: {len(name)} characters, expected at most {_MOST_NAME}"
    if metric.better not in {"lower", "higher"}:
        yield f"metrics: {name}: better: expected 'lower' or 'higher', got {metric.better!r}"
    if metric.of is not None and not callable(metric.of):
        yield f"metrics: {name}: of: expected a function of the means, got {metric.of!r}"


def _function(attribute: str, named: object) -> Iterator[str]:
    """Say whether a function is named as module:function; its module is not imported, it may need torch."""
    module, colon, function = named.partition(":") if isinstance(named, str) else ("", "", "")
    if not (colon and function.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        yield f"{attribute}: expected 'module:function', got {named!r}"


def _optional(task: Task) -> Iterator[str]:
    for attribute in ("noun", "trivial"):
        if not isinstance(getattr(task, attribute, ""), str):
            yield f"{attribute}: expected a text, got {getattr(task, attribute)!r}"
    loss = getattr(task, "int8_loss", 0.0)
    if isinstance(loss, bool) or not isinstance(loss, int | float) or not math.isfinite(loss) or loss < 0:
        yield f"int8_loss: expected a share of 0 or more, got {loss!r}"
    if hasattr(task, "differ") and not callable(task.differ):
        yield f"differ: expected a function of two answers, got {task.differ!r}"
    yield from _tensors(getattr(task, "head", ()), getattr(task, "tensors", {}))
    yield from _mappings(getattr(task, "slices", {}), getattr(task, "suits", {}))


def _tensors(head: object, tensors: object) -> Iterator[str]:
    if isinstance(head, str) or not _are_texts(head):
        yield f"head: expected a tuple of patterns of tensor names, got {head!r}"
    if not isinstance(tensors, Mapping) or not _are_texts(tensors):
        yield f"tensors: expected a mapping of patterns of tensor names, got {tensors!r}"
    elif odd := [value for value in tensors.values() if value not in _TENSORS]:
        yield f"tensors: expected {', '.join(_TENSORS)}, got {odd[0]!r}"


def _mappings(slices: object, suits: object) -> Iterator[str]:
    if not isinstance(slices, Mapping) or not _are_texts(slices) or not all(map(callable, slices.values())):
        yield f"slices: expected a mapping of names to functions, got {slices!r}"
    if not isinstance(suits, Mapping) or not all(isinstance(part, Mapping) for part in suits.values()):
        yield f"suits: expected mappings 'server', 'compare' and 'demo', got {suits!r}"
    elif odd := sorted(set(suits) - {"server", "compare", "demo"}, key=str):
        yield f"suits: {odd[0]}: expected 'server', 'compare' or 'demo'"


# --- what it does with a few made-up samples ---


def _tried(task: Task) -> Iterator[str]:
    shape = task.specification
    chance = np.random.default_rng(0)
    inputs = chance.uniform(0, 1, (_COUNT, *shape.input_shape)).astype(np.float32)
    answer, wrong = _call("baseline", partial(task.baseline, inputs))
    yield from wrong
    if answer is not None:
        yield from _answer(answer, (_COUNT, *shape.output_shape))
    outputs = chance.uniform(0, 1, (_COUNT, *shape.output_shape)).astype(np.float32)
    tries = []
    for inner in (shape.output_shape, (1,), ()):  # a task may keep its targets in another shape
        targets = chance.integers(0, 2, (_COUNT, *inner)).astype(np.float32)
        tries.append(list(_scored(task, inputs, outputs, targets)))
        if not tries[-1]:
            return
    yield from tries[0]


def _scored(task: Task, inputs: Floats, outputs: Floats, targets: Floats) -> Iterator[str]:
    for words, judged in (("", True), (" of samples of which none is judged", False)):
        samples = Samples(inputs, targets, np.full(_COUNT, judged), traits=_Traits())
        for name, score in (("score", task.score), ("score_all", task.score_all)):
            sums, wrong = _call(f"{name}{words}", partial(score, outputs, samples))
            yield from wrong
            if sums is not None:
                yield from _sums(f"{name}{words}", sums, task.metrics)


def _call(what: str, call: Callable[[], Any]) -> tuple[Any, list[str]]:
    """Return what a function of the task gives for made-up samples, and what is wrong with that."""
    try:
        with np.errstate(all="ignore"):
            found = call()
    except (_NeedsTraitError, NotImplementedError):
        return None, []  # that cannot be made up
    except Exception as error:  # noqa: BLE001 - whatever a plug-in raises
        return None, [f"{what} fails on {_COUNT} made-up samples: {type(error).__name__}: {error}"]
    return (None, [f"{what} returns nothing"]) if found is None else (found, [])


def _answer(answer: object, expected: tuple[int, ...]) -> Iterator[str]:
    if not isinstance(answer, np.ndarray):
        yield f"baseline: expected an array f32{list(expected)}, got {type(answer).__name__}"
    elif answer.shape != expected or answer.dtype.kind != "f":
        yield f"baseline: expected f32{list(expected)}, got {answer.dtype}{list(answer.shape)}"
    elif not np.isfinite(answer).all():
        yield "baseline: its answer to finite inputs is not finite"


def _sums(what: str, sums: object, metrics: Sequence[Metric]) -> Iterator[str]:
    if not isinstance(sums, Mapping):
        yield f"{what}: expected a mapping of names to (sum, number), got {type(sums).__name__}"
        return
    for name, pair in sums.items():
        if not isinstance(name, str) or not _is_sum(pair):
            yield f"{what}: {name!r}: expected (sum, number of samples), got {pair!r}"
            return
    missing = [metric.name for metric in metrics if metric.of is None and metric.name not in sums]
    if missing:
        has = ", ".join(map(str, sums)) or "none"
        yield f"{what}: no sum of the metric {', '.join(missing)}: it has {has}"
        return
    for metric in metrics:
        _, wrong = _call(f"metric {metric.name} of {what}", partial(_value, metric, sums))
        yield from wrong


def _value(metric: Metric, sums: Sums) -> tuple[float | None]:
    return (metric.value(sums),)


def _is_sum(pair: object) -> bool:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        return False
    total, count = pair
    return isinstance(total, int | float | np.floating | np.integer) and _is_whole(count) and count >= 0


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _are_texts(values: object) -> bool:
    return isinstance(values, Iterable) and all(isinstance(value, str) and value for value in values)


# --- what it has read ---


def check_index(task: Task, index: Index) -> None:
    """Raise UsageError for a region that topics cannot hold, or a drive that is no Drive or cannot be named."""
    for drive in index.drives:
        if not isinstance(drive, Drive):
            raise UsageError(f"task {task.name}: index: expected drives, got {type(drive).__name__}")
        check_id(drive.region, "region")
        if not drive.drive or "," in drive.drive or drive.drive != drive.drive.strip():
            raise UsageError(
                f"task {task.name}: drive {drive.drive!r}: expected a name without commas and blanks around it"
            )


def check_samples(task: Task, samples: Samples) -> None:
    """Raise UsageError unless samples have the shapes, types and values that the task declares."""
    shape = task.specification
    _check_array(task, "inputs", samples.inputs, shape.input_shape, kinds=("float32", "uint8"))
    _check_array(task, "targets", samples.targets, None, kinds=("float32",))
    if samples.judged.dtype != np.bool_ or samples.judged.ndim != 1:
        got = f"{samples.judged.dtype}{list(samples.judged.shape)}"
        raise UsageError(f"task {task.name}: samples: judged: expected bool[N], got {got}")


def check_frames(task: Task, frames: Frames) -> None:
    """Raise UsageError unless frames have the shapes, types and values that the task declares."""
    _check_array(task, "frames", frames.inputs, task.specification.input_shape, kinds=("float32", "uint8"))
    offsets, rows = np.asarray(frames.offsets), len(frames.inputs)
    if (
        offsets.ndim != 1
        or not len(offsets)
        or offsets[0] != 0
        or offsets[-1] != rows
        or (np.diff(offsets) < 0).any()
    ):
        raise UsageError(f"task {task.name}: frames: offsets: expected numbers that rise from 0 to {rows}")
    if len(frames.sample) != rows:
        raise UsageError(
            f"task {task.name}: frames: {len(frames.sample)} samples, expected one for each of {rows} rows"
        )
    if not math.isfinite(frames.rate_hz) or frames.rate_hz <= 0:
        raise UsageError(
            f"task {task.name}: frames: rate_hz: expected a rate above 0, got {frames.rate_hz!r}"
        )


def _check_array(
    task: Task, what: str, array: NDArray[Any], inner: tuple[int, ...] | None, *, kinds: Sequence[str]
) -> None:
    expected = f"{' or '.join(kinds)}[N{''.join(f', {size}' for size in inner or ())}{', …' if inner is None else ''}]"
    got = f"{getattr(array, 'dtype', type(array).__name__)}{list(getattr(array, 'shape', ()))}"
    if not isinstance(array, np.ndarray) or str(array.dtype) not in kinds:
        raise UsageError(f"task {task.name}: {what}: expected {expected}, got {got}")
    if inner is not None and array.shape[1:] != inner:
        raise UsageError(f"task {task.name}: {what}: expected {expected}, got {got}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UsageError(
            f"task {task.name}: {what}: {int((~np.isfinite(array)).sum())} numbers are not finite"
        )
