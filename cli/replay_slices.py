"""What a replay knows of single answers: sums by drive and slice, errors one by one, and where they were."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from fedfleet.cli.replay_result import values_of
from fedfleet.cli.replay_run import Driven
from fedfleet.models import slices
from fedfleet.models.slices import Labels
from fedfleet.models.task import Floats, Samples, Sums, Task

__all__ = ["Answers", "Gathered", "digest_of"]

Doubles = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Answers:
    """One drive's answers to its samples: labels by dimension, and each metric of every single one."""

    labels: Labels
    values: Mapping[str, Doubles]


@dataclass(eq=False)
class Gathered:
    """Drive after drive: sums by drive and slice of the model, the trivial answer, and of two models that are compared.

    ``ours`` and ``theirs`` are of the samples that both models answered.
    ``errors`` has the primary metric of every judged answer (model, trivial, other); ``places`` by region the rows
    (x_m, y_m, error) of judged answers, where the task tells where they were.
    """

    task: Task
    model: dict[str, dict[str, Sums]] = field(default_factory=dict)
    trivial: dict[str, dict[str, Sums]] = field(default_factory=dict)
    ours: dict[str, dict[str, Sums]] = field(default_factory=dict)
    theirs: dict[str, dict[str, Sums]] = field(default_factory=dict)
    errors: dict[str, list[Doubles]] = field(default_factory=lambda: defaultdict(list))
    places: dict[str, list[Doubles]] = field(default_factory=lambda: defaultdict(list))
    digests: list[str] = field(default_factory=list)

    def add(self, driven: Driven, other: Driven | None = None) -> Answers:
        """Take a drive, and what another model said to it."""
        key, truth, outputs = driven.drive.key, driven.truth, driven.outputs
        labels = slices.cut(self.task, truth, region=driven.drive.region)
        values = values_of(self.task, outputs, truth)
        trivial = self.task.baseline(truth.inputs)
        self.model[key] = slices.sums(self.task, outputs, truth, labels)
        self.trivial[key] = slices.sums(self.task, trivial, truth, labels)
        self.digests.append(digest_of(driven.samples))
        errors = values[self.task.metrics[0].name]
        judged = np.flatnonzero(np.asarray(truth.judged))
        self.errors["model"].append(errors[judged])
        self._add_errors("trivial", trivial, truth, judged)
        if {"x_m", "y_m"} <= truth.traits.keys():
            rows = [truth.traits["x_m"][judged], truth.traits["y_m"][judged], errors[judged]]
            self.places[driven.drive.region].append(np.stack(rows, axis=1).astype(np.float64))
        if other is not None:
            self._compare(driven, other)
        return Answers(labels, values)

    @property
    def data_sha256(self) -> str:
        """SHA-256 of the samples of all drives, in their order."""
        return sha256("".join(self.digests).encode()).hexdigest()

    def _add_errors(self, who: str, outputs: Floats, truth: Samples, rows: NDArray[np.int64]) -> None:
        found = values_of(self.task, outputs[rows], truth.take(rows))
        self.errors[who].append(found[self.task.metrics[0].name])

    def _compare(self, driven: Driven, other: Driven) -> None:
        """Sum up both models over the samples that both have answered."""
        common, ours, theirs = np.intersect1d(driven.answered, other.answered, return_indices=True)
        truth = driven.samples.take(common)
        labels = slices.cut(self.task, truth, region=driven.drive.region)
        for tally, outputs in ((self.ours, driven.outputs[ours]), (self.theirs, other.outputs[theirs])):
            tally[driven.drive.key] = slices.sums(self.task, outputs, truth, labels)
        self._add_errors("other", other.outputs[theirs], truth, np.flatnonzero(np.asarray(truth.judged)))


def digest_of(samples: Samples) -> str:
    """SHA-256 of inputs, targets and which are judged: their types, shapes and bytes."""
    digest = sha256()
    for array in (samples.inputs, samples.targets, samples.judged):
        digest.update(f"{array.dtype.str}{list(array.shape)}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
