"""Settings that cannot work together are refused when they are made, each with one line."""

from typing import Any

import pytest
from pydantic import ValidationError

from fedfleet.fleet_server.config import ServerConfig, ServerSettings
from fedfleet.vehicle_agent.config import AgentSettings

SERVER: list[tuple[dict[str, Any], str]] = [
    (
        {"rounds": {"quorum": 5, "share_wanted": 3}},
        "rounds.share_wanted: expected at least quorum = 5, got 3",
    ),
    (
        {"rounds": {"quorum": 2, "contributors": {"north": ["v1"]}}},
        "rounds.contributors: north has 1 vehicles, quorum is 2: no round would ever open",
    ),
    ({"rounds": {"deadline_s": 10, "lease_s": 60}}, "lease_s: expected at most deadline_s = 10, got 60"),
    (
        {"rounds": {"mode": "buffered", "buffer": 2, "quorum": 3}},
        "quorum: expected at most buffer = 2, got 3",
    ),
    ({"strategy": {"cooldown": 0.5}}, "strategy.cooldown: expected 0 without rounds.total"),
    ({"strategy": {"tau": 0.1}}, "strategy.tau: strategy fedavg has none; expected one of "),
    ({"strategy": {"beta2": 0.5}}, "strategy.beta2: strategy fedavg has none; expected one of "),
    (
        {"strategy": {"rule": "mean", "clip_factor": 2.0}},
        "rule mean has no clip_factor; expected rule norm-clip",
    ),
    (
        {"training": {"momentum": 0}, "strategy": {"name": "scaffold", "rule": "norm-clip"}},
        "strategy scaffold needs rule mean, got norm-clip",
    ),
    ({"strategy": {"rule": "krum"}}, "rule krum needs rounds.quorum of at least 5, got 2"),
    ({"strategy": {"rule": "median"}, "rounds": {"quorum": 3}}, "rule median compares vehicles"),
    (
        {"codec": {"index": "dense", "value": "int8", "layer_floor": 0.1}},
        "codec.layer_floor: expected 0 with index dense, got 0.1",
    ),
    (
        {"update_limit_bytes": 5_000, "codec": {"links": {"metered": {"budget_bytes": 6_000}}}},
        "codec.links.metered.budget_bytes: expected at most update_limit_bytes = 5,000, got 6,000",
    ),
    (
        {"retention": {"payload_rounds": 20, "record_rounds": 10}},
        "retention.payload_rounds: expected at most record_rounds = 10, got 20",
    ),
    (
        {"rounds": {"keep_settlements": 50}, "retention": {"record_rounds": 10}},
        "rounds.keep_settlements: expected at most retention.record_rounds = 10, got 50",
    ),
    ({"int8": {"most_loss": 0.1}}, "int8.most_loss: expected none where int8 is not enabled"),
    ({"learning_rate_schedule": "cosine"}, "learning_rate_schedule: cosine needs rounds.total, got no end"),
]

AGENT: list[tuple[dict[str, Any], str]] = [
    (
        {"training_budget_s": 600},
        "training_budget_s: expected less than training_limit_s = 600, after which a training is given up, got 600",
    ),
    ({"resend_min_s": 100}, "resend_min_s: expected at most resend_cap_s = 60, got 100"),
    (
        {"max_update_bytes": 10_000, "update_budget_bytes": 20_000},
        "update_budget_bytes: expected at most max_update_bytes = 10,000, got 20,000",
    ),
]


@pytest.mark.parametrize(("content", "told"), SERVER, ids=lambda value: str(value)[:60])
def test_what_the_server_cannot_work_with_is_refused(content: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ServerSettings.model_validate(content)
    (error,) = caught.value.errors()
    assert told in error["msg"]
    assert "\n" not in error["msg"]


@pytest.mark.parametrize(("content", "told"), AGENT, ids=lambda value: str(value)[:60])
def test_what_a_vehicle_cannot_work_with_is_refused(content: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError) as caught:
        AgentSettings.model_validate(content)
    (error,) = caught.value.errors()
    assert told in error["msg"]


@pytest.mark.parametrize(
    ("regions", "trim", "told"),
    [
        (("a", "b"), 0.2, "merge_trim: expected 0 with 2 regions, where none can be left out at both ends"),
        (("a", "b", "c"), 0.2, "merge_trim: 0.2 of 3 regions leaves out none, expected at least 0.33"),
    ],
)
def test_a_trim_that_leaves_out_nobody_is_refused(regions: tuple[str, ...], trim: float, told: str) -> None:
    content = {"fleet": "f", "regions": regions, "data_dir": ".", "validation_dir": ".", "merge_trim": trim}
    with pytest.raises(ValidationError) as caught:
        ServerConfig.model_validate(content)
    assert told in caught.value.errors()[0]["msg"]


def test_what_is_the_default_works() -> None:
    assert ServerSettings() == ServerSettings.model_validate(ServerSettings().model_dump())
    assert AgentSettings().max_update_bytes is None
