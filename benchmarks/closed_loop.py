"""SUMO vehicles driven with a trained model's forecasts, against constant velocity straight on and along the road.

    python benchmarks/closed_loop.py [--model FILE] [--episodes 20] [--seed 7] [--resume FILE] [--json]

The episodes of `fedfleet closed-loop`; with `--resume` those in the file are not driven again. Without `--model` it is
`out/demo/model.onnx`, made with `fedfleet demo` where there is none. The policy was written with seed 1; seed 7 has
episodes that it has not seen.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from fedfleet.cli.closed_loop import MODEL, Run, drive_one
from fedfleet.cli.closed_loop_report import result
from fedfleet.cli.replay_run import load_model
from fedfleet.models.task import load
from fedfleet.scenarios.closed_loop_forecast import by_model, constant_velocity, road_velocity
from fedfleet.scenarios.closed_loop_measure import Outcome
from fedfleet.scenarios.closed_loop_plan import SITUATIONS, plan

DEMO_MODEL = Path("out/demo/model.onnx")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure the closed loop.")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if importlib.util.find_spec("libsumo") is None:
        print(json.dumps({"left_out": "libsumo is not installed: pip install 'fedfleet[sumo]'"}))
        return
    model = given.model or _demo_model()
    report = measure(model, episodes=given.episodes, seed=given.seed, resume=given.resume)
    print(json.dumps(report, indent=1) if given.json else text(report))


def measure(model: Path, *, episodes: int, seed: int, resume: Path | None) -> dict[str, Any]:
    """What the command would say, without the single episodes; both situations in turn."""
    loaded = load_model(model, load("motion_forecast"))
    arms = {
        MODEL: by_model(loaded.run),
        "constant-velocity": constant_velocity,
        "road-velocity": road_velocity,
    }
    plans = [plan(name, number, seed=seed) for number in range(episodes) for name in SITUATIONS]
    known = _known(resume)
    runs = []
    for count, each in enumerate(plans, start=1):
        key = f"{loaded.sha256} {seed} {each.situation} {each.number}"
        if key not in known:
            known[key] = {name: one.as_json() for name, one in drive_one(each, arms).outcomes.items()}
            if resume is not None:
                with resume.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"episode": key, "outcomes": known[key]}) + "\n")
        runs.append(Run(each, {name: Outcome(**values) for name, values in known[key].items()}))
        print(f"closed loop: {count}/{len(plans)}", file=sys.stderr, flush=True)
    found = result(runs, arms=list(arms), seed=seed, about={"model_sha256": loaded.sha256})
    found.pop("episodes")
    return found


def _known(resume: Path | None) -> dict[str, dict[str, dict[str, Any]]]:
    """Episodes that an earlier, interrupted run has written."""
    if resume is None or not resume.is_file():
        return {}
    lines = [json.loads(line) for line in resume.read_text(encoding="utf-8").splitlines()]
    return {line["episode"]: line["outcomes"] for line in lines}


def _demo_model() -> Path:
    if not DEMO_MODEL.is_file():
        command = [sys.executable, "-P", "-m", "fedfleet.cli.main", "demo", "--no-faults"]
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
