"""SUMO vehicles driven with a trained model's forecasts, against constant velocity straight on and along the road.

    python benchmarks/closed_loop.py [--model FILE] [--episodes 20] [--seed 7] [--json]

The command `fedfleet closed-loop` itself. Without `--model` it is `out/demo/model.onnx`, made with `fedfleet demo`
where there is none. The policy was written with seed 1; seed 7 has episodes that it has not seen.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

DEMO_MODEL = Path("out/demo/model.onnx")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure the closed loop.")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if importlib.util.find_spec("libsumo") is None:
        print(json.dumps({"left_out": "libsumo is not installed: pip install 'fedfleet[sumo]'"}))
        return
    report = measure(given.model or _demo_model(), episodes=given.episodes, seed=given.seed)
    print(json.dumps(report, indent=1) if given.json else text(report))


def measure(model: Path, *, episodes: int, seed: int) -> dict[str, Any]:
    """Run the command; its result without the single episodes."""
    command = [sys.executable, "-m", "fedfleet.cli.main", "closed-loop", "--model", str(model)]
    command += ["--against", "constant-velocity", "--against", "road-velocity"]
    with tempfile.TemporaryDirectory() as folder:
        command += ["--episodes", str(episodes), "--seed", str(seed), "--out", folder, "--json"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    found: dict[str, Any] = json.loads(done.stdout)
    found.pop("episodes")
    return found


def _demo_model() -> Path:
    if not DEMO_MODEL.is_file():
        command = [sys.executable, "-m", "fedfleet.cli.main", "demo", "--no-faults"]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return DEMO_MODEL


def text(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = []
    for situation, part in report["situations"].items():
        for other, measures in part["against"].items():
            lines.append(f"{situation}, {part['episodes']} episodes, model / {other}:")
            lines += [
                f"  {name:18} {one['model']} / {one['against']}, difference {one['difference']} "
                f"[{one['low']}, {one['high']}]"
                for name, one in measures.items()
            ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
