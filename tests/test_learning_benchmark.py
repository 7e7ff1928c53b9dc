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
    return {"seed": seed, "curve": curve, "test_last": test, "test_equal": test, "test_chosen": test}


def test_a_gain_is_relative_to_that_of_centralised_training_on_the_same_split(summary: ModuleType) -> None:
    # given one split half way there, the other all the way
    rows = [run(1, [1.5], up=10, down=4), run(2, [2.0], up=20, down=4)]
    # then
    assert summary.mean_curve(rows, KNOWN) == [[1, 75.0, 15, 4]]


def test_the_target_is_reached_when_the_mean_of_five_rounds_is_there(summary: ModuleType) -> None:
    # given a lucky second round, and rounds 3 to 7 at the target together
    curve = summary.mean_curve([run(1, [1.5, 1.0, 1.2, 1.0, 1.02, 1.0, 1.02, 1.0], up=10, down=5)], KNOWN)
    assert summary.reached(curve) == {"round": 8, "up": 80, "down": 40, "is_bound": False}
    assert summary.reached(curve, window=1) == {"round": 2, "up": 20, "down": 10, "is_bound": False}


def test_a_setting_is_chosen_by_the_last_third_of_its_trial(summary: ModuleType) -> None:
    curve = summary.mean_curve([run(1, [1.0, 1.0, 1.0, 1.0, 1.2, 1.4], up=1, down=1)], KNOWN)
    assert summary.steady(curve) == pytest.approx(70.0)


def test_who_never_gets_there_is_told_as_a_lower_bound(summary: ModuleType) -> None:
    # given ours at the target after six rounds, FedSGD never
    near = [run(1, [1.5, *5 * [1.0]], up=10, down=10, test=1.02)]
    dense = [run(1, 6 * [1.0], up=1000, down=1000, test=1.0)]
    never = [run(1, 6 * [1.9], up=1000, down=1000)]
    runs = {"ours": near, "fedavg": dense, "fedsgd": never}
    curves = {name: summary.mean_curve(rows, KNOWN) for name, rows in runs.items()}
    # when
    found = summary.figures(curves, runs)
    # then
    assert (found["x_fedsgd_97"], found["x_fedsgd_97_is_lower_bound"]) == (100.0, True)
    assert (found["x_fedavg_97"], found["x_fedavg_97_is_lower_bound"]) == (83.3, False)
    assert found["x_both_97"] == 83.3
    assert found["first_touch"]["x_fedavg_97"] == 50.0
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


def quick(scenarios: Path, what: Any, seed: int) -> dict[str, Any]:
    """A run that takes no time; each leaves a line."""
    learning = import_module("learning")
    with (scenarios / "made.txt").open("a", encoding="utf-8") as stream:
        stream.write(f"{what} {seed}\n")
    key = learning.key_of(learning.described(what, seed, data="d"))
    return {"key": key, "seed": seed, "rate": what, "seconds": 0.0}


def bench_of(learning: ModuleType, folder: Path, *, end: float = float("inf"), data: str = "d") -> Any:
    file = folder / "runs.jsonl"
    return learning.Bench(
        folder, file, end, (11,), (1,), jobs=1, make=quick, digest=lambda _folder, _vehicles, _seed: data
    )


def test_finished_runs_are_not_made_again_and_a_cut_line_is(learning: ModuleType, tmp_path: Path) -> None:
    # given one run that is finished and one whose line a kill has cut
    bench_of(learning, tmp_path).fill([(0.5, 1)])
    with (tmp_path / "runs.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"key": "half')
    # when
    again = bench_of(learning, tmp_path)
    again.fill([(0.5, 1), (0.5, 2)])
    # then
    assert again.row(0.5, 2)["seed"] == 2
    assert (tmp_path / "made.txt").read_text(encoding="utf-8").splitlines() == ["0.5 1", "0.5 2"]
    lines = (tmp_path / "runs.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["seed"] for line in lines] == [1, 2]


def test_a_run_on_other_data_is_another_run(learning: ModuleType) -> None:
    one, other = (learning.key_of(learning.described(0.5, 1, data=data)) for data in ("d", "e"))
    assert one != other


def test_after_its_time_no_run_is_started(learning: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(learning.OutOfTimeError):
        bench_of(learning, tmp_path, end=float("-inf")).fill([(0.5, 1)])
    assert not (tmp_path / "made.txt").exists()
