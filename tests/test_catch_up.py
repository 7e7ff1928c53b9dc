"""A vehicle that was away for some rounds sends as much as it would have sent in them."""

from pathlib import Path

import agent_world as aw
import numpy as np
import pytest
from agent_trainer import ramp
from pydantic import ValidationError
from test_fleet_equals_agent import Yard, yard

from fedfleet.codec import payload
from fedfleet.fleet_server.config_codec import CodecConfig
from fedfleet.models.task import Floats
from fedfleet.protocol import envelope, update
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


def test_who_comes_rarely_encodes_without_state(tmp_path: Path) -> None:
    with yard(tmp_path, vehicles=("v01",)) as made:
        made.server.publish_model(0)
        (vehicle,) = made.fleet.vehicles

        def sends(round_: int) -> str:
            codec = msg.CodecPlan(density=0.1, catch_up=5, stateless_after=4, stateless_density=0.5)
            made.server.publish(aw.plan(round_, 0, codec=codec))
            made.run_until(lambda: ("v01", round_) in made.server.updates, f"update of round {round_}")
            return vehicle.parts.tuning.update_codec

        # given a vehicle that answers rounds 1 and 4, and is not new to the fleet before that
        assert sends(1) == "rice sign 0.1"
        assert sends(4) == "rice sign 0.3"
        assert vehicle.parts.journal.residual(aw.NETWORK_SIZE).any()
        # when it comes back after four rounds, then nothing of it stays behind
        assert sends(8) == "dense stochastic4 0.5"
        assert not vehicle.parts.journal.residual(aw.NETWORK_SIZE).any()
        assert sends(9) == "rice sign 0.1"


def test_who_was_away_trains_ahead_of_the_base(tmp_path: Path) -> None:
    with yard(tmp_path, vehicles=("v01",), trainer="echo") as made:
        made.server.publish_model(0)
        (vehicle,) = made.fleet.vehicles
        journal = vehicle.parts.journal

        def sent(round_: int, codec: msg.CodecPlan) -> Floats:
            made.server.publish(aw.plan(round_, 0, codec=codec))
            made.run_until(lambda: ("v01", round_) in made.server.updates, f"update of round {round_}")
            sealed = made.server.updates["v01", round_]
            start = envelope.peek(sealed, limit_bytes=len(sealed)).body_start
            _, body = update.unpack(sealed[start:], sender="v01")
            return payload.decode(body, size=aw.NETWORK_SIZE).delta.dense()

        # given a vehicle that holds something back, and learns where it began and a ramp
        sent(1, msg.CodecPlan(density=0.1))
        held, base = journal.residual(aw.NETWORK_SIZE), journal.base_vector
        assert base is not None
        assert held.any()
        # when it was away for a round, then when it was not
        dense = msg.CodecPlan(index="dense", value="float32", coordinates="dense", step_ahead=0.5)
        away = sent(3, dense)
        here = sent(4, dense)
        # then it began ahead by half of what it held back, all of which was sent; then at the base
        learned = ramp(aw.NETWORK_SIZE)
        assert np.array_equal(away, base + np.float32(0.5) * held + learned + held)
        assert np.array_equal(here, base + learned)


@pytest.mark.parametrize("index", ["dense", "common"])
def test_coordinates_that_are_told_leave_no_choice(index: str) -> None:
    with pytest.raises(ValidationError, match=f"stateless_after: expected 0 with index {index}"):
        CodecConfig.model_validate({"index": index, "value": "int8", "stateless_after": 4})


def test_the_plan_says_what_the_server_is_configured_for() -> None:
    assert CodecConfig(catch_up=7).plan().catch_up == 7
    assert CodecConfig(step_ahead=0.25).plan().step_ahead == 0.25
    told = CodecConfig(stateless_after=9, stateless_density=0.2).plan()
    assert (told.stateless_after, told.stateless_density) == (9, 0.2)
    with pytest.raises(ValidationError):
        CodecConfig(catch_up=0)
