"""The arms of a comparison by slice: figures with intervals, where the federated one differs, its worst answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedfleet.cli.compare_arms import Judged
from fedfleet.cli.evidence import estimates_json
from fedfleet.models import bootstrap, scoring
from fedfleet.models.bootstrap import Difference, Estimate
from fedfleet.models.task import Case, Floats, Samples, Task

__all__ = ["Answered", "Sliced", "answered", "as_json", "slice_up", "slices_json"]

OURS = "federated"


@dataclass(frozen=True, eq=False)
class Answered:
    """What the federated model answered to judged samples: where the errors are, and the worst, the worst first.

    ``places`` has by region the rows (x_m, y_m, error), float64[N, 3].
    """

    places: Mapping[str, NDArray[np.float64]]
    worst: tuple[tuple[float, Case], ...]


@dataclass(frozen=True, eq=False)
class Sliced:
    """Figures on every slice by arm; the federated arm's worst slice; how that arm differs from each other."""

    found: Mapping[str, Mapping[str, tuple[Estimate, ...]]]
    worst: str | None
    differences: Mapping[str, Mapping[str, Difference]]


def slice_up(task: Task, tests: Mapping[str, Judged], *, seed: int) -> Sliced:
    """Draw the intervals of all arms, and compare the federated one with each other arm on the same samples."""
    found = {arm: bootstrap.estimates(test.tally, task.metrics, seed=seed) for arm, test in tests.items()}
    differences = {
        arm: bootstrap.compare(test.tally, tests[OURS].tally, task.metrics[0], seed=seed)
        for arm, test in tests.items()
        if arm != OURS
    }
    return Sliced(found, bootstrap.worst(found[OURS], task.metrics[0]), differences)


def answered(model: bytes, task: Task, samples: Mapping[str, Samples], *, most: int) -> Answered:
    """Let a model answer the judged samples once more, and keep each error."""
    session = scoring.new_session(model)
    places, cases = {}, []
    for region, one in samples.items():
        rows = np.flatnonzero(np.asarray(one.judged))
        truth = one.take(rows)
        outputs = scoring.infer(session, task, truth.inputs)
        errors = _errors(task, outputs, truth)
        if {"x_m", "y_m"} <= truth.traits.keys():
            places[region] = np.stack([truth.traits["x_m"], truth.traits["y_m"], errors], axis=1)
        if "drive" in truth.traits:
            cases += _cases(one, rows, outputs, errors)
    sign = -1.0 if task.metrics[0].better == "lower" else 1.0
    return Answered(places, tuple(sorted(cases, key=lambda each: sign * each[0])[:most]))


def as_json(sliced: Sliced) -> dict[str, Any]:
    """Return the federated arm's worst slice and its differences, for programs."""
    return {
        "worst_slice": sliced.worst,
        "differences": {
            arm: {
                name: {
                    "difference": one.difference,
                    "low": one.low,
                    "high": one.high,
                    "gain": one.gain,
                    "drives": one.drives,
                    "drives_worse": one.drives_worse,
                    "p_corrected": one.p_corrected,
                    "federated_is": one.verdict,
                }
                for name, one in found.items()
            }
            for arm, found in sliced.differences.items()
        },
    }


def slices_json(sliced: Sliced, arm: str) -> dict[str, Any]:
    """Return an arm's figures by slice, for programs."""
    return estimates_json(sliced.found[arm])


def _errors(task: Task, outputs: Floats, truth: Samples) -> NDArray[np.float64]:
    name = task.metrics[0].name
    found = [
        task.score_all(outputs[row : row + 1], truth.take(np.array([row])))[name][0]
        for row in range(len(truth))
    ]
    return np.array(found, dtype=np.float64)


def _cases(
    samples: Samples, rows: NDArray[np.int64], outputs: Floats, errors: NDArray[np.float64]
) -> list[tuple[float, Case]]:
    """Name each answer by its drive and its row among that drive's samples."""
    drives = np.asarray(samples.traits["drive"])
    number = np.zeros(len(drives), dtype=np.int64)
    for drive in np.unique(drives):
        same = drives == drive
        number[same] = np.arange(int(same.sum()))
    return [
        (float(error), Case(str(drives[row]), int(number[row]), output))
        for row, output, error in zip(rows, outputs, errors, strict=True)
        if np.isfinite(error)
    ]
