"""The server's configuration: defaults that work, and mistakes that are named."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from fedfleet.codec.settings import Settings
from fedfleet.fleet_server.config import CodecConfig, DownlinkConfig, ServerConfig, StrategyConfig
from fedfleet.protocol.messages import CodecPlan

MINIMAL: dict[str, Any] = {
    "fleet": "demo",
    "regions": ["north", "south"],
    "data_dir": "server",
    "validation_dir": "validation",
}
CODE = {"vehicle": "v1", "region": "north", "code": "correct horse battery"}


def every_model(model: type[BaseModel] = ServerConfig) -> list[type[BaseModel]]:
    nested = [field.annotation for field in model.model_fields.values()]
    return [
        model,
        *(m for n in nested if isinstance(n, type) and issubclass(n, BaseModel) for m in every_model(n)),
    ]


def test_four_keys_are_enough() -> None:
    config = ServerConfig.model_validate(MINIMAL)
    assert config.task == "motion_forecast"
    expected = CodecPlan(
        index="rice", value="sign", density=0.02, coordinates="own", catch_up=10, step_ahead=0.5
    )
    assert config.codec.plan() == expected
    assert config.strategy.strategy().name == "fedavg"
    assert config.rounds.contributors is None


def test_every_field_is_described() -> None:
    silent = [
        f"{model.__name__}.{name}"
        for model in every_model()
        for name, field in model.model_fields.items()
        if not field.description
    ]
    assert silent == []


def test_an_enrolment_code_is_not_shown() -> None:
    config = ServerConfig.model_validate(MINIMAL | {"enrolment": [CODE]})
    assert "correct horse battery" not in f"{config!r} {config} {config.model_dump_json()}"
    assert config.enrolment[0].code.get_secret_value() == "correct horse battery"


def test_a_mistake_does_not_show_the_codes() -> None:
    with pytest.raises(ValidationError) as caught:
        ServerConfig.model_validate(MINIMAL | {"enrolment": [CODE, CODE]})
    assert "correct" not in str(caught.value)


def test_codec_downlink_and_strategy_become_the_values_that_others_take() -> None:
    assert CodecConfig(index="dense", value="float32").plan().coordinates == "dense"
    assert DownlinkConfig(value="float32").settings() == Settings("dense", "float32", 0.1)
    assert DownlinkConfig(value="sign", density=0.02).settings() == Settings("rice", "sign", 0.02)
    assert StrategyConfig(name="fedavgm", momentum=0.9).strategy().name == "fedavgm"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"colour": "red"}, "colour"),
        ({"fleet": "No Spaces"}, "fleet"),
        ({"regions": []}, "regions"),
        ({"regions": ["north", "north"]}, "regions: north is named twice"),
        ({"rounds": {"lease_s": 400}}, "lease_s: expected at most deadline_s = 300, got 400"),
        ({"rounds": {"deadline_s": float("nan")}}, "rounds.deadline_s"),
        ({"rounds": {"quorum": 0}}, "rounds.quorum"),
        (
            {"rounds": {"contributors": {"west": ["v1", "v2"]}}},
            "rounds.contributors: unknown region west, expected one of north, south",
        ),
        ({"rounds": {"contributors": {"north": ["v1"], "south": ["v1"]}}}, "contributors: v1 is named twice"),
        ({"rounds": {"contributors": {"north": []}}}, "contributors: north has no vehicle"),
        ({"codec": {"value": "float32"}}, 'codec value "float32" needs index "dense"'),
        ({"strategy": {"momentum": 0.9}}, "strategy fedavg has no momentum, got 0.9"),
        ({"training": {"epochs": 0}}, "training.epochs: Input should be greater than or equal to 1, got 0"),
        ({"training": {"epoch": 3}}, "training.epoch: Extra inputs are not permitted, got 3"),
        ({"enrolment": [CODE | {"code": "short"}]}, "enrolment.0.code"),
        ({"enrolment": [CODE, CODE]}, "enrolment: v1 has two codes"),
        ({"enrolment": [CODE | {"region": "west"}]}, "enrolment: unknown region west"),
        (
            {"enrolment": [CODE | {"vehicle": "fleet-server"}]},
            "enrolment: fleet-server is the server's own name",
        ),
        ({"merge_cap": 0}, "merge_cap"),
        ({"release_policy": "never"}, "release_policy"),
    ],
)
def test_a_mistake_is_named(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ServerConfig.model_validate(MINIMAL | change)
    assert text in str(caught.value)


def test_the_configuration_is_frozen() -> None:
    config = ServerConfig.model_validate(MINIMAL)
    with pytest.raises(ValidationError, match="frozen"):
        config.rounds.quorum = 5  # type: ignore[misc]
