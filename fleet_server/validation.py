"""How good a model file is on the validation drives of each region, in ONNX Runtime, and the canary made from them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from fedfleet.fleet_server.gate import Scores
from fedfleet.models import bundle, prepared
from fedfleet.models.task import Floats, Samples, Task

__all__ = ["Validation", "infer", "open_validation"]

CANARY_ROWS = 8


@dataclass(frozen=True)
class Validation:
    """The task and the validation samples by region; ``batch`` samples go into one call."""

    task: Task
    samples: Mapping[str, Samples]
    batch: int

    def scores(self, onnx: bytes) -> Scores:
        """Score a model file, by region and metric, over the judged samples."""
        return {
            region: dict(self.task.score(infer(onnx, samples.inputs, batch=self.batch), samples))
            for region, samples in self.samples.items()
        }

    def baseline(self) -> Scores:
        """Score the task's trivial answer."""
        return {
            region: dict(self.task.score(self.task.baseline(samples.inputs), samples))
            for region, samples in self.samples.items()
        }

    def canary(self, onnx: bytes) -> bytes:
        """Return the canary blob: a few inputs of the first region that has some, and the model's outputs."""
        inputs = next((s.inputs[:CANARY_ROWS] for s in self.samples.values() if len(s)), None)
        if inputs is None:
            inputs = np.zeros((1, *self.task.specification.input_shape), np.float32)
        inputs = np.ascontiguousarray(inputs)
        return bundle.pack_canary(inputs, infer(onnx, inputs, batch=CANARY_ROWS))


def open_validation(folder: Path, task: Task, *, regions: tuple[str, ...], batch: int) -> Validation:
    """Open ``folder/<region>`` of every region; UsageError when one is absent or was prepared for another task."""
    samples = {}
    for region in sorted(regions):
        prepared.check(prepared.open_meta(folder / region), task)
        samples[region] = prepared.open(folder / region, "validation")
    return Validation(task, samples, batch)


def infer(onnx: bytes, inputs: Floats, *, batch: int) -> Floats:
    """Return the model file's outputs f32[N,*out] for inputs f32[N,*in], ``batch`` rows a call, on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    starts = range(0, max(len(inputs), 1), batch)
    parts = [session.run(None, {name: np.ascontiguousarray(inputs[at : at + batch])})[0] for at in starts]
    outputs: Floats = np.concatenate(parts)
    return outputs
