"""`camera_steering` on recorded cars: how near federated learning comes to one model trained on all frames together.

    FEDFLEET_DATA=FOLDER python benchmarks/camera.py --json [--seeds 1] [--scenarios DIR] [--jobs 1]

Without `--scenarios` the folder `donkey` of FEDFLEET_DATA. Each seed is one `fedfleet compare` with the settings that
suit the task: whole blocks of consecutive frames are split into training, validation and test; every arm
learns from at most equally many frames, validation chooses its pass, and all are judged once on test blocks. `*_pct`
compares the mean MAE of federated with the arm named: negative is better.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ARMS = ("baseline", "centralised", "on_site", "federated")
NEAR_PCT = 5.0
"""The target: MAE at most this much above centralised."""


def run(scenarios: Path, seed: int, out: Path) -> dict[str, Any]:
    """Run one comparison and return its figures."""
    print(f"seed {seed}", file=sys.stderr)
    command = [sys.executable, "-P", "-m", "fedfleet.cli.main", "compare", "--task", "camera_steering"]
    target = out / "compare.json"
    subprocess.run(
        [
            *command,
            "--scenarios",
            str(scenarios),
            "--seed",
            str(seed),
            "--out",
            str(out),
            "--json",
            str(target),
        ],
        stdout=subprocess.DEVNULL,
        timeout=7200,
        check=True,
    )
    found: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
    return found


def figures(found: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Return what the targets speak of, and where it comes from."""
    overall = {arm: {seed: one[arm]["overall"] for seed, one in found.items()} for arm in ARMS}
    mae = {arm: statistics.mean(one["mae"] for one in by_seed.values()) for arm, by_seed in overall.items()}
    against = {arm: 100 * (mae["federated"] / mae[arm] - 1) for arm in ARMS if arm != "federated"}
    return {
        "seeds": sorted(found),
        "mae": mae,
        "federated_against_pct": against,
        "within_5_pct_of_centralised": against["centralised"] <= NEAR_PCT,
        "better_than_on_site": against["on_site"] < 0,
        "overall": overall,
        "regions": {seed: {arm: one[arm]["regions"] for arm in ARMS} for seed, one in found.items()},
        "chosen_epoch": {
            seed: {arm: one[arm]["chosen_epoch"] for arm in ARMS[1:]} for seed, one in found.items()
        },
        "validation_mae": {
            seed: {arm: [point["validation"]["mae"] for point in one[arm]["curve"]] for arm in ARMS[1:]}
            for seed, one in found.items()
        },
        "vehicles": {seed: len(one["data"]["vehicles"]) for seed, one in found.items()},
        "training_samples": {
            seed: sum(one["data"]["training_samples"].values()) for seed, one in found.items()
        },
        "left_out": {seed: one["data"]["left_out"] for seed, one in found.items()},
        "bytes_up": statistics.mean(one["bytes_up"] for one in found.values()),
        "bytes_down": statistics.mean(one["bytes_down"] for one in found.values()),
        "rounds": statistics.mean(one["rounds"] for one in found.values()),
        "settings": next(iter(found.values()))["settings"],
    }


def main() -> None:
    """Run and print; without FEDFLEET_DATA and --scenarios there is nothing to measure, and that is said."""
    parser = argparse.ArgumentParser(description="Federated camera steering against other ways to learn.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--seeds", default="1", help="seeds of split and first model, separated by commas")
    parser.add_argument("--scenarios", type=Path, help="folder of Donkey tubs")
    parser.add_argument("--jobs", type=int, default=1, help="comparisons at a time, a core each")
    told = parser.parse_args()
    data = os.environ.get("FEDFLEET_DATA")
    if told.scenarios is None and not data:
        print(json.dumps({"skipped": "needs FEDFLEET_DATA or --scenarios"}))
        return
    begun = time.monotonic()
    scenarios, seeds = told.scenarios or Path(str(data)) / "donkey", [*map(int, told.seeds.split(","))]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(told.jobs) as pool:
        runs = pool.map(lambda seed: run(scenarios, seed, Path(folder) / f"seed-{seed}"), seeds)
        found = dict(zip(seeds, runs, strict=True))
    result = {**figures(found), "seconds": round(time.monotonic() - begun)}
    print(
        json.dumps(result) if told.json else "\n".join(f"{name}: {value}" for name, value in result.items())
    )


if __name__ == "__main__":
    main()
