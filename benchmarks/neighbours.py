"""Would the neighbours' tracks help `motion_forecast`? The same small network with and without them, trained centrally.

    FEDFLEET_DATA=FOLDER python benchmarks/neighbours.py [--json] [--scenarios DIR] [--splits 11,12] [--epochs 24]

Without `--scenarios` the folder `argoverse1` of FEDFLEET_DATA. Input added: position and velocity of the nearest tracks
at the last observed frame, in the agent's frame. Judged by validation ADE of AGENT tracks only, at the best epoch.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from fedfleet.models.motion_forecast import BACK, FUTURE, PAST, WINDOW, agent_frame, constant_velocity
from fedfleet.models.task import load
from fedfleet.scenarios import labels
from fedfleet.scenarios.partition import partition
from fedfleet.scenarios.reading import stream
from fedfleet.scenarios.records import Scenario

NEAREST = 6
REACH_M = 50.0
WIDTH = 192
Floats = NDArray[np.float32]


def neighbours(scenario: Scenario, chosen: NDArray[np.bool_]) -> Floats:
    """Return f32[tracks, NEAREST, 5]: x, y, vx, vy in the agent's frame (10 m, m per step), 1 where there is one."""
    now, before = scenario.xy[:, PAST - 1], scenario.xy[:, PAST - 1 - BACK]
    seen = ~np.isnan(now).any(axis=1) & ~np.isnan(before).any(axis=1)
    found = np.zeros((int(chosen.sum()), NEAREST, 5), dtype=np.float32)
    for row, track in enumerate(np.flatnonzero(chosen)):
        distance = np.where(seen, np.hypot(*(now - now[track]).T), np.inf)
        distance[track] = np.inf
        near = [one for one in np.argsort(distance)[:NEAREST] if distance[one] < REACH_M]
        if near:
            points = np.stack([now[near], before[near]], axis=1).reshape(1, -1, 2)
            local = agent_frame(scenario.xy[track : track + 1, :PAST], points).reshape(-1, 2, 2)
            found[row, : len(near), :2] = local[:, 0] / 10
            found[row, : len(near), 2:4] = (local[:, 0] - local[:, 1]) / BACK
            found[row, : len(near), 4] = 1
    return found


def samples(folder: Path, drives: Sequence[str]) -> tuple[Floats, Floats, Floats, NDArray[np.bool_]]:
    """Return history, future, neighbours and judged of the drives, as the task makes them."""
    parts: list[tuple[Floats, Floats, Floats, NDArray[np.bool_]]] = []
    for scenario in stream(folder, drives):
        chosen = labels.judge(scenario, frames=WINDOW, rate_hz=10.0).labelled
        if chosen.any():
            window = scenario.xy[chosen, :WINDOW]
            local = agent_frame(window[:, :PAST], window)
            judged = np.array(scenario.kinds)[chosen] == "AGENT"
            parts.append((local[:, :PAST], local[:, PAST:], neighbours(scenario, chosen), judged))
    history, future, near, judged = (np.concatenate(column) for column in zip(*parts, strict=True))
    return history, future, near, judged


def best_ade(train: Sequence[Any], validation: Sequence[Any], *, use: bool, epochs: int, seed: int) -> float:
    """Train once and return the best validation ADE of AGENT tracks, in metres."""
    torch.manual_seed(seed)
    wide = 2 * PAST + (NEAREST * 5 if use else 0)
    layers = [nn.Linear(wide, WIDTH), nn.LayerNorm(WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU()]
    model = nn.Sequential(*layers, nn.Linear(WIDTH, 2 * FUTURE))
    steps = torch.optim.Adam(model.parameters(), lr=1e-3)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(steps, epochs)
    inputs, targets = _tensors(train, use=use)
    held, truth = _tensors(validation, use=use)
    judged = torch.from_numpy(validation[3])
    best = float("inf")
    for _ in range(epochs):
        for batch in torch.randperm(len(inputs)).split(64):
            steps.zero_grad()
            functional.smooth_l1_loss(
                model(inputs[batch]).unflatten(1, (FUTURE, 2)), targets[batch]
            ).backward()
            steps.step()
        rate.step()
        with torch.no_grad():
            off = (model(held).unflatten(1, (FUTURE, 2)) - truth)[judged]
            best = min(best, float(off.norm(dim=2).mean()))
    return best


def _tensors(part: Sequence[Any], *, use: bool) -> tuple[torch.Tensor, torch.Tensor]:
    history, future, near, _ = part
    flat = [np.diff(history, axis=1).reshape(len(history), -1), history[:, 0] / 10]
    inputs = np.concatenate([*flat, near.reshape(len(near), -1)] if use else flat, axis=1)
    return torch.from_numpy(inputs), torch.from_numpy(future - constant_velocity(history))


def measure(folder: Path, splits: Sequence[int], epochs: int) -> dict[str, Any]:
    """Return validation ADE by split, without and with neighbours, each the mean of two seeds."""
    torch.set_num_threads(1)
    found: dict[str, dict[int, float]] = {"without": {}, "with": {}}
    drives = load("motion_forecast").index(folder).drives
    for split in splits:
        print(f"split {split}", file=sys.stderr)
        parts = partition(drives, vehicles=12, seed=split, fractions=(0.7, 0.15, 0.15))
        train = samples(folder, [drive for _, own in parts.vehicles.values() for drive in own])
        validation = samples(folder, [drive for own in parts.validation.values() for drive in own])
        for name, use in (("without", False), ("with", True)):
            runs = [best_ade(train, validation, use=use, epochs=epochs, seed=seed) for seed in (1, 2)]
            found[name][split] = statistics.mean(runs)
    gain = [100 * (1 - found["with"][split] / found["without"][split]) for split in splits]
    return {"validation_ade": found, "gain_pct": {"mean": statistics.mean(gain), "by_split": gain}}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--scenarios", type=Path, help="folder of recordings")
    parser.add_argument("--splits", default="11,12", help="seeds of the splits, separated by commas")
    parser.add_argument("--epochs", type=int, default=24)
    told = parser.parse_args()
    data = os.environ.get("FEDFLEET_DATA")
    if told.scenarios is None and not data:
        print(json.dumps({"skipped": "needs FEDFLEET_DATA or --scenarios"}))
        return
    folder = told.scenarios or Path(str(data)) / "argoverse1"
    result = measure(folder, [int(split) for split in told.splits.split(",")], told.epochs)
    print(
        json.dumps(result) if told.json else "\n".join(f"{name}: {value}" for name, value in result.items())
    )


if __name__ == "__main__":
    main()
