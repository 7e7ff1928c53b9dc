"""The published sizes hold, and the scripts that publish them run."""

import json
import os
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_benchmark_prints_json_with_the_sizes_promised() -> None:
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "codec.py", "--json", "--seconds", "0.5"],
        env={name: value for name, value in os.environ.items() if name != "FEDFLEET_DATA"},
        capture_output=True,
        check=True,
        text=True,
        timeout=120,
    )
    figures = json.loads(done.stdout)
    assert figures["bytes_1m_1pct_sign"] <= 11_440
    assert figures["bytes_1m_01pct_sign"] <= 1_640
    assert figures["index_over_bound_pct"] <= 0.4
    assert figures["decode_add_per_s_1m"] > 0
    assert figures["x_dense_1m"] > 0
    # and figures of recordings are not made up where there are none
    assert figures["skipped"] == "real_*: FEDFLEET_DATA is not set, no recorded data"
    assert not any(key.startswith("real_") for key in figures)


def test_updates_are_recorded_once(tmp_path: Path, data_dir: Path) -> None:
    # given one round recorded
    command = [
        sys.executable,
        BENCHMARKS / "recorded_deltas.py",
        "--json",
        "--rounds",
        "1",
        "--out",
        tmp_path,
    ]
    told = [
        subprocess.run(
            command,
            env={**os.environ, "FEDFLEET_DATA": str(data_dir)},
            capture_output=True,
            check=True,
            text=True,
            timeout=150,
        )
        # when it is asked for again
        for _ in range(2)
    ]
    # then the second time nothing is trained
    assert json.loads(told[0].stdout)["rounds"] == json.loads(told[1].stdout)["rounds"] == [1]
    assert "round 1 of 1" in told[0].stderr
    assert told[1].stderr == ""
