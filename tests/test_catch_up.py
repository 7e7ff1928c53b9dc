"""A vehicle that was away for some rounds sends as much as it would have sent in them."""

from pathlib import Path

import agent_world as aw
import pytest
from pydantic import ValidationError
from test_fleet_equals_agent import Yard, yard

from fedfleet.fleet_server.config_codec import CodecConfig
from fedfleet.protocol import messages as msg


def answer(made: Yard, round_: int) -> str:
    """Let the vehicle answer a round; return the setting that it used."""
    made.server.publish(aw.plan(round_, 0, codec=msg.CodecPlan(density=0.02, catch_up=5)))
    made.run_until(lambda: ("v01", round_) in made.server.updates, f"update of round {round_}")
    (vehicle,) = made.fleet.vehicles
    return vehicle.parts.tuning.update_codec


def test_density_follows_the_rounds_away(tmp_path: Path) -> None:
    with yard(tmp_path, vehicles=("v01",)) as made:
        # given a vehicle that answers rounds 1 and 2
        made.server.publish_model(0)
        assert answer(made, 1) == "rice sign 0.02"
        assert answer(made, 2) == "rice sign 0.02"
        # when it is away for two rounds, then for very long
        # then it sends what it would have sent in the rounds since, at most five times a round's
        assert answer(made, 5) == "rice sign 0.06"
        assert answer(made, 500) == "rice sign 0.1"
        assert answer(made, 501) == "rice sign 0.02"


def test_the_plan_says_what_the_server_is_configured_for() -> None:
    assert CodecConfig(catch_up=7).plan().catch_up == 7
    with pytest.raises(ValidationError):
        CodecConfig(catch_up=0)
