"""The demo's figures: seconds to the first round and in all, upload ratio, gain over constant velocity, memory.

`python benchmarks/demo.py --json [--runs N]` runs `fedfleet demo` and prints the figures; a run whose claims are not
all true counts as failed.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def run(out: Path) -> dict[str, Any]:
    """Run one demo and return its report, with the exit code."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "fedfleet.cli.main", "demo", "--out", str(out)],
        stdout=subprocess.DEVNULL,
        timeout=600,
        check=False,
    )
    report: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return report | {"exit_code": done.returncode}


def figures(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures: medians of what varies, worst cases of what must hold."""
    gains = {
        region: statistics.median(
            1 - report["scores"][region] / report["baseline"][region] for report in reports
        )
        for region in reports[0]["scores"]
    }
    return {
        "runs": len(reports),
        "failed_runs": sum(report["exit_code"] != 0 for report in reports),
        "first_round_s": statistics.median(report["first_round_s"] for report in reports),
        "seconds": statistics.median(report["seconds"] for report in reports),
        "upload_ratio": min(report["ratio"] for report in reports),
        "gain_over_baseline": {region: round(gain, 4) for region, gain in gains.items()},
        "missed_in_swap": max(report["missed_in_swap"] for report in reports),
        "swaps": sum(report["swaps"] for report in reports),
        "p50_ms": statistics.median(report["p50_ms"] for report in reports),
        "p99_ms": max(report["p99_ms"] for report in reports),
        "agent_rss_bytes": max(report["agent_rss_bytes"] for report in reports),
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--runs", type=int, default=1, help="demos to run, one after another")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        reports = []
        for number in range(told.runs):
            print(f"demo {number + 1} of {told.runs}", file=sys.stderr)
            reports.append(run(Path(folder) / f"run-{number}" / "demo"))
    found = figures(reports)
    print(json.dumps(found) if told.json else "\n".join(f"{name}: {value}" for name, value in found.items()))


if __name__ == "__main__":
    main()
