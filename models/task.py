"""The plug-in protocol of a task, its plain values, and the registry.

A task turns recordings into arrays, names its network and loss (torch is never imported here) and says how good
an output is. Tasks are found by entry point (group `fedfleet.tasks`) or as `module:ATTRIBUTE`. numpy only.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fedfleet.models import extras
from fedfleet.protocol.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from fedfleet.scenarios.account import Account

__all__ = [
    "Case",
    "Drive",
    "Floats",
    "Frames",
    "Index",
    "Metric",
    "Numbers",
    "Samples",
    "Slicer",
    "Specification",
    "Sums",
    "Task",
    "added",
    "int8_loss",
    "load",
    "names",
    "noun",
    "resolve",
    "trivial",
]

GROUP = "fedfleet.tasks"

Floats: TypeAlias = NDArray[np.float32]
Numbers: TypeAlias = NDArray[np.float32 | np.uint8]
"""Inputs as they are kept: uint8, such as the pixels of an image, become float32 of the same value on use."""
Sums: TypeAlias = Mapping[str, tuple[float, int]]
"""Name -> (sum over samples, number of samples); the mean is sum / count, and sums of parts add up.

A metric that is a mean has the name of its sum. Others are made of the means of several sums (`Metric.of`).
"""


@dataclass(frozen=True)
class Metric:
    """What a number is called, its unit, and which direction is good.

    Without `of` it is the mean of the sum of its name, as the primary metric must be. With `of` it is what `of` makes
    of the means of all sums, NaN where it has no value: a root of a mean, a correlation, a ratio.
    """

    name: str
    unit: str
    better: Literal["lower", "higher"]
    of: Callable[[Mapping[str, float]], float] | None = field(default=None, compare=False)

    def value(self, sums: Sums) -> float | None:
        """Return the metric from sums; None where nothing was scored or the metric has no value."""
        if self.of is None:
            total, count = sums.get(self.name, (0.0, 0))
            return total / count if count else None
        means = {name: total / count for name, (total, count) in sums.items() if count}
        value = self.of(means) if means else math.nan
        return value if math.isfinite(value) else None

    def gain(self, value: float, other: float) -> float:
        """Return how much better `value` is than `other`, in the metric's unit: above 0 is better, always."""
        return other - value if self.better == "lower" else value - other

    def gain_percent(self, value: float | None, other: float | None) -> float | None:
        """Return the gain in percent of `other`; None without both, or where `other` is 0."""
        return None if value is None or not other else 100 * self.gain(value, other) / abs(other)


def added(parts: Iterable[Sums]) -> Sums:
    """Return the sums of all parts together."""
    together: dict[str, tuple[float, int]] = {}
    for part in parts:
        for name, (total, count) in part.items():
            old = together.get(name, (0.0, 0))
            together[name] = (old[0] + float(total), old[1] + int(count))
    return together


@dataclass(frozen=True)
class Specification:
    """Input and output of the model file, float32 both; shapes are without the dynamic batch axis in front."""

    input_name: str
    input_shape: tuple[int, ...]
    output_name: str
    output_shape: tuple[int, ...]


@dataclass(frozen=True)
class Samples:
    """Labelled examples: inputs f32 or uint8 [N,*in], targets f32[N,*out], judged bool[N] (counts for the metrics).

    `problems` counts what was left out of these drives, by reason. `traits` is what else is known of each sample, text
    or numbers [N,…] by name, for slices, maps and files, never for the network: `drive` (its key), `x_m`, `y_m` (where
    it was) and `scenario` are understood by every command, others by the task's own slices.
    """

    inputs: Numbers
    targets: Floats
    judged: NDArray[np.bool_]
    problems: Mapping[str, int] = field(default_factory=dict)
    traits: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise ValueError when the lengths differ."""
        if not len(self.inputs) == len(self.targets) == len(self.judged):
            lengths = f"{len(self.inputs)} inputs, {len(self.targets)} targets, {len(self.judged)} judged"
            raise ValueError(f"samples of different lengths: {lengths}")
        for name, values in self.traits.items():
            if len(values) != len(self.inputs):
                text = f"{len(self.inputs)} inputs, {len(values)} values of trait {name}"
                raise ValueError(f"samples of different lengths: {text}")

    def take(self, rows: NDArray[np.int64]) -> Samples:
        """Return these rows, in this order, without `problems`."""
        traits = {name: values[rows] for name, values in self.traits.items()}
        return Samples(self.inputs[rows], self.targets[rows], np.asarray(self.judged[rows]), traits=traits)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.inputs)


Slicer: TypeAlias = Callable[[Samples], NDArray[np.str_]]
"""Samples in, the name of each sample's slice out, text[N]; empty: in none (`models/slices.py`)."""


