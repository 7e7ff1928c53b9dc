"""The model file's figures: export, patching a version into the graph, parity of torch and ONNX Runtime, size of blobs.

`python benchmarks/model.py --json [--task motion_forecast] [--draws 30]`
"""

import argparse
import json
import time
from typing import Any

import numpy as np
import torch

from fedfleet.fleet_server.export import export
from fedfleet.models import bundle, scoring, training
from fedfleet.models import task as tasks
from fedfleet.models.layout import patch

ATOL = RTOL = 1e-5
PATCHES = 200


def measure(task_name: str, draws: int) -> dict[str, Any]:
    """Return the figures; parity is the worst share of the tolerance `atol + rtol·|expected|` that any output uses."""
    task = tasks.load(task_name)
    begun = time.perf_counter()
    exported = export(task, seed=1)
    export_s = time.perf_counter() - begun
    vector = exported.initial
    begun = time.perf_counter()
    for _ in range(PATCHES):
        patch(exported.onnx, exported.layout, vector)
    patch_ms = (time.perf_counter() - begun) / PATCHES * 1e3
    chance = np.random.default_rng(1)
    worst = 0.0
    model = training.network(task, seed=1).eval()
    for _ in range(draws):
        drawn = (vector + chance.normal(0, 0.02, vector.size)).astype(np.float32)
        inputs = chance.normal(0, 5, (64, *task.specification.input_shape)).astype(np.float32)
        training.load_vector(model, drawn)
        with torch.no_grad():
            expected = model(torch.from_numpy(inputs)).numpy()
        session = scoring.new_session(patch(exported.onnx, exported.layout, drawn))
        found = scoring.infer(session, task, inputs)
        worst = max(worst, float((np.abs(found - expected) / (ATOL + RTOL * np.abs(expected))).max()))
    return {
        "parameters": int(vector.size),
        "export_s": round(export_s, 2),
        "patch_ms": round(patch_ms, 3),
        "parity_share_of_tolerance": round(worst, 3),
        "file_bytes": len(exported.onnx),
        "graph_blob_bytes": len(bundle.pack_graph(exported.layout.to_json(), exported.onnx)),
        "full_blob_bytes": len(bundle.pack_vector(vector)),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--task", default="motion_forecast")
    parser.add_argument("--draws", type=int, default=30, help="draws of weights and inputs for the parity")
    told = parser.parse_args()
    found = measure(told.task, told.draws)
    print(json.dumps(found) if told.json else "\n".join(f"{name}: {value}" for name, value in found.items()))


if __name__ == "__main__":
    main()
