"""How many tracks a second `fedfleet replay --speed max` predicts on one core, and where its time goes.

    python benchmarks/replay.py [--scenarios FOLDER] [--model FILE] [--repeats 3] [--json]

The command's own way through every drive, with the time inside the model (`session.run` with its checks and its copy)
taken in the same run. Shares add up to 1: `model`, and `runtime`, which is everything else between the first frame of
a drive and its last. Preparing the drives is timed apart. Without `--model` it is the network's first version: its
weights do not change the time. Of several runs the one in the middle is reported.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from fedfleet.cli.replay import drives_of
from fedfleet.cli.replay_run import Way, load_model, replay_drive
from fedfleet.models.task import Floats, Task, load
from fedfleet.scenarios.pack import sumo_pack
from fedfleet.vehicle_agent.runtime import Run


class Timed:
    """A loaded model that adds up the seconds spent in it."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.seconds = 0.0

    def __call__(self, inputs: Floats) -> Floats:
        """Run and measure."""
        begin_s = time.perf_counter()
        outputs = self._run(inputs)
        self.seconds += time.perf_counter() - begin_s
        return outputs


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure replay at full speed.")
    parser.add_argument("--scenarios", type=Path, default=sumo_pack())
    parser.add_argument("--model", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    report = measure(given.scenarios, given.model, repeats=given.repeats)
    print(json.dumps(report, indent=1) if given.json else text(report))


def measure(folder: Path, model: Path | None, *, repeats: int) -> dict[str, Any]:
    """The whole report as JSON-ready values."""
    task = load("motion_forecast")
    run = load_model(model, task).run if model is not None else first_version(task)
    runs = [one_run(task, folder, run) for _ in range(repeats)]
    middle = median(one["tracks_per_s"] for one in runs[: len(runs) - 1 + len(runs) % 2])
    chosen = next(one for one in runs if one["tracks_per_s"] == middle)
    return {**chosen, "runs": [one["tracks_per_s"] for one in runs]}


def one_run(task: Task, folder: Path, run: Run) -> dict[str, Any]:
    """Replay every drive once."""
    timed = Timed(run)
    way = Way(time.perf_counter, time.sleep, None)
    begin_s = time.perf_counter()
    driven = [
        replay_drive(task, folder, drive, run=timed, way=way)
        for drive in drives_of(task.index(folder), None, folder=folder)
    ]
    whole_s = time.perf_counter() - begin_s
    seconds = sum(one.seconds for one in driven)
    latencies = np.concatenate([one.latencies_ms for one in driven])
    predictions, frames = sum(one.predictions for one in driven), sum(one.frames for one in driven)
    return {
        "drives": len(driven),
        "frames": frames,
        "predictions": predictions,
        "tracks_per_s": round(predictions / seconds),
        "tracks_per_s_with_preparation": round(predictions / whole_s),
        "seconds": seconds,
        "preparation_seconds": whole_s - seconds,
        "share_model": timed.seconds / seconds,
        "share_runtime": 1 - timed.seconds / seconds,
        "runtime_us_per_frame": (seconds - timed.seconds) / frames * 1e6,
        "p50_ms": float(np.percentile(latencies, 50)),
        "p99_ms": float(np.percentile(latencies, 99)),
        "missed": sum(one.missed for one in driven),
    }


def first_version(task: Task) -> Run:
    """The network as it is before any training."""
    from hashlib import sha256

    from fedfleet.fleet_server.export import export
    from fedfleet.models.layout import patch
    from fedfleet.vehicle_agent.swap import Sessions

    first = export(task, seed=1)
    file = patch(first.onnx, first.layout, first.initial)
    return Sessions(task).load(file, sha256(file).hexdigest())


def text(report: dict[str, Any]) -> str:
    """The report for people."""
    return (
        f"{report['predictions']:,} predictions in {report['frames']:,} frames of {report['drives']} drives:\n"
        f"{report['tracks_per_s']:,} tracks/s on one core, "
        f"{report['tracks_per_s_with_preparation']:,} with preparation\n"
        f"model {report['share_model']:.0%} of the time, runtime {report['share_runtime']:.0%} "
        f"({report['runtime_us_per_frame']:.0f} µs a frame); latency p50 {report['p50_ms']:.3f} ms, "
        f"p99 {report['p99_ms']:.3f} ms, {report['missed']} frames missed"
    )


if __name__ == "__main__":
    main()
