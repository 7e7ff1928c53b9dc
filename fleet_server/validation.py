"""How good a model file is on the validation drives of each region, in ONNX Runtime, and the canary made from them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedfleet.fleet_server.gate import Scores
from fedfleet.models import bundle, prepared, scoring
from fedfleet.models.task import Samples, Task

__all__ = ["Validation", "open_validation"]

CANARY_ROWS = 8


@dataclass(frozen=True)
class Validation:
    """The task and the validation samples by region; ``batch`` samples go into one call."""

    task: Task
    samples: Mapping[str, Samples]
    batch: int

    def scores(self, onnx: bytes) -> Scores:
        """Score a model file, by region and metric, over the judged samples.

        PeerError when the file does not match the task.
        """
        return self.scores_of(dict.fromkeys(self.samples, onnx))

    def scores_of(self, files: Mapping[str, bytes]) -> Scores:
        """Score each region by its own model file; regions with the same file share one session."""
        sessions = {onnx: scoring.new_session(onnx) for onnx in set(files.values())}
        return {
            region: dict(scoring.score(sessions[files[region]], self.task, samples, batch=self.batch))
            for region, samples in self.samples.items()
        }

    def baseline(self) -> Scores:
        """Score the task's trivial answer."""
        return {
            region: dict(self.task.score(self.task.baseline(samples.inputs), samples))
            for region, samples in self.samples.items()
        }

    def canaries(self, files: Mapping[str, bytes]) -> dict[str, bytes]:
        """Return the canary of each region's model file."""
        found = {onnx: self.canary(onnx) for onnx in set(files.values())}
        return {region: found[onnx] for region, onnx in files.items()}

    def canary(self, onnx: bytes) -> bytes:
        """Return the canary blob: a few inputs of the first region that has some, and the model's outputs."""
        inputs = next((s.inputs[:CANARY_ROWS] for s in self.samples.values() if len(s)), None)
        if inputs is None:
            inputs = np.zeros((1, *self.task.specification.input_shape), np.float32)
        outputs = scoring.infer(scoring.new_session(onnx), self.task, inputs)
        return bundle.pack_canary(np.ascontiguousarray(inputs), outputs)


def open_validation(folder: Path, task: Task, *, regions: tuple[str, ...], batch: int) -> Validation:
    """Open ``folder/<region>`` of every region; UsageError when one is absent or was prepared for another task."""
    samples = {}
    for region in sorted(regions):
        prepared.check(prepared.open_meta(folder / region), task)
        samples[region] = prepared.open(folder / region, "validation")
    return Validation(task, samples, batch)
