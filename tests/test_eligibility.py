import pytest

from fedfleet.protocol.errors import UsageError
from fedfleet.vehicle_agent.eligibility import Fixed, Rule, Signal, judge, parse_trace

CHARGING = "Vehicle.Powertrain.TractionBattery.Charging.IsCharging"
PARKED = Rule(signal="Vehicle.Speed", op="==", value=0, reason="not-parked")
PLUGGED = Rule(signal=CHARGING, op="==", value=True, reason="not-charging")
CHARGED = Rule(
    signal="Vehicle.Powertrain.TractionBattery.StateOfCharge.Current", op=">=", value=50, reason="battery-low"
)


@pytest.mark.parametrize(
    ("signals", "reasons"),
    [
        ({"Vehicle.Speed": 0.0, CHARGING: True, CHARGED.signal: 50.0}, ()),
        (
            {"Vehicle.Speed": 3.5, CHARGING: False, CHARGED.signal: 49.9},
            ("battery-low", "not-charging", "not-parked"),
        ),
        ({"Vehicle.Speed": 0.0, CHARGING: True}, ("signal-missing",)),
        ({"Vehicle.Speed": "slow", CHARGING: 1.0, CHARGED.signal: 80}, ("signal-malformed",)),
        ({"Vehicle.Speed": float("nan"), CHARGING: True, CHARGED.signal: 80}, ("signal-malformed",)),
    ],
)
def test_every_rule_that_does_not_hold_gives_its_reason(
    signals: dict[str, Signal], reasons: tuple[str, ...]
) -> None:
    verdict = judge((PARKED, PLUGGED, CHARGED), signals)
    assert verdict.reasons == reasons
    assert verdict.eligible == (not reasons)


def test_without_rules_all_is_permitted() -> None:
    assert judge((), {}).eligible


def test_a_trace_holds_each_signal_until_its_next_value() -> None:
    trace = parse_trace(
        "time_s,signal,value\n1,Vehicle.Speed,0\n1,Vehicle.IsOn,true\n3.5,Vehicle.Speed,8.5\n", name="t"
    )
    assert trace.at(0.9) == {}
    assert trace.at(1.0) == {"Vehicle.Speed": 0.0, "Vehicle.IsOn": True}
    assert trace.at(100.0) == {"Vehicle.Speed": 8.5, "Vehicle.IsOn": True}


def test_fixed_conditions_never_change() -> None:
    assert Fixed({"Vehicle.Speed": 1}).at(0) == Fixed({"Vehicle.Speed": 1}).at(1e9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "day.csv: expected the columns time_s,signal,value, got nothing"),
        ("time,signal\n", "day.csv: expected the columns time_s,signal,value, got time,signal"),
        (
            "time_s,signal,value\n2,Vehicle.Speed,0\n1,Vehicle.Speed,0\n",
            "day.csv, line 3: time 1: expected a number, not",
        ),
        ("time_s,signal,value\nnan,Vehicle.Speed,0\n", "day.csv, line 2: time nan: expected a number"),
        ("time_s,signal,value\n1,Vehicle.Speed\n", "day.csv, line 2: expected three values"),
        (
            "time_s,signal,value\n1,Vehicle.Speed,inf\n",
            "day.csv, line 2: value inf: expected a finite number",
        ),
    ],
)
def test_a_malformed_trace_is_one_line_that_names_the_place(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_trace(text, name="day.csv")
    assert str(caught.value).startswith(message)
