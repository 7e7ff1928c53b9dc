"""Thousands of messages of every kind, and mutated payloads, through the real ingest: nothing stops or fails inside."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "fuzz_ingest.py"


@pytest.mark.parametrize("store", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def test_no_message_stops_the_server(store: str, tmp_path: Path) -> None:
    # when five thousand messages and as many payloads come, from a run that was stopped half way
    figures: dict[str, Any] = {}
    for payloads in (0, 5000):
        words = [
            "--messages",
            "5000",
            "--payloads",
            str(payloads),
            "--state",
            tmp_path / "state",
            "--seed",
            "7",
        ]
        command = [sys.executable, SCRIPT, "--json", "--store", store, *words]
        done = subprocess.run(
            list(map(str, command)), capture_output=True, check=False, text=True, timeout=300
        )
        figures = json.loads(done.stdout)
    # then all are taken or refused by their reason, each once, and all that is stored can be shown
    assert figures["first_stops"] == []
    assert figures["internal_errors"] == 0
    assert (figures["messages"], figures["payloads"]) == (5000, 5000)
    wanted = {
        "malformed-message",
        "malformed-topic",
        "malformed-chunk",
        "bad-signature",
        "too-large",
        "bad-frame",
    }
    assert wanted <= set(figures["refused"])
    assert figures["reasons"] > 35
    assert figures["others"]["dropped:qos-0"] > 50
