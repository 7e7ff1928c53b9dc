"""The published sizes hold, and the script that publishes them runs."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "codec.py"


def test_benchmark_prints_json_with_the_sizes_promised() -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--json", "--seconds", "0.5"],
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
