"""Settings that suit a task, where nobody chose others."""

from collections.abc import Mapping

import pytest
import tiny_task

from fedfleet.cli import suits
from fedfleet.cli.config import Settings
from fedfleet.models import task as tasks
from fedfleet.protocol.errors import UsageError


class Suited(tiny_task.TinyTask):
    """A task that says what suits it."""

    def __init__(self, suits: Mapping[str, Mapping[str, object]]) -> None:
        self.suits = suits


def test_what_suits_a_task_is_taken_where_the_configuration_says_nothing() -> None:
    told = Settings.model_validate(
        {"task": "camera_steering", "server": {"strategy": {"server_learning_rate": 0.5}}}
    )
    found = suits.server(told)
    assert found.strategy.server_learning_rate == 0.5
    assert found.training["optimizer"] == "adam"
    assert suits.server(Settings()).training == Settings().server.training


def test_a_demo_has_as_many_rounds_as_suit_its_task() -> None:
    assert suits.demo_rounds(Suited({"demo": {"rounds": 7}})) == 7
    assert suits.demo_rounds(Suited({})) == suits.demo_rounds(tasks.load("motion_forecast")) == 10


@pytest.mark.parametrize("rounds", [0, -1, 2.5, "ten", True, None])
def test_a_demo_of_no_number_of_rounds_is_refused(rounds: object) -> None:
    with pytest.raises(UsageError, match=r"task tiny: suits: demo\.rounds: expected a whole number above 0"):
        suits.demo_rounds(Suited({"demo": {"rounds": rounds}}))


def test_settings_that_are_not_valid_are_told_by_name() -> None:
    with pytest.raises(UsageError, match=r"task tiny: suits: epochs: Input should be greater than or equal"):
        suits.arms(Suited({"compare": {"epochs": 0}}))
