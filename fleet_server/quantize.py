"""Makes the int8 variant of a model file: `python -m fedfleet.fleet_server.quantize --task T --model F --data DIR …`.

Static quantisation (QDQ) with ONNX Runtime's tool: ranges from calibration samples, which nobody is judged on. A
process of its own, because the tool needs onnx and takes seconds; it ends when `told.json` is written, last.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from itertools import chain, repeat
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from fedfleet.fleet_server.files import write_file
from fedfleet.fleet_server.validation import Canary, Validation, open_validation
from fedfleet.models import bundle, onnx_runtime, prepared, scoring
from fedfleet.models import task as tasks
from fedfleet.models.task import Floats, Numbers, Task
from fedfleet.protocol.errors import PeerError, UsageError
from fedfleet.protocol.printable import printable

__all__ = ["KIND", "main", "quantized", "told_of"]

KIND = "int8"
OPERATORS = ["Conv", "Gemm", "MatMul"]
"""What has weights; all else, such as norms, stays float32."""
CALIBRATION_ROWS = 512
TIMED_RUNS = 200
LEAST_TOLERANCE = 1e-3
PR_SET_PDEATHSIG = 1


quantization = onnx_runtime.quantization()
_Reader: Any = quantization.CalibrationDataReader


class _Calibration(_Reader):  # type: ignore[misc]  # untyped
    def __init__(self, name: str, inputs: Numbers, rows: int) -> None:
        self._name = name
        self._parts = iter([inputs[at : at + rows] for at in range(0, len(inputs), rows)])

    def get_next(self) -> dict[str, Floats] | None:
        part = next(self._parts, None)
        return None if part is None else {self._name: np.ascontiguousarray(part, dtype=np.float32)}


def quantized(model: bytes, task: Task, inputs: Numbers) -> bytes:
    """Return the model file with int8 weights, one scale a channel, and uint8 activations in the ranges of `inputs`.

    Weights use seven bits, so that processors without VNNI do not saturate. Raises UsageError without inputs.
    """
    if not len(inputs):
        raise UsageError("calibration: expected samples, got none")
    some = inputs[:: max(1, -(-len(inputs) // CALIBRATION_ROWS))]
    rows = max(1, min(64, scoring.NUMBERS // max(1, some[0].size)))
    logging.getLogger().setLevel(logging.ERROR)  # advice on preprocessing is not for our user
    with TemporaryDirectory() as folder:
        before, after = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        before.write_bytes(model)
        quantization.quantize_static(
            before,
            after,
            _Calibration(task.specification.input_name, some, rows),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=OPERATORS,
            per_channel=True,
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        return after.read_bytes()


def told_of(
    before: bytes, after: bytes, validation: Validation, *, clock: Callable[[], float]
) -> tuple[Mapping[str, Any], Canary]:
    """Return what there is to say of the variant `after` of the model file `before`, and its canary.

    `tolerance` of the canary is how far int8 itself is from float32 there: another processor may differ by less.
    """
    canary = validation.canary(after)
    inputs, outputs = bundle.unpack_canary(
        canary.answers, canary.inputs, limit_bytes=len(canary.inputs) * 1000
    )
    inputs = inputs.reshape(-1, *validation.task.specification.input_shape)
    sessions = scoring.new_session(before), scoring.new_session(after)
    scoring.check(sessions[1], validation.task)
    wanted = scoring.infer(sessions[0], validation.task, inputs).reshape(outputs.shape)
    times: tuple[list[float], list[float]] = ([], [])
    for which in chain.from_iterable(repeat((0, 1), TIMED_RUNS)):
        begun_s = clock()
        scoring.infer(sessions[which], validation.task, inputs[:1])
        times[which].append(clock() - begun_s)
    told = {
        "onnx_sha256": sha256(after).hexdigest(),
        "tolerance": max(LEAST_TOLERANCE, float(np.abs(outputs - wanted).max())),
        "size_bytes": len(after),
        "float32_bytes": len(before),
        "latency_ms": 1e3 * median(times[1]),
        "float32_ms": 1e3 * median(times[0]),
        "before": validation.scores(before),
        "after": validation.scores(after),
    }
    return told, canary


def main(arguments: Sequence[str] | None = None) -> int:
    """Write model, canary and inputs, at last `told.json`, to --out; 2 and one line on stderr when it fails."""
    given = _parser().parse_args(arguments)
    if given.parent:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != given.parent:
            return 2
    try:
        task = tasks.load(given.task)
        prepared.check(prepared.open_meta(given.data), task)
        model, inputs = given.model.read_bytes(), prepared.open(given.data, "train").inputs
        regions = tuple(given.region)
        validation = open_validation(given.validation, task, regions=regions, batch=given.batch)
        made = quantized(model, task, inputs)
        told, canary = told_of(model, made, validation, clock=time.perf_counter)
        given.out.mkdir(parents=True, exist_ok=True)
        write_file(given.out / "int8.onnx", made)
        write_file(given.out / "canary.bin", canary.answers)
        write_file(given.out / "inputs.bin", canary.inputs)
        write_file(given.out / "told.json", json.dumps(told).encode())
    except (UsageError, PeerError, OSError, ValueError) as error:
        sys.stderr.write(f"int8: {printable(' '.join(str(error).split()))}\n")
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fedfleet.fleet_server.quantize", description="Make a model's int8 variant."
    )
    parser.add_argument("--task", required=True, help="name of an installed task, or module:ATTRIBUTE")
    parser.add_argument("--model", type=Path, required=True, help="float32 model file")
    parser.add_argument(
        "--data", type=Path, required=True, help="prepared folder with a train part: calibration"
    )
    parser.add_argument(
        "--validation", type=Path, required=True, help="folder of prepared folders, by region"
    )
    parser.add_argument("--region", action="append", required=True, help="region to score (repeatable)")
    parser.add_argument("--batch", type=int, default=1024, help="samples scored at a time")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--parent", type=int, default=0, help="process id of the server, to end with it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
