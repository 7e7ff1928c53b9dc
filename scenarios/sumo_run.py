"""One SUMO simulation, recorded: the process that `generate` starts for each run (the only libsumo import).

May live here: driving libsumo and writing what it saw as `.npz`. It runs alone because libsumo brings its own
Arrow library, which must not share a process with pyarrow. stdin: one JSON line; stdout: one line per window.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np

__all__ = ["STEP_S", "main"]

STEP_S: Final = 0.1


def main() -> None:
    """Read {net, routes, seed, windows: [[start_s, end_s], …], out} and write `<out>/<window>.npz` for each.

    Arrays: times f8[frames] s; ids U[vehicles]; lanes U[lanes]; cube f8[vehicles, frames, 4], NaN where absent:
    x, y of the centre (m), speed (m/s), index into lanes.
    """
    order = json.loads(sys.stdin.readline())
    import libsumo

    libsumo.start(["sumo", *_options(order)])
    try:
        for number, (start, end) in enumerate(order["windows"]):
            libsumo.simulation.step(start)
            record = _record(libsumo, frames=round((end - start) / STEP_S))
            np.savez(Path(order["out"]) / f"{number}.npz", allow_pickle=False, **record)
            print(f"window {number}", flush=True)  # noqa: T201  the parent reads it
    finally:
        libsumo.close()


def _options(order: dict[str, Any]) -> list[str]:
    return [
        f"--net-file={order['net']}",
        f"--route-files={order['routes']}",
        f"--seed={order['seed']}",
        f"--step-length={STEP_S}",
        "--lateral-resolution=0.8",
        "--time-to-teleport=240",
        "--collision.action=none",
        "--device.rerouting.probability=0.4",
        "--device.rerouting.period=60",
        "--max-depart-delay=20",
        "--ignore-route-errors=true",
        "--xml-validation=never",
        "--no-step-log=true",
        "--no-warnings=true",
        "--duration-log.disable=true",
    ]


def _record(sumo: Any, *, frames: int) -> dict[str, np.ndarray[Any, Any]]:  # noqa: ANN401  the libsumo module
    vehicle = sumo.vehicle
    rows: dict[str, np.ndarray[Any, Any]] = {}
    lanes: dict[str, int] = {}
    times = np.empty(frames)
    for frame in range(frames):
        sumo.simulation.step()
        times[frame] = sumo.simulation.getTime()
        for name in vehicle.getIDList():
            if name not in rows:
                rows[name] = np.full((frames, 4), np.nan)
            (x, y), angle = vehicle.getPosition(name), np.deg2rad(vehicle.getAngle(name))
            back = vehicle.getLength(name) / 2.0
            lane = lanes.setdefault(vehicle.getLaneID(name), len(lanes))
            rows[name][frame] = (
                x - back * np.sin(angle),
                y - back * np.cos(angle),
                vehicle.getSpeed(name),
                lane,
            )
    names = sorted(rows)
    cube = np.stack([rows[name] for name in names])
    lane_names = np.array(list(lanes))
    return {"times": times, "ids": np.array(names), "cube": cube, "lanes": lane_names}


if __name__ == "__main__":
    main()
