"""What optimizer, rule, coordinates, training and rounds do not go together: one clear error at start."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from server_world import configuration

from fedfleet.fleet_server.config import ServerSettings

ROUNDS = {"quorum": 7}
OPTIMIZERS = ["fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "fedprox", "scaffold", "fednova"]
ALIGNED = ["median", "trimmed-mean", "bulyan", "nnm-trimmed-mean"]
ANY = ["mean", "norm-clip", "krum", "multi-krum", "geometric-median"]


def told(name: str) -> dict[str, Any]:
    """The least that makes an optimizer valid."""
    more: dict[str, dict[str, Any]] = {
        "fedavgm": {"strategy": {"name": name, "momentum": 0.9}},
        "fedprox": {"training": {"proximal_mu": 0.1}},
        "scaffold": {"training": {"momentum": 0.0}},
    }
    return {"strategy": {"name": name}} | more.get(name, {})


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_can_be_configured(name: str) -> None:
    settings = ServerSettings.model_validate(told(name))
    assert settings.strategy.strategy().name == name
    assert settings.training_of(1).get("correction") == ("scaffold" if name == "scaffold" else None)


@pytest.mark.parametrize("index", ["dense", "common"])
@pytest.mark.parametrize("rule", [*ALIGNED, *ANY])
def test_every_rule_works_with_coordinates_that_all_share(rule: str, index: str) -> None:
    content = {"strategy": {"rule": rule}, "codec": {"index": index}, "rounds": ROUNDS}
    assert ServerSettings.model_validate(content).strategy.fold_rule().name == rule


@pytest.mark.parametrize("rule", ALIGNED)
def test_a_rule_by_coordinate_refuses_each_vehicles_own_coordinates(rule: str) -> None:
    text = f"rule {rule} compares vehicles coordinate by coordinate and needs codec.index common or dense, got rice"
    with pytest.raises(ValidationError, match=text):
        ServerSettings.model_validate({"strategy": {"rule": rule}, "rounds": ROUNDS})


@pytest.mark.parametrize("rule", ANY)
def test_a_rule_by_distance_takes_each_vehicles_own_coordinates(rule: str) -> None:
    ServerSettings.model_validate({"strategy": {"rule": rule}, "rounds": ROUNDS})


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            {"strategy": {"rule": "bulyan"}, "codec": {"index": "dense"}},
            "rule bulyan needs rounds.quorum of at least 7, got 2",
        ),
        ({"strategy": {"rule": "krum"}}, "rule krum needs rounds.quorum of at least 5, got 2"),
        (
            {"strategy": {"rule": "krum"}, "rounds": {"quorum": 600}},
            "rule krum takes at most 512 updates, got quorum 600",
        ),
        ({"strategy": {"name": "fedprox"}}, "strategy fedprox needs training.proximal_mu above 0, got 0"),
        ({"strategy": {"name": "scaffold"}}, "strategy scaffold needs training.momentum 0, got 0.9"),
        (
            {"strategy": {"name": "scaffold"}, "training": {"optimizer": "adam"}},
            "strategy scaffold needs training.optimizer sgd, got adam",
        ),
        (
            {"strategy": {"name": "fednova"}, "training": {"optimizer": "adam"}},
            "strategy fednova needs training.optimizer sgd, got adam",
        ),
        (
            {"strategy": {"name": "fednova", "rule": "krum"}, "rounds": ROUNDS},
            "strategy fednova needs rule mean, got krum",
        ),
        (
            {
                "strategy": {"name": "scaffold"},
                "training": {"momentum": 0.0},
                "rounds": {"late": "staleness-weighted"},
            },
            "strategy scaffold needs rounds.mode sync",
        ),
        ({"training": {"correction": "scaffold"}}, "training.correction is set by strategy scaffold"),
        ({"merge_trim": 0.5}, "less than 0.5"),
    ],
)
def test_what_does_not_go_together_is_refused_at_start(content: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ServerSettings.model_validate(content)
    assert text in str(caught.value)
    assert caught.value.error_count() == 1


def test_the_whole_servers_configuration_is_checked_the_same_way(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"rule krum needs rounds\.quorum of at least 5, got 1"):
        configuration(tmp_path, strategy={"rule": "krum"})


def test_the_configuration_that_the_page_recommends_is_valid() -> None:
    page = (Path(__file__).parents[1] / "docs" / "strategies.md").read_text()
    (told,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    assert ServerSettings.model_validate(tomllib.loads(told)["server"]).strategy.rule == "nnm-trimmed-mean"
