"""Bytes of a release besides its delta: the canary with its inputs within, and with inputs that vehicles keep.

`python benchmarks/canary.py --json` measures motion forecasting on the shipped pack, and camera steering on
`FEDFLEET_DATA/donkey` where that is set. Inputs and answers are the gate's own: the first validation samples, and
what the network with its first weights says.
"""

import argparse
import json
import os
from pathlib import Path

from fedfleet.fleet_server.export import export
from fedfleet.fleet_server.validation import Validation
from fedfleet.models import bundle
from fedfleet.models.layout import patch
from fedfleet.models.task import load
from fedfleet.scenarios.pack import sumo_pack

DRIVES = 3


def measure(name: str, folder: Path) -> dict[str, int]:
    """The bytes of one task's canary in both forms."""
    task = load(name)
    drives = [drive.key for drive in task.index(folder).drives[:DRIVES]]
    validation = Validation(task, {"all": task.samples(folder, drives)}, 256)
    first = export(task, seed=1)
    canary = validation.canary(patch(first.onnx, first.layout, first.initial))
    inputs, outputs = bundle.unpack_canary(canary.answers, canary.inputs, limit_bytes=10**8)
    return {
        "parameters": first.layout.size,
        "before_bytes_per_release": len(bundle.pack_canary(inputs, outputs)),
        "after_bytes_per_release": len(canary.answers),
        "after_bytes_once": len(canary.inputs),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Bytes of the canary of a release.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    wanted = {"motion_forecast": sumo_pack()}
    if data := os.environ.get("FEDFLEET_DATA"):
        wanted["camera_steering"] = Path(data) / "donkey"
    found = {name: measure(name, folder) for name, folder in wanted.items()}
    print(json.dumps(found) if given.json else "\n".join(f"{name}: {told}" for name, told in found.items()))


if __name__ == "__main__":
    main()
