"""The learning rate over the batches of a training, and over the rounds of a server."""

import math

import pytest
from pydantic import ValidationError

from fedfleet.fleet_server.config import RoundsConfig, ServerSettings
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
