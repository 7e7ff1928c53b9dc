from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from fedfleet.link.shape import LinkProfile
from fedfleet.vehicle_agent.config import AgentSettings
from fedfleet.vehicle_agent.profiles import PLAIN, Profile, chosen


def test_a_named_vehicle_has_its_profile_and_the_others_are_drawn_by_their_ids() -> None:
    # given
    profiles = {
        "weak": Profile(share=0.3, trainable="head"),
        "far": Profile(vehicles=("v0007",), link=LinkProfile(latency_ms=300)),
        "cut": Profile(share=0.2, link=LinkProfile(cut_every_s=600, cut_s=30)),
    }
    names = {id(profile): name for name, profile in profiles.items()} | {id(PLAIN): ""}

    # when
    found = {f"v{number:04d}": names[id(chosen(profiles, f"v{number:04d}"))] for number in range(2000)}

    # then
    assert found["v0007"] == "far"
    counts = Counter(found.values())
    assert counts["far"] == 1
    assert 520 <= counts["weak"] <= 680
    assert 330 <= counts["cut"] <= 470
    assert found == {name: names[id(chosen(dict(reversed(profiles.items())), name))] for name in found}


def test_what_a_profile_says_stands_above_what_is_said_of_all() -> None:
    # given
    settings = AgentSettings.model_validate(
        {
            "training_budget_s": 60,
            "conditions": {"Vehicle.Speed": 0},
            "profiles": {
                "weak": {
                    "vehicles": ["v01"],
                    "training_budget_s": 5,
                    "batch_memory_mb": 8,
                    "trainable": "head",
                    "rate_hz": 2,
                    "conditions_file": "traces/{vehicle}.csv",
                }
            },
        }
    )

    # when
    weak, other = settings.of("v01"), settings.of("v02")

    # then
    assert (weak.training_budget_s, weak.batch_memory_mb, weak.trainable, weak.rate_hz) == (5, 8, "head", 2)
    assert weak.conditions_file == Path("traces/{vehicle}.csv")
    assert not weak.conditions
    assert other == settings


@pytest.mark.parametrize(
    ("profiles", "told"),
    [
        ({"a": {"share": 0.7}, "b": {"share": 0.4}}, "shares sum up to 1.1, expected at most 1"),
        ({"a": {"vehicles": ["v1"]}, "b": {"vehicles": ["v1"]}}, "vehicle v1 is in a and in b"),
        ({"a": {"strength": 3}}, "Extra inputs"),
        ({"a": {"link": {"cut_s": 5}}}, "come together"),
    ],
)
def test_profiles_that_make_no_sense_are_refused(profiles: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        AgentSettings.model_validate({"profiles": profiles})
