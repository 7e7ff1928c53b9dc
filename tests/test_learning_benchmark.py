"""What the benchmark of learning makes of finished runs: targets, lower bounds, and how it goes on after a kill."""

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
KNOWN = {1: (2.0, 1.0), 2: (4.0, 2.0)}


@pytest.fixture(scope="module", autouse=True)
def _importable() -> Iterator[None]:
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


@pytest.fixture
def summary() -> ModuleType:
    return import_module("learning_summary")


@pytest.fixture
def learning() -> ModuleType:
    return import_module("learning")


def run(seed: int, values: list[float], *, up: int, down: int, test: float = 1.0) -> dict[str, Any]:
    curve = [[i + 1, value, up * (i + 1), down * (i + 1)] for i, value in enumerate(values)]
    return {"seed": seed, "curve": curve, "test_last": test, "test_chosen": test}


def test_a_gain_is_relative_to_that_of_centralised_training_on_the_same_split(summary: ModuleType) -> None:
    # given one split half way there, the other all the way
    rows = [run(1, [1.5], up=10, down=4), run(2, [2.0], up=20, down=4)]
    # then
    assert summary.mean_curve(rows, KNOWN) == [[1, 75.0, 15, 4]]


def test_the_target_is_reached_at_the_first_round_that_has_it(summary: ModuleType) -> None:
    curve = summary.mean_curve([run(1, [1.5, 1.03, 1.2, 1.0], up=10, down=5)], KNOWN)
    assert summary.reached(curve) == {"round": 2, "up": 20, "down": 10, "is_bound": False}


def test_who_never_gets_there_is_told_as_a_lower_bound(summary: ModuleType) -> None:
    # given ours at the target after two rounds, FedSGD never
    near = [run(1, [1.5, 1.0], up=10, down=10, test=1.02)]
    dense = [run(1, [1.0, 1.0], up=1000, down=1000, test=1.0)]
    never = [run(1, [1.9, 1.8], up=1000, down=1000)]
    runs = {"ours": near, "fedavg": dense, "fedsgd": never}
    curves = {name: summary.mean_curve(rows, KNOWN) for name, rows in runs.items()}
    # when
    found = summary.figures(curves, runs)
    # then
    assert (found["x_fedsgd_97"], found["x_fedsgd_97_is_lower_bound"]) == (100.0, True)
    assert (found["x_fedavg_97"], found["x_fedavg_97_is_lower_bound"]) == (50.0, False)
    assert found["x_both_97"] == 50.0
    assert found["ade_gap_pct"] == 2.0


def test_there_is_no_ratio_when_ours_never_gets_there(summary: ModuleType) -> None:
    rows = [run(1, [1.9], up=10, down=10)]
    runs = {"ours": rows, "fedavg": rows, "fedsgd": rows}
    found = summary.figures({name: summary.mean_curve(rows, KNOWN) for name in runs}, runs)
    assert found["x_fedavg_97"] is None


def test_every_method_tries_as_many_settings() -> None:
    methods = import_module("learning_methods")
    assert {len(methods.trials(method)) for method in methods.METHODS.values()} == {4}
    assert len(methods.CENTRAL_RATES) == 4
    assert {len(methods.trials(method)) for method in methods.REMEDIES.values()} == {len(methods.RARE_RATES)}


def test_finished_runs_are_not_made_again_and_a_cut_line_is(learning: ModuleType, tmp_path: Path) -> None:
    # given one run that is finished and one whose line a kill has cut
    file = tmp_path / "runs.jsonl"
    what = {"kind": "run", "seed": 1}
    made: list[int] = []

    def bench() -> Any:
        return learning.Bench(tmp_path, file, float("inf"), (11,), (1,))

    def make() -> dict[str, Any]:
        made.append(1)
        return {"value": len(made)}

    bench()._row(what, make)
    with file.open("a", encoding="utf-8") as stream:
        stream.write('{"key": "half')
    # when
    again = bench()
    # then
    assert again._row(what, make)["value"] == 1
    assert again._row({**what, "seed": 2}, make)["value"] == 2
    assert [json.loads(line)["value"] for line in file.read_text(encoding="utf-8").splitlines()] == [1, 2]


def test_after_its_time_no_run_is_started(learning: ModuleType, tmp_path: Path) -> None:
    bench = learning.Bench(tmp_path, tmp_path / "runs.jsonl", float("-inf"), (11,), (1,))
    with pytest.raises(learning.OutOfTimeError):
        bench._row({"seed": 1}, dict)
