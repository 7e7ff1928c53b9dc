"""Exports a task's first model: `python -P -m fedfleet.fleet_server.export --task T --seed S --out DIR`.

The only server process with torch and onnx; it ends when the files are written. They are `graph.onnx` (canonical, all
weights zero), `layout.json` and `initial.npy` (float32[M], version 0). Later versions need neither torch nor onnx.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from itertools import accumulate
from math import prod
from pathlib import Path

import numpy as np
import onnx
import torch
from pydantic import ValidationError
from torch import nn

from fedfleet.fleet_server.canonical import canonical, places
from fedfleet.fleet_server.export_trial import statistics_of
from fedfleet.fleet_server.files import write_file
from fedfleet.models import scoring, training
from fedfleet.models.layout import Layout, Names, patch, rules
from fedfleet.models.loss_check import check_loss
from fedfleet.models.task import Floats, Task, load
from fedfleet.models.tensors import check_tensors, learned, second_names, unlearned
from fedfleet.protocol.errors import PeerError, UsageError
from fedfleet.protocol.printable import printable

__all__ = ["ATOL", "OPSET", "RTOL", "Exported", "check_parity", "export", "main", "to_onnx", "write"]

OPSET = 20
ATOL = 1e-5
RTOL = 1e-5
PARITY_ROWS = 64


@dataclass(frozen=True, eq=False)
class Exported:
    """A model file with all weights zero, where its weights lie, and the weights float32[M] of version 0."""

    onnx: bytes
    layout: Layout
    initial: Floats


def export(task: Task, *, seed: int, head: Sequence[str] = ()) -> Exported:
    """Export the task's network with the initial weights of `seed`; the same arguments give the same bytes.

    `head` are patterns of the tensors that are a region's own, in the place of the task's. Raises UsageError when the
    network does not match the task's specification, cannot be exported, or gives other outputs in ONNX Runtime than
    in torch.
    """
    torch.set_num_threads(1)
    model = training.network(task, seed=seed).eval()
    initial = training.vector(model)
    check_tensors(model, task)
    _check_forward(model, task)
    check_loss(task, model)
    statistics = statistics_of(task, seed=seed)
    shapes = {name: tuple(tensor.shape) for name, tensor in learned(model).items()}
    zeros = {name: np.zeros(shape, dtype=np.float32) for name, shape in shapes.items()}
    file = canonical(to_onnx(model, task), zeros, same=second_names(model))
    layout = _layout(task, model, file, statistics=statistics, head=head)
    check_parity(model, task, patch(file, layout, initial), seed=seed)
    _check_moved(model, task, file, layout, seed=seed)
    return Exported(file, layout, initial)


def _layout(
    task: Task, model: nn.Module, file: bytes, *, statistics: Sequence[str], head: Sequence[str]
) -> Layout:
    shapes = {name: tuple(tensor.shape) for name, tensor in learned(model).items()}
    sizes = [prod(shape) for shape in shapes.values()]
    found = places(file, shapes)
    told = Names(tuple(shapes), statistics, second_names(model), tuple(unlearned(model)))
    try:
        return Layout(
            task=task.name,
            task_version=task.version,
            names=tuple(shapes),
            shapes=tuple(shapes.values()),
            offsets=tuple(accumulate(sizes[:-1], initial=0)),
            byte_offsets=tuple(found[name][0] for name in shapes),
            file_bytes=len(file),
            rules=rules(task, told, head=head),
            statistics=tuple(statistics),
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"][:2]) or "layout"
        raise UsageError(f"network of {task.name}: {where}: {first['msg']}") from error


def to_onnx(model: nn.Module, task: Task) -> onnx.ModelProto:
    """The export of torch itself of the network (dynamo, not optimised), opset 20, with a dynamic batch axis."""
    shape = task.specification
    example = torch.zeros((2, *shape.input_shape))
    # What the exporter thinks of packages that are not installed is not for our user.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                model,
                (example,),
                input_names=[shape.input_name],
                output_names=[shape.output_name],
                opset_version=OPSET,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
                optimize=False,
                verbose=False,
            )
        except Exception as error:
            raise UsageError(
                f"network of {task.name}: torch cannot export it to ONNX: {_why(error)}"
            ) from error
    if program is None:
        raise UsageError(f"network of {task.name}: torch gave no ONNX program")
    return program.model_proto


def check_parity(model: nn.Module, task: Task, file: bytes, *, seed: int) -> None:
    """UsageError unless torch and ONNX Runtime agree on random inputs (atol 1e-5 + rtol 1e-5)."""
    shape = (PARITY_ROWS, *task.specification.input_shape)
    inputs = np.random.default_rng(seed).normal(0, 3, shape).astype(np.float32)
    session = scoring.new_session(file)
    scoring.check(session, task)
    outputs = scoring.infer(session, task, inputs)
    with torch.no_grad():
        wanted = model(torch.from_numpy(inputs)).numpy()
    if not np.allclose(outputs, wanted, atol=ATOL, rtol=RTOL):
        worst = float(np.abs(outputs - wanted).max())
        raise UsageError(f"network of {task.name}: ONNX Runtime differs from torch by up to {worst:.3g}")


def write(exported: Exported, out: Path) -> None:
    """Write the three files to `out`, each complete or not there; the layout comes last."""
    out.mkdir(parents=True, exist_ok=True)
    buffer = BytesIO()
    np.save(buffer, exported.initial, allow_pickle=False)
    write_file(out / "graph.onnx", exported.onnx)
    write_file(out / "initial.npy", buffer.getvalue())
    write_file(out / "layout.json", exported.layout.to_json())


def main(arguments: Sequence[str] | None = None) -> int:
    """Export, write, tell one line of JSON; 2 and one line on stderr when the user erred."""
    parser = argparse.ArgumentParser(
        prog="fedfleet.fleet_server.export", description="Export a task's first model."
    )
    parser.add_argument("--task", required=True, help="name of an installed task, or module:ATTRIBUTE")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights (default 0)")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for graph.onnx, layout.json, initial.npy"
    )
    parser.add_argument(
        "--head", action="append", default=[], help="pattern of tensors that are a region's own (repeatable)"
    )
    given = parser.parse_args(arguments)
    try:
        exported = export(load(given.task), seed=given.seed, head=given.head)
        write(exported, given.out)
    except (UsageError, PeerError, OSError) as error:
        sys.stderr.write(f"export: {printable(str(error))}\n")
        return 2
    sys.stdout.write(json.dumps(_summary(exported)) + "\n")
    return 0


def _summary(exported: Exported) -> Mapping[str, str | int]:
    layout = exported.layout
    first = patch(exported.onnx, layout, exported.initial)
    return {
        "task": layout.task,
        "parameters": layout.size,
        "file_bytes": layout.file_bytes,
        "graph_bytes": layout.file_bytes - 4 * layout.size,
        "onnx_sha256": sha256(first).hexdigest(),
        "statistics": ", ".join(layout.statistics),
    }


def _check_forward(model: nn.Module, task: Task) -> None:
    shape = task.specification
    with torch.no_grad():
        try:
            found = tuple(model(torch.zeros((2, *shape.input_shape))).shape)
        except Exception as error:
            line = str(error).splitlines()[0]
            text = f"model does not match task {task.name}: {shape.input_name} {['N', *shape.input_shape]}: {line}"
            raise UsageError(text) from error
    if found != (2, *shape.output_shape):
        expected = f"output expected {['N', *shape.output_shape]}, got {['N', *found[1:]]}"
        raise UsageError(f"model does not match task {task.name}: {expected}")


def _why(error: BaseException) -> str:
    """The first line of what was wrong at the bottom: the exporter wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _check_moved(model: nn.Module, task: Task, file: bytes, layout: Layout, *, seed: int) -> None:
    """Parity once more, with every weight moved: a weight that the exporter folded away would show."""
    moved = training.vector(model)
    moved += np.random.default_rng(seed).normal(0, 0.02, moved.shape).astype(np.float32)
    training.load_vector(model, moved)
    check_parity(model, task, patch(file, layout, moved), seed=seed + 1)


if __name__ == "__main__":
    sys.exit(main())