@dataclass(frozen=True)
class Frames:
    """What the vehicle sees: rows `offsets[i]:offsets[i+1]` of inputs f32 or uint8 [F,*in] belong to frame i.

    A frame may have no row. `sample` int64[F] is the row of Samples (of the same drives) whose target tells the
    truth for this prediction, -1 = none.
    """

    inputs: Numbers
    offsets: NDArray[np.int64]
    sample: NDArray[np.int64]
    rate_hz: float

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.offsets) - 1


@dataclass(frozen=True)
class Drive:
    """One continuous trip of one vehicle: splits are made of whole drives, never of pieces.

    Drives that show the same seconds, or the same place at the same time, have the same `overlap`: they stay on one
    side of a split. Empty: it overlaps with none.
    """

    region: str
    drive: str
    recordings: int
    seconds: float
    overlap: str = ""

    @property
    def key(self) -> str:
        """Return `region/drive`, the name of the drive everywhere outside its own region."""
        return f"{self.region}/{self.drive}"


@dataclass(frozen=True)
class Index:
    """What a folder of recordings holds, and how many tracks or files were left out for which reason.

    Where the recordings need not be read to know their drives, `is_counted` is False and `problems` empty: what is
    left out is then counted in `Samples`. `account` names the files that are not read, if the task's reader keeps one;
    it grows while recordings are read.
    """

    drives: tuple[Drive, ...]
    problems: Mapping[str, int]
    is_counted: bool = True
    account: Account | None = None


@dataclass(frozen=True, eq=False)
class Case:
    """One answer to look at: output f32[*out] of a model to row `sample` of `samples(folder, [drive])`."""

    drive: str
    sample: int
    output: Floats


@runtime_checkable
class Task(Protocol):
    """What every room needs to know about a learning task; `drives` are `Drive.key` values.

    `metrics[0]` is the primary metric. `network` and `loss` are `module:function` names, resolved only in
    processes that hold torch: the network function takes nothing and returns an `nn.Module` with the weights of
    version 0 (drawn from torch's seeded generator); the loss takes (outputs, targets) and returns a scalar tensor.

    A task that can draw has one attribute more, `plot`: `module:function` of a function that takes a sequence of
    `Case`, `scenarios` and `out` (folders, by keyword), writes a picture of each case and returns the files' paths.
    A task that can vary its samples has `augment`: `module:function` of a function that takes a batch of inputs and
    targets (tensors), `kind` (as in `TrainSettings.augment`) and `chance` (a `torch.Generator`), both by keyword, and
    returns new inputs and targets of the same shapes.
    A task whose tensors are not all alike has `tensors`, a mapping of patterns of tensor names (as `fnmatch`) to
    "sparse", "dense" (never sparsified: statistics of a batch norm, biases) or "exclude" (never leaves the vehicle,
    and does not change in the published model); the first pattern that matches counts, the rest are sparse. `head`
    is a tuple of patterns of the tensors that are a region's own. `models/layout.py` puts both into the model's layout.
    `int8_loss` is the share by which the primary metric may get worse in int8 (0.02 where the task does not say).
    `differ(active, candidate)` tells which answers of two models, f32[N, *out] each, disagree (bool[N]), for a vehicle
    that tries a release beside the model that drives; without it, those far apart, measured by the size of the targets.
    `reads_tracks` is true for a task that learns from the tracks of `scenarios.reading`: commands then tell formats.
    What people read of it: `noun` is what its samples are ("tracks", "patients"), `trivial` what `baseline` answers.
    `slices` cut its samples for reports and for the gate: a mapping of dimensions ("manoeuvre") to functions that take
    `Samples` and return the name of each sample's slice, text[N], empty = in none (`models/slices.py`).
    `slices_of_all` are names of dimensions that look at all samples, not at the judged ones only: for what a model must
    not spoil though it is not asked for it, such as where a parked car will be.
    `suits` are the settings that suit it, where nobody chose others: mappings `server` (as the configuration's
    section), `compare` (as the arms of `fedfleet compare`) and `demo` (`rounds`).
    """

    @property
    def name(self) -> str:
        """Return the task's id, also used in topics."""

    @property
    def version(self) -> int:
        """Return the version of specification, features and metrics together."""

    @property
    def specification(self) -> Specification:
        """Return input and output of the model."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Return the metrics, primary first."""

    @property
    def network(self) -> str:
        """Return `module:function` of the network."""

    @property
    def loss(self) -> str:
        """Return `module:function` of the loss."""

    def index(self, folder: Path) -> Index:
        """List the drives of a folder; UsageError for an empty or unreadable one."""

    def samples(self, folder: Path, drives: Sequence[str]) -> Samples:
        """Read the labelled examples of these drives; UsageError for an unknown drive."""

    def frames(self, folder: Path, drives: Sequence[str]) -> Frames:
        """Read these drives frame by frame, `sample` pointing into `samples(folder, drives)`."""

    def score(self, outputs: Floats, samples: Samples) -> Sums:
        """Sum every metric over the judged samples."""

    def score_all(self, outputs: Floats, samples: Samples) -> Sums:
        """Sum every metric over all samples."""

    def baseline(self, inputs: Numbers) -> Floats:
        """Return the trivial answer f32[N,*out] that a model has to beat."""


