"""Runs and scores a model file with ONNX Runtime, on one thread. numpy and onnxruntime only.

May live here: how a session is made, its check against a task, inference in batches, metrics of the outputs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedfleet.models import onnx_file
from fedfleet.models.onnx_runtime import ort
from fedfleet.models.task import Floats, Numbers, Samples, Sums, Task
from fedfleet.protocol.errors import PeerError

__all__ = ["check", "infer", "new_session", "score"]

BATCH = 1024
_CODE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_PLACE = re.compile(r"^/\S+:\d+ [^(]*\([^)]*\)\s*")
NUMBERS = 2**21
"""Numbers of the input in one call, 8 MiB as float32: an image has a thousand times those of a track."""


def new_session(model: bytes) -> ort.InferenceSession:
    """A session of the model file: one thread, no spinning, sequential, CPU.

    Raises PeerError("unloadable-model") when ONNX Runtime does not accept the file, and ("external-data") when it
    names other files: ONNX Runtime would look for them in the current folder.
    """
    try:
        onnx_file.refuse_outside(model)
    except PeerError as error:
        if error.reason == "unloadable-model" and (what := onnx_file.described(model)):
            raise PeerError(error.reason, what) from error
        raise
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4  # what is wrong is raised, and said once by us
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise PeerError("unloadable-model", _unloadable(model, error)) from error


def check(session: ort.InferenceSession, task: Task) -> None:
    """Raise PeerError("model-mismatch") unless input and output are those of the task, with a free batch axis."""
    wanted = task.specification
    for side, found, name, shape in (
        ("input", session.get_inputs(), wanted.input_name, wanted.input_shape),
        ("output", session.get_outputs(), wanted.output_name, wanted.output_shape),
    ):
        got = " and ".join(f"{each.name} {_form(each.type, each.shape)}" for each in found)
        one = found[0] if len(found) == 1 else None
        free = one is not None and len(one.shape) > 0 and not isinstance(one.shape[0], int)
        if not (
            one and free and one.name == name and one.type == "tensor(float)" and one.shape[1:] == [*shape]
        ):
            expected = f"{name} {_form('tensor(float)', ['N', *shape])}"
            text = f"model does not match task {task.name}: {side} expected {expected}, got {got or 'none'}"
            raise PeerError("model-mismatch", text)


def infer(session: ort.InferenceSession, task: Task, inputs: Numbers, *, batch: int = BATCH) -> Floats:
    """The outputs f32[N, *out] for inputs [N, *in], at most `batch` rows and NUMBERS numbers a call; none give none.

    Raises PeerError("model-mismatch") for an output of another shape, and when the model fails on the input.
    """
    shape = task.specification
    outputs = np.empty((len(inputs), *shape.output_shape), dtype=np.float32)
    batch = max(1, min(batch, NUMBERS // max(1, math.prod(shape.input_shape))))
    for start in range(0, len(inputs), batch):
        rows = np.ascontiguousarray(inputs[start : start + batch], dtype=np.float32)
        try:
            answer = session.run([shape.output_name], {shape.input_name: rows})[0]
        except Exception as error:
            text = f"model fails on {shape.input_name} {list(rows.shape)} of task {task.name}: {_first_line(error)}"
            raise PeerError("model-mismatch", text) from error
        if answer.shape != (len(rows), *shape.output_shape):
            expected = [len(rows), *shape.output_shape]
            text = (
                f"model does not match task {task.name}: output expected {expected}, got {list(answer.shape)}"
            )
            raise PeerError("model-mismatch", text)
        outputs[start : start + batch] = answer
    return outputs


def score(model: ort.InferenceSession | bytes, task: Task, samples: Samples, *, batch: int = BATCH) -> Sums:
    """Sum every metric of the task over the judged samples: name -> (sum, count).

    A model with an output that is not finite gets sums that are not finite either. Raises PeerError as
    `new_session`, `check` and `infer` do.
    """
    session = new_session(model) if isinstance(model, bytes) else model
    check(session, task)
    return task.score(infer(session, task, samples.inputs, batch=batch), samples)


def _unloadable(model: bytes, error: Exception) -> str:
    """Return why ONNX Runtime does not load a file, in words of ours where its own are known."""
    text = str(error)
    told, opset = onnx_file.versions(model)
    if "IR version" in text:
        return f"IR version {told} is newer than ONNX Runtime {ort.__version__} reads: export it with an older one"
    if "official support for domain" in text:
        newer = f"opset {opset} is newer than ONNX Runtime {ort.__version__} reads"
        return f"{newer}: export it with an older one (ours is 20)"
    return onnx_file.described(model) or f"{len(model)} bytes: {_first_line(error)}"


def _form(kind: str, shape: Sequence[Any]) -> str:
    return f"{kind.removeprefix('tensor(').removesuffix(')')}[{', '.join(str(side) for side in shape)}]"


def _first_line(error: Exception) -> str:
    """Return what a library says, without its codes and the place in its source."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return _PLACE.sub("", _CODE.sub("", line))[:200]
