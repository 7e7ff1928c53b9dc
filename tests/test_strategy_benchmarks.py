"""The scripts that publish figures of strategies run, and the attacks are what their papers say."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, BENCHMARKS / script, *arguments],
        capture_output=True,
        check=True,
        text=True,
        timeout=300,
    )
    return done.stdout


@pytest.fixture(scope="module")
def attacks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("attacks", BENCHMARKS / "attacks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["attacks"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.timeout(300)
def test_the_fold_is_measured_for_every_kind_of_strategy_within_its_memory() -> None:
    names = "scaffold,fednova,norm-clip,fltrust,krum,bulyan"
    found = json.loads(
        run("fold.py", "--json", "--quick", "--updates", "40", "--parameters", "50000", "--only", names)
    )["one_round"]
    assert list(found) == names.split(",")
    for row in found.values():
        assert row["updates_per_s"] > 0
        assert row["base_mb"] <= row["rss_mb"] <= 300


def test_hostile_vehicles_send_what_the_papers_say(attacks: ModuleType) -> None:
    # given twenty updates of two coordinates, four of them hostile
    rng = np.random.default_rng(0)
    deltas = [rng.normal([1, 5], 0.5).astype(np.float32) for _ in range(20)]
    honest = np.array(deltas[4:], dtype=np.float64)
    mean, spread = honest.mean(axis=0), honest.std(axis=0)
    # z of 20 with 4 hostile: 7 supporters are missing, so 9 of 16 must lie nearer: Φ⁻¹(0.5625) = 0.1573
    expected = {
        "sign-flip-3": -3 * deltas[0],
        "alie": mean - 0.15731 * spread,
        "ipm-0.5": -0.5 * mean,
        "ipm-10": -10 * mean,
        "none": deltas[0],
        "label-flip": deltas[0],
    }
    for name, wanted in expected.items():
        sent = list(deltas)
        attacks._attack(sent, name, seed=1)
        assert np.allclose(sent[0], wanted, rtol=1e-4), name
        # and nobody else's change
        assert all(a is b for a, b in zip(sent[4:], deltas[4:], strict=True))
    sent = list(deltas)
    attacks._attack(sent, "noise", seed=1)
    assert np.linalg.norm(sent[2]) == pytest.approx(5 * np.linalg.norm(deltas[2]), rel=1e-5)


def test_the_table_has_a_line_for_each_rule_with_its_worst(attacks: ModuleType) -> None:
    rows = [
        {"rule": rule, "attack": attack, "seed": seed, "gain": gain + seed}
        for rule, attack, gain in (("mean", "none", 30.0), ("mean", "noise", 4.0), ("krum", "none", 20.0))
        for seed in (1, 2)
    ]
    assert attacks.table(rows).splitlines()[2:] == [
        "| mean | 31.5 | 5.5 | 5.5 |",
        "| krum | 21.5 |  | 21.5 |",
    ]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_cell_runs_and_is_not_run_again(tmp_path: Path) -> None:
    file = tmp_path / "cells.jsonl"
    told = (
        "--rounds",
        "1",
        "--rules",
        "multi-krum",
        "--attacks",
        "sign-flip-3",
        "--resume",
        str(file),
        "--json",
    )
    (row,) = json.loads(run("attacks.py", *told))
    assert row["void_rounds"] == 0
    before = file.read_bytes()
    assert json.loads(run("attacks.py", *told)) == [row]
    assert file.read_bytes() == before
