"""The learning rate over the batches of a training, and over the rounds of a server."""

import math
from pathlib import Path

import numpy as np
import pytest
import server_world
from pydantic import ValidationError

from fedfleet.fleet_server.config import RoundsConfig, ServerSettings, StrategyConfig
from fedfleet.fleet_server.fold import Aggregate
from fedfleet.fleet_server.model_state import Graph, Past, propose
from fedfleet.fleet_server.store_models import Model
from fedfleet.fleet_server.validation import open_validation
from fedfleet.models import layout
from fedfleet.models.settings import TrainSettings


def test_a_cosine_falls_from_the_learning_rate_to_near_zero() -> None:
    settings = TrainSettings(learning_rate=0.4, schedule="cosine")
    rates = [settings.learning_rate_at(done / 8) for done in range(8)]
    assert rates[0] == 0.4
    assert rates[4] == pytest.approx(0.2)
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 0.02


def test_constant_says_the_same_throughout() -> None:
    assert {TrainSettings(learning_rate=0.4).learning_rate_at(done / 5) for done in range(5)} == {0.4}


def test_a_server_without_a_schedule_sends_what_it_is_told() -> None:
    settings = ServerSettings(training={"epochs": 3})
    assert settings.training_of(1) == settings.training_of(99) == {"epochs": 3}


def test_a_server_s_cosine_is_in_each_round_s_plan_and_leaves_the_rest() -> None:
    settings = ServerSettings(
        rounds=RoundsConfig(total=4), training={"learning_rate": 0.2}, learning_rate_schedule="cosine"
    )
    rates = [float(settings.training_of(number)["learning_rate"]) for number in (1, 2, 3, 4)]
    expected = [0.1 * (1 + math.cos(math.pi * done / 4)) for done in range(4)]
    assert rates == pytest.approx(expected)
    assert "schedule" not in settings.training_of(1)


def test_a_server_s_cosine_needs_an_end() -> None:
    with pytest.raises(ValidationError, match=r"cosine needs rounds\.total, got no end"):
        ServerSettings(learning_rate_schedule="cosine")


def test_a_server_s_step_is_whole_until_its_cooldown_and_then_falls_in_a_line() -> None:
    settings = ServerSettings(rounds=RoundsConfig(total=8), strategy=StrategyConfig(cooldown=0.5))
    assert [settings.step_of(number) for number in range(1, 9)] == [1, 1, 1, 1, 1, 0.75, 0.5, 0.25]


@pytest.mark.parametrize(("total", "cooldown"), [(8, 0.0), (1, 0.5), (0, 0.0)])
def test_a_server_without_a_cooldown_always_makes_the_whole_step(total: int, cooldown: float) -> None:
    settings = ServerSettings(rounds=RoundsConfig(total=total), strategy=StrategyConfig(cooldown=cooldown))
    assert {settings.step_of(number) for number in (1, 5, 8)} == {1.0}


def test_a_cooldown_over_all_rounds_begins_with_the_whole_step() -> None:
    settings = ServerSettings(rounds=RoundsConfig(total=4), strategy=StrategyConfig(cooldown=1.0))
    assert [settings.step_of(number) for number in (1, 2, 3, 4)] == [1.0, 0.75, 0.5, 0.25]


def test_a_cooldown_needs_an_end() -> None:
    with pytest.raises(ValidationError, match=r"strategy.cooldown: expected 0 without rounds\.total"):
        ServerSettings(strategy=StrategyConfig(cooldown=0.2))


@pytest.mark.parametrize(("round_", "factor"), [(2, 1.0), (3, 1.0), (4, 0.5)])
def test_a_round_in_the_cooldown_moves_the_model_less(tmp_path: Path, round_: int, factor: float) -> None:
    # given the aggregates of a round of four
    told = {"rounds": {"total": 4, "quorum": 1}, "strategy": {"server_learning_rate": 0.5, "cooldown": 0.5}}
    config = server_world.configuration(tmp_path, **told, downlink={"density": 1.0, "value": "float32"})
    export = config.data_dir / "export"
    graph = Graph((export / "graph.onnx").read_bytes(), layout.read((export / "layout.json").read_bytes()))
    zero = np.zeros(server_world.SIZE, np.float32)
    model = Model(0, zero, zero, {}, "", "", None, None, 0.0)
    validation = open_validation(config.validation_dir, server_world.TASK, regions=config.regions, batch=64)
    aggregate = Aggregate(server_world.TRUTH.astype(np.float64), 1.0, 1)
    aggregates = dict.fromkeys(config.regions, aggregate)
    # when
    found = propose(
        model, aggregates, config=config, graph=graph, validation=validation, past=Past(round=round_)
    )
    # then
    assert found.candidate is not None
    assert found.candidate.step.x_next == pytest.approx(server_world.TRUTH * 0.5 * factor)