def noun(task: Task) -> str:
    """Return what the samples of a task are, in the plural."""
    return str(getattr(task, "noun", "samples"))


def trivial(task: Task) -> str:
    """Return what the trivial answer of a task is."""
    return str(getattr(task, "trivial", "trivial answer"))


def int8_loss(task: Task) -> float:
    """Return the share by which the primary metric of a task may get worse in int8."""
    return float(getattr(task, "int8_loss", 0.02))


def names() -> tuple[str, ...]:
    """Return the names of the installed tasks, sorted."""
    return tuple(sorted({entry.name for entry in entry_points(group=GROUP)}))


def load(name: str) -> Task:
    """Load a task by its installed name or as `module:ATTRIBUTE`.

    Raises UsageError, naming the installed tasks, when there is none of that name, it is not a task, or has mistakes
    that show without recordings (`task_check`).
    """
    if ":" in name:
        found = _attribute(name)
    else:
        entry = next(iter(entry_points(group=GROUP, name=name)), None)
        if entry is None:
            known = ", ".join(names()) or "none"
            near = get_close_matches(name.replace("-", "_"), names(), n=1)
            hint = f", did you mean {near[0]}?" if near else ""
            raise UsageError(
                f"unknown task {name!r}: expected an installed task ({known}) or module:ATTRIBUTE{hint}"
            )
        try:
            found = entry.load()
        except Exception as error:
            raise UsageError(_unloaded(f"task {name}", error)) from error
    if not isinstance(found, Task):
        missing = [each for each in vars(Task) if not each.startswith("_") and not hasattr(found, each)]
        raise UsageError(f"{name} is not a task: it has no {', '.join(missing)}")
    return _checked(found, name)


_CHECKED: dict[int, Task] = {}
"""The tasks that were looked at in this process; they are kept, so that an id is not given again."""


def _checked(task: Task, name: str) -> Task:
    """Return a task after a look for the mistakes that can be found without recordings; once in a process."""
    from fedfleet.models import task_check  # it knows what a task is

    if id(task) not in _CHECKED:
        task_check.check(task, name)
        _CHECKED[id(task)] = task
    return task


def resolve(name: str) -> Callable[..., Any]:
    """Return the function that `module:function` names; UsageError when there is none."""
    return cast("Callable[..., Any]", _attribute(name))


def _attribute(name: str) -> object:
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        text = _unloaded(repr(name), error)
        if error.name == module.partition(".")[0]:
            text += (
                ": install its package, or put its folder on PYTHONPATH (the current folder is not searched)"
            )
        raise UsageError(text) from error
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(_unloaded(repr(name), error)) from error
    except Exception as error:  # its own code, run by the import
        raise UsageError(_unloaded(repr(name), error)) from error


def _unloaded(what: str, error: Exception) -> str:
    if isinstance(error, ImportError) and (told := extras.lacking(error)):
        return f"{what}: {told}"
    expected = ", expected module:ATTRIBUTE" if what.startswith("'") else ""
    kind = "" if isinstance(error, ImportError | AttributeError | ValueError) else f"{type(error).__name__}: "
    return f"cannot load {what}{expected}: {kind}{error}"
