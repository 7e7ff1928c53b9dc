"""`fedfleet compare` on several seeds: mean and spread of every arm, and how the targets stand.

    FEDFLEET_DATA=FOLDER python benchmarks/compare.py --json [--seeds 1,2,3] [--scenarios DIR]

Without `--scenarios` the folder `argoverse1` of FEDFLEET_DATA. A seed changes the split, the first model and the
training; everything is judged on test drives that no arm has seen.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ARMS = ("constant_velocity", "centralised", "on_site", "federated")


def run(scenarios: Path, seed: int, out: Path) -> dict[str, Any]:
    """Run one comparison and return its figures."""
    command = [sys.executable, "-P", "-m", "fedfleet.cli.main", "compare", "--scenarios", str(scenarios)]
    target = out / "compare.json"
    subprocess.run(
        [*command, "--seed", str(seed), "--out", str(out), "--json", str(target)],
        stdout=subprocess.DEVNULL,
        timeout=1800,
        check=True,
    )
    found: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
    return found


def figures(found: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Return what the targets speak of; `*_pct` compares federated ADE with the arm named, negative is better."""
    ade = {arm: {seed: one[arm]["overall"]["ade"] for seed, one in found.items()} for arm in ARMS}
    against = {
        arm: {seed: 100 * (ade["federated"][seed] / value - 1) for seed, value in ade[arm].items()}
        for arm in ARMS
        if arm != "federated"
    }
    beaten = [
        one["federated"]["regions"][region]["ade"] < one["on_site"]["regions"][region]["ade"]
        for one in found.values()
        for region in one["federated"]["regions"]
    ]
    return {
        "seeds": sorted(found),
        "ade": {arm: {"mean": statistics.mean(ade[arm].values()), "by_seed": ade[arm]} for arm in ARMS},
        "ade_spread": {arm: statistics.stdev(ade[arm].values()) if len(found) > 1 else 0.0 for arm in ARMS},
        "federated_against_pct": {
            arm: {"mean": statistics.mean(values.values()), "by_seed": values}
            for arm, values in against.items()
        },
        "better_than_on_site": f"{sum(beaten)} of {len(beaten)} regions",
        "bytes_up": statistics.mean(one["bytes_up"] for one in found.values()),
        "bytes_down": statistics.mean(one["bytes_down"] for one in found.values()),
        "rounds": statistics.mean(one["rounds"] for one in found.values()),
        "seconds": {seed: one["seconds"] for seed, one in found.items()},
        "regions": {seed: {arm: one[arm]["regions"] for arm in ARMS} for seed, one in found.items()},
    }


def main() -> None:
    """Run and print; without FEDFLEET_DATA and --scenarios there is nothing to measure, and that is said."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--seeds", default="1,2,3", help="seeds, separated by commas")
    parser.add_argument("--scenarios", type=Path, help="folder of recordings")
    told = parser.parse_args()
    data = os.environ.get("FEDFLEET_DATA")
    if told.scenarios is None and not data:
        print(json.dumps({"skipped": "needs FEDFLEET_DATA or --scenarios"}))
        return
    scenarios = told.scenarios or Path(str(data)) / "argoverse1"
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in map(int, told.seeds.split(",")):
            print(f"seed {seed}", file=sys.stderr)
            found[seed] = run(scenarios, seed, Path(folder) / f"seed-{seed}")
    result = figures(found)
    print(
        json.dumps(result) if told.json else "\n".join(f"{name}: {value}" for name, value in result.items())
    )


if __name__ == "__main__":
    main()
