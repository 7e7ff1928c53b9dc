"""Scores on the validation drives: each model file once."""

import agent_world as aw
import numpy as np
import pytest

from fedfleet.fleet_server import validation
from fedfleet.models import scoring
from fedfleet.models.task import Samples


def samples(seed: int) -> Samples:
    chance = np.random.default_rng(seed)
    inputs = chance.normal(0, 1, (20, 4)).astype(np.float32)
    return Samples(inputs, chance.normal(0, 1, (20, 2)).astype(np.float32), np.ones(20, np.bool_))


def test_a_file_that_was_scored_lately_is_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    run: list[str] = []
    score = scoring.score

    def noted(*args: object, **more: object) -> object:
        run.append("x")
        return score(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(validation.scoring, "score", noted)
    judge = validation.Validation(aw.TASK, {"a": samples(1), "b": samples(2)}, batch=8)
    one, other = aw.file_of(1), aw.file_of(2)
    first = judge.scores(one)
    assert (len(run), judge.scores(one)) == (2, first)
    assert first["a"] != first["b"]
    # when one region has another file
    mixed = judge.scores_of({"a": one, "b": other})
    assert (len(run), mixed["a"]) == (3, first["a"])
    assert mixed["b"] == judge.scores(other)["b"] != first["b"]
    # then the same scores come from the model itself, long after it was forgotten
    for number in range(3, 9):
        judge.scores(aw.file_of(number))
    before = len(run)
    assert judge.scores(one) == first
    assert len(run) == before + 2
