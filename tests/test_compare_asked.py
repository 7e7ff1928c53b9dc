"""What a comparison is asked for and does not do is told, key by key; what it does is not."""

import pytest

from fedfleet.cli.compare import chosen
from fedfleet.cli.compare_asked import check_asked, unheeded
from fedfleet.cli.config import Settings
from fedfleet.protocol.errors import UsageError

INSIDE = "without --broker everything runs in this process"


def told(content: dict[str, object], *, broker: bool = False, test_folder: bool = False) -> tuple[str, ...]:
    return unheeded(Settings.model_validate(content), broker=broker, test_folder=test_folder)


def test_nothing_is_noted_where_nothing_was_asked() -> None:
    assert told({}) == ()
    assert told({"task": "camera_steering", "data": {"seed": 3, "validation": 0.2}}) == ()
    assert told({"server": {"codec": {"density": 0.1}, "rounds": {"share_wanted": 2}}}) == ()
    assert told({"server": {"training": {"batch_size": 8}}, "agent": {"trainable": "head"}}) == ()


@pytest.mark.parametrize(
    ("content", "broker", "line"),
    [
        ({"work_dir": "x"}, False, "work_dir had no effect: --out says where"),
        (
            {"server": {"rounds": {"total": 5}}},
            True,
            "server.rounds.total had no effect: --rounds and --epochs",
        ),
        (
            {"server": {"rounds": {"mode": "buffered"}}},
            False,
            "server.rounds.mode had no effect: every round",
        ),
        ({"server": {"training": {"epochs": 3}}}, False, "server.training.epochs had no effect: --epochs"),
        ({"broker": {"port": 1884}}, False, f"broker had no effect: {INSIDE}"),
        ({"broker": {"port": 1884}}, True, "broker.port had no effect: --broker starts a broker of its own"),
        ({"agent": {"guard": {}, "nice": 3}}, False, f"agent.nice had no effect: {INSIDE}"),
        ({"agent": {"inference": True}}, True, "agent.inference had no effect: vehicles only train"),
        ({"data": {"partition": "data", "vehicles_per_region": 4}}, False, "data.vehicles_per_region had no"),
        (
            {"data": {"split_file": "s", "validation": 0.3}},
            False,
            "data.validation had no effect: data.split_file",
        ),
    ],
)
def test_a_key_without_effect_is_named_with_the_reason(
    content: dict[str, object], broker: bool, line: str
) -> None:
    (found,) = told(content, broker=broker)
    assert found.startswith(line)


def test_keys_of_one_reason_share_a_line() -> None:
    (line,) = told({"server": {"rounds": {"quorum": 3, "interval_s": 9}}})
    assert line.startswith("server.rounds.quorum, server.rounds.interval_s had no effect: ")
    (line,) = told({"data": {"test": 0.3}}, test_folder=True)
    assert line == "data.test had no effect: all drives of --test are the test"


def test_heads_of_regions_are_refused() -> None:
    with pytest.raises(UsageError, match=r"server\.regional_heads: compare judges one model for all regions"):
        check_asked(Settings.model_validate({"server": {"regional_heads": ["leave*"]}}))


def test_a_share_changes_the_rounds_but_not_the_budget() -> None:
    settings = Settings.model_validate({"task": "motion_forecast"})
    arms = chosen(settings, rounds=None, epochs=6, participation=0.1)
    # given 40 vehicles, of which 4 train in a round
    assert arms.wanted([10, 10, 10, 10]) == 1
    assert arms.rounds([100] * 40, asked=4).count == 60
    assert arms.rounds([100] * 40, asked=4).passes == pytest.approx(0.1)
    few = chosen(settings, rounds=7, epochs=6, participation=0.1)
    assert few.rounds([100] * 40, asked=4).count == 7
    with pytest.raises(UsageError, match="61 rounds: expected at most 60"):
        chosen(settings, rounds=61, epochs=6, participation=0.1).rounds([100] * 40, asked=4)
    with pytest.raises(UsageError, match="--participation 0: expected a share above 0"):
        chosen(settings, rounds=None, epochs=6, participation=0.0)


def test_the_command_line_stands_above_the_configuration() -> None:
    settings = Settings.model_validate({"server": {"rounds": {"share_wanted": 2}}})
    assert chosen(settings, rounds=None, epochs=6).wanted([8, 8]) == 2
    assert chosen(settings, rounds=None, epochs=6, participation=0.5).wanted([8, 8]) == 4
    assert chosen(settings, rounds=None, epochs=6, participation=1.0).wanted([8, 8]) is None
