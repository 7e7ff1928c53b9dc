"""Slices of samples: by what they show, and by where they come from; a model is judged on each, not on an average.

A slice is named `dimension=name` ("manoeuvre=turn-left"); `all` holds every sample. The functions that cut are plain,
Samples in, one name per sample out: a task brings its own (`slices`), and packages add more by the entry point group
`fedfleet.slices`, as `task.dimension`. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from typing import Any, Final, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from fedfleet.models.task import Floats, Samples, Slicer, Sums, Task
from fedfleet.protocol.errors import UsageError

__all__ = ["ALL", "REGION", "Labels", "by_drive", "cut", "known", "rows", "slicers", "sums", "takes_all"]

GROUP: Final = "fedfleet.slices"
ALL: Final = "all"
REGION: Final = "region"
MAX_NAMES: Final = 200
"""A dimension with more names than this is an identifier, not a way to cut."""

Labels: TypeAlias = Mapping[str, NDArray[np.str_]]
"""Dimension -> the name of each sample's slice; empty: in none of this dimension."""


def slicers(task: Task) -> dict[str, Slicer]:
    """Return the functions that cut this task's samples, by dimension: the task's own, then those of packages.

    Raises UsageError when two have the same dimension.
    """
    found: dict[str, Slicer] = dict(getattr(task, "slices", {}))
    for entry in sorted(entry_points(group=GROUP), key=lambda one: (one.name, one.value)):
        of_task, _, dimension = entry.name.partition(".")
        if of_task != task.name:
            continue
        if dimension in {*found, REGION, ALL, ""}:
            raise UsageError(
                f"slices {entry.name} ({entry.value}): task {task.name} has this dimension already"
            )
        found[dimension] = cast("Slicer", entry.load())
    return found


def cut(task: Task, samples: Samples, *, region: str = "") -> Labels:
    """Cut samples by every dimension, and by the region that they come from, where one is named.

    Raises UsageError for a function that does not answer with one name for each sample.
    """
    labels = {}
    for dimension, function in slicers(task).items():
        names = np.asarray(function(samples))
        if names.shape != (len(samples),) or names.dtype.kind != "U":
            got = f"{names.dtype}{list(names.shape)}"
            raise UsageError(f"slices {task.name}.{dimension}: expected text[{len(samples)}], got {got}")
        labels[dimension] = names
    if region:
        labels[REGION] = np.full(len(samples), region)
    return labels


def known(labels: Labels) -> Iterable[tuple[str, NDArray[np.bool_]]]:
    """Give every slice that has a sample, by name, with its rows as a mask; `all` is not among them."""
    for dimension, names in sorted(labels.items()):
        found = np.unique(names[names != ""])
        if len(found) > MAX_NAMES:
            raise UsageError(f"slices by {dimension}: {len(found)} names, expected at most {MAX_NAMES}")
        for name in found:
            yield f"{dimension}={name}", names == name


def rows(task: Task, samples: Samples, labels: Labels) -> Iterable[tuple[str, NDArray[np.int64]]]:
    """Give every slice with the rows that count in it: the judged ones, of the task's `slices_of_all` all of them."""
    judged = np.asarray(samples.judged)
    if judged.any():
        yield ALL, np.flatnonzero(judged)
    for name, mask in known(labels):
        found = np.flatnonzero(mask if takes_all(task, name) else mask & judged)
        if len(found):
            yield name, found


def takes_all(task: Task, name: str) -> bool:
    """Tell whether a slice looks at all samples, judged or not."""
    return name.partition("=")[0] in getattr(task, "slices_of_all", ())


def sums(task: Task, outputs: Floats, samples: Samples, labels: Labels) -> dict[str, Sums]:
    """Sum every metric over the samples that count in each slice; slices without one are left out."""
    found: dict[str, Sums] = {}
    for name, chosen in rows(task, samples, labels):
        score = task.score_all if takes_all(task, name) else task.score
        found[name] = score(outputs[chosen], samples.take(chosen))
    return found


def by_drive(
    task: Task, outputs: Floats, samples: Samples, labels: Labels, *, otherwise: str = ""
) -> dict[str, dict[str, Sums]]:
    """Sum by drive, then by slice; samples whose drive is not told are all of the drive `otherwise`.

    Drives are what a bootstrap draws: samples of one drive resemble each other.
    """
    keys: NDArray[Any] | None = samples.traits.get("drive")
    if keys is None:
        return {otherwise: sums(task, outputs, samples, labels)}
    found = {}
    for key in np.unique(keys):
        rows = np.flatnonzero(keys == key)
        part = {dimension: names[rows] for dimension, names in labels.items()}
        found[str(key)] = sums(task, outputs[rows], samples.take(rows), part)
    return found
