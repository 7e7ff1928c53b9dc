"""Ten thousand mutated payloads of every mode: refused or read, nothing else; a stopped run goes on where it was."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "fuzz.py"


def fuzz(payloads: int, state: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--json", "--payloads", str(payloads), "--state", str(state)],
        capture_output=True,
        check=True,
        text=True,
        timeout=150,
    )
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def test_mutated_payloads_are_refused_or_read(tmp_path: Path) -> None:
    # given a run that was stopped half way
    half = fuzz(5_000, tmp_path / "state.json")
    # when it goes on
    whole = fuzz(10_000, tmp_path / "state.json")
    # then every payload was judged once
    assert half["payloads"] == sum(half["reasons"].values()) == 5_000
    assert whole["payloads"] == sum(whole["reasons"].values()) == 10_000
    assert all(whole["reasons"][reason] >= count for reason, count in half["reasons"].items())
    # and nothing but PeerError came out, no memory went in, and mutations reached every check of the index modes
    assert whole["first_crashes"] == []
    assert 0 < whole["peak_bytes"] <= whole["peak_limit_bytes"]
    wanted = {"bad-frame", "bad-rows", "bad-parameter", "count-mismatch", "stream-length", "padding-not-zero"}
    assert wanted <= set(whole["reasons"])
    assert whole["accepted"] > 500
