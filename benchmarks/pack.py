"""What the shipped SUMO pack holds, and how far constant velocity and a small network get on it.

    python benchmarks/pack.py [--pack FOLDER] [--seconds 45] [--json]

Per region: scenarios, drives, moving tracks (median), manoeuvres of the judged tracks, and on held-out drives
(every fourth) ADE / FDE / miss rate of constant velocity and of one 100 k-parameter MLP that was trained on the
other drives of all regions together, single-threaded. `--seconds 0` leaves the network (and torch) out.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedfleet.scenarios.pack import check_pack, read_manifest, read_pack, sumo_pack
from fedfleet.scenarios.records import Scenario

Floats = NDArray[np.float64]
PAST, FUTURE = 20, 30


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure the shipped scenario pack.")
    parser.add_argument("--pack", type=Path, default=sumo_pack())
    parser.add_argument("--seconds", type=float, default=45.0, help="training time of the network")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    report = measure(arguments.pack, seconds=arguments.seconds)
    print(json.dumps(report, indent=1) if arguments.json else _text(report))


def measure(folder: Path, *, seconds: float) -> dict[str, Any]:
    """The whole report as JSON-ready values."""
    table_hash, manifest, scenarios = check_pack(folder), read_manifest(folder), read_pack(folder)
    data = {region: _samples([s for s in scenarios if s.region == region]) for region in manifest["regions"]}
    predict = _trained(data, seconds) if seconds > 0 else None
    regions = {}
    for region, part in data.items():
        here = [s for s in scenarios if s.region == region]
        regions[region] = _counts(here) | {
            "agent_manoeuvres": manifest["regions"][region]["agent_manoeuvres"]
        }
        regions[region]["constant_velocity_all_drives"] = _errors(part["cv"], part, part["judged"])
        held = part["judged"] & part["test"]
        regions[region]["constant_velocity"] = cv = _errors(part["cv"], part, held)
        if predict is not None:
            regions[region]["mlp"] = mlp = _errors(predict(part), part, held)
            regions[region]["gain_percent"] = round(100.0 * (1.0 - mlp["ade_m"] / cv["ade_m"]), 1)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return {"pack_bytes": size, "table_sha256": table_hash, "scenarios": len(scenarios), "regions": regions}


def _counts(scenarios: list[Scenario]) -> dict[str, Any]:
    moving = []
    for scenario in scenarios:
        steps = np.linalg.norm(np.diff(scenario.xy[:, ::5], axis=1), axis=-1)
        moving.append(int((np.nansum(steps, axis=1) > 2.0).sum()))
    return {
        "scenarios": len(scenarios),
        "drives": len({s.drive for s in scenarios}),
        "tracks": sum(len(s.track_ids) for s in scenarios),
        "agents": sum(s.kinds.count("AGENT") for s in scenarios),
        "moving_tracks_median": float(np.median(moving)),
        "moving_tracks_p10": float(np.percentile(moving, 10)),
    }


def _samples(scenarios: list[Scenario]) -> dict[str, NDArray[Any]]:
    """Agent-frame tracks [N, 50, 2] of all fully observed tracks; origin frame 19, x axis along the heading."""
    drives = sorted({s.drive for s in scenarios})
    tracks, judged, test = [], [], []
    for s in scenarios:
        for track, kind in zip(s.xy, s.kinds, strict=True):
            if not np.isnan(track).any():
                tracks.append(track)
                judged.append(kind == "AGENT")
                test.append(drives.index(s.drive) % 4 == 3)
    xy = np.stack(tracks)
    xy = xy - xy[:, PAST - 1 : PAST]
    way = -xy[:, PAST - 6]
    way = np.where(np.linalg.norm(way, axis=1, keepdims=True) > 0.25, way, -xy[:, 0])
    angle = np.arctan2(way[:, 1], way[:, 0])
    turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], axis=1).reshape(-1, 2, 2)
    xy = np.einsum("nij,ntj->nti", turn, xy)
    speed = -xy[:, PAST - 6] / 0.5
    cv = speed[:, None] * (np.arange(1, FUTURE + 1) / 10.0)[None, :, None]
    return {"xy": xy, "cv": cv, "judged": np.array(judged), "test": np.array(test)}


def _errors(guess: Floats, part: dict[str, NDArray[Any]], rows: NDArray[np.bool_]) -> dict[str, float]:
    gap = np.linalg.norm(guess[rows] - part["xy"][rows, PAST:], axis=-1)
    return {
        "ade_m": round(float(gap.mean()), 3),
        "fde_m": round(float(gap[:, -1].mean()), 3),
        "miss_rate": round(float((gap[:, -1] > 2.0).mean()), 3),
        "tracks": int(rows.sum()),
    }


def _trained(data: dict[str, dict[str, NDArray[Any]]], seconds: float) -> Any:  # noqa: ANN401
    """A function from samples to futures, from a network trained on the drives that are not held out."""
    import torch
    from torch import nn

    torch.set_num_threads(1)
    torch.manual_seed(0)
    xy = np.concatenate([part["xy"][~part["test"]] for part in data.values()])
    cv = np.concatenate([part["cv"][~part["test"]] for part in data.values()])
    inputs = torch.tensor(_features(xy), dtype=torch.float32)
    wanted = torch.tensor((xy[:, PAST:] - cv).reshape(len(xy), -1), dtype=torch.float32)
    net = nn.Sequential(nn.Linear(40, 230), nn.ReLU(), nn.Linear(230, 230), nn.ReLU(), nn.Linear(230, 60))
    adam = torch.optim.Adam(net.parameters(), lr=1e-3)
    end = time.perf_counter() + seconds
    while (left := end - time.perf_counter()) > 0:
        for group in adam.param_groups:
            group["lr"] = 1e-3 * max(0.02, left / seconds)
        for batch in torch.randperm(len(inputs)).split(256):
            loss = nn.functional.smooth_l1_loss(net(inputs[batch]), wanted[batch])
            adam.zero_grad()
            loss.backward()
            adam.step()

    def predict(part: dict[str, NDArray[Any]]) -> Floats:
        with torch.no_grad():
            out = net(torch.tensor(_features(part["xy"]), dtype=torch.float32)).numpy()
        return part["cv"] + out.reshape(-1, FUTURE, 2)

    return predict


def _features(xy: Floats) -> Floats:
    return xy[:, :PAST].reshape(len(xy), -1) / 10.0


def _text(report: dict[str, Any]) -> str:
    lines = [
        f"{report['scenarios']} scenarios, {report['pack_bytes'] / 1e6:.2f} MB, table {report['table_sha256']}"
    ]
    for region, row in report["regions"].items():
        cv, mlp = row["constant_velocity"], row.get("mlp")
        lines.append(
            f"{region:18} {row['scenarios']:4} scenarios {row['drives']:3} drives {row['agents']:5} judged tracks, "
            f"moving {row['moving_tracks_median']:.0f}, constant velocity ADE {cv['ade_m']:.2f} FDE {cv['fde_m']:.2f} "
            f"miss {cv['miss_rate']:.2f}"
            + (f", MLP ADE {mlp['ade_m']:.2f} ({row['gain_percent']} % better)" if mlp else "")
        )
        lines.append(f"{'':18} {row['agent_manoeuvres']}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
