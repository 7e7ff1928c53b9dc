"""The search of the arms' settings compares like with like: only splits that every arm has finished count."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ARMS = ("centralised", "on_site", "federated")


@pytest.fixture(scope="module")
def search() -> ModuleType:
    place = Path(__file__).parents[1] / "benchmarks" / "search.py"
    spec = importlib.util.spec_from_file_location("benchmark_search", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def row(arm: str, split: int, kind: str, ade: float) -> dict[str, Any]:
    return {
        "arm": arm,
        "split": split,
        "learning_rate": 0.1,
        "augment": kind,
        "validation_ade": ade,
        "seconds": 1.0,
    }


def test_the_best_is_by_the_mean_over_splits_that_are_complete(search: ModuleType) -> None:
    # given two complete splits that disagree, and a third in which one arm is missing
    values = {(1, "none"): 2.0, (1, "mirror"): 2.2, (2, "none"): 2.0, (2, "mirror"): 1.6}
    rows = [row(arm, split, kind, ade) for (split, kind), ade in values.items() for arm in ARMS]
    rows += [row(arm, 3, kind, 0.1) for arm in ARMS[:2] for kind in ("none", "mirror")]
    # when they are put together
    found = search.summary(rows, trials=2)
    # then the third counts for no arm
    assert (found["splits"], found["unfinished_splits"]) == ([1, 2], [3])
    assert {arm: found["best"][arm]["augment"] for arm in ARMS} == dict.fromkeys(ARMS, "mirror")
    assert found["best"]["federated"]["ade"] == pytest.approx(1.9)
    assert search.table(found).count("**best**") == 3


def test_every_arm_has_as_many_settings_as_the_others_all_different(search: ModuleType) -> None:
    for arm in ARMS:
        trials = {str(search._chosen(search._arms(arm, *trial), arm)) for trial in search.TRIALS}
        assert len(trials) == len(search.TRIALS)
