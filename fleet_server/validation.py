"""How good a model file is on the validation drives of each region, in ONNX Runtime, and the canary made from them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedfleet.fleet_server.gate import Scores
from fedfleet.models import bundle, prepared, scoring, slices
from fedfleet.models.task import Samples, Sums, Task, added
from fedfleet.protocol.errors import UsageError

__all__ = ["Canary", "Validation", "open_validation"]

CANARY_ROWS = 8
FILES_KEPT = 4
"""Of so many files the scores are kept for each region: a round's candidate is what the next round is judged by."""


class Canary(NamedTuple):
    """Two blobs: what a model is asked before it drives, and what it must answer."""

    inputs: bytes
    answers: bytes


@dataclass(frozen=True)
class Validation:
    """The task and the validation samples by region; ``batch`` samples go into one call.

    ``rows`` has, by slice that a floor is on, the rows of its judged samples by region.
    """

    task: Task
    samples: Mapping[str, Samples]
    batch: int
    rows: Mapping[str, Mapping[str, NDArray[np.int64]]] = field(default_factory=dict)
    _scored: dict[tuple[str, bytes], Sums] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def scores(self, onnx: bytes) -> Scores:
        """Score a model file, by region and metric, over the judged samples.

        PeerError when the file does not match the task.
        """
        return self.scores_of(dict.fromkeys(self.samples, onnx))

    def scores_of(self, files: Mapping[str, bytes]) -> Scores:
        """Score each region by its own model file, unless it was among the last few that were scored there."""
        digests = {onnx: sha256(onnx).digest() for onnx in set(files.values())}
        fresh = {
            files[region] for region in self.samples if (region, digests[files[region]]) not in self._scored
        }
        sessions = {onnx: scoring.new_session(onnx) for onnx in fresh}
        found = {}
        for region, samples in self.samples.items():
            onnx = files[region]
            known = self._scored.pop((region, digests[onnx]), None)
            if known is None:
                known = scoring.score(sessions[onnx], self.task, samples, batch=self.batch)
            found[region] = self._scored[region, digests[onnx]] = known
        while len(self._scored) > FILES_KEPT * len(self.samples):
            del self._scored[next(iter(self._scored))]
        return {region: dict(known) for region, known in found.items()}

    def slices_of(self, files: Mapping[str, bytes]) -> dict[str, tuple[float, int]]:
        """Score the primary metric on each slice that a floor is on, over all regions, each by its own model file."""
        sessions = {onnx: scoring.new_session(onnx) for onnx in set(files.values())}
        metric = self.task.metrics[0].name
        found = {}
        for name, by_region in self.rows.items():
            parts = [
                scoring.score(
                    sessions[files[region]], self.task, self._of(region, name, rows), batch=self.batch
                )
                for region, rows in by_region.items()
            ]
            found[name] = added(parts).get(metric, (0.0, 0))
        return found

    def _of(self, region: str, name: str, rows: NDArray[np.int64]) -> Samples:
        """Return the samples of a slice; where it looks at all of them they are all judged."""
        found = self.samples[region].take(rows)
        return (
            replace(found, judged=np.ones_like(found.judged)) if slices.takes_all(self.task, name) else found
        )

    def baseline(self) -> Scores:
        """Score the task's trivial answer."""
        return {
            region: dict(self.task.score(self.task.baseline(samples.inputs), samples))
            for region, samples in self.samples.items()
        }

    def canaries(self, files: Mapping[str, bytes]) -> dict[str, Canary]:
        """Return the canary of each region's model file."""
        found = {onnx: self.canary(onnx) for onnx in set(files.values())}
        return {region: found[onnx] for region, onnx in files.items()}

    def canary(self, onnx: bytes) -> Canary:
        """Return the canary's blobs: a few inputs of the first region that has some, and the model's outputs."""
        inputs = next((s.inputs[:CANARY_ROWS] for s in self.samples.values() if len(s)), None)
        if inputs is None:
            inputs = np.zeros((1, *self.task.specification.input_shape), np.float32)
        outputs = scoring.infer(scoring.new_session(onnx), self.task, inputs)
        packed = bundle.pack_inputs(np.ascontiguousarray(inputs))
        return Canary(packed, bundle.pack_answers(outputs, inputs_sha256=sha256(packed).hexdigest()))


def open_validation(
    folder: Path, task: Task, *, regions: tuple[str, ...], batch: int, floors: Collection[str] = ()
) -> Validation:
    """Open ``folder/<region>`` of every region; UsageError when one is absent or was prepared for another task.

    ``floors`` are slices that have a floor: UsageError for one without a judged sample, which nothing could hold.
    """
    samples = {}
    for region in sorted(regions):
        prepared.check(prepared.open_meta(folder / region), task)
        samples[region] = prepared.open(folder / region, "validation")
    return Validation(task, samples, batch, _rows(task, samples, floors) if floors else {})


def _rows(
    task: Task, samples: Mapping[str, Samples], wanted: Collection[str]
) -> dict[str, dict[str, NDArray[np.int64]]]:
    found: dict[str, dict[str, NDArray[np.int64]]] = {}
    for region, one in samples.items():
        for name, chosen in slices.rows(task, one, slices.cut(task, one, region=region)):
            found.setdefault(name, {})[region] = chosen
    for name in sorted(wanted):
        if name not in found:
            expected = ", ".join(sorted(found)) or "none, as no sample is judged"
            raise UsageError(
                f"gate.floors: no judged validation sample in slice {name}, there are {expected}"
            )
    return {name: found[name] for name in sorted(wanted)}
