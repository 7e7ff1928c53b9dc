import math
from itertools import product

import pytest

from fedfleet.protocol.errors import UsageError
from fedfleet.vehicle_agent.eligibility import Fixed, Rule, Signal, judge, parse_trace

CHARGING = "Vehicle.Powertrain.TractionBattery.Charging.IsCharging"
PARKED = Rule(signal="Vehicle.Speed", op="==", value=0, reason="not-parked")
PLUGGED = Rule(signal=CHARGING, op="==", value=True, reason="not-charging")
CHARGED = Rule(
    signal="Vehicle.Powertrain.TractionBattery.StateOfCharge.Current", op=">=", value=50, reason="battery-low"
)

ONLINE = Rule(signal="Vehicle.Connectivity.Link", op="==", value="wifi", reason="no-wifi")


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


# Each rule's signal in every state that it can be in, and what the rule then says.
STATES: dict[Rule, tuple[tuple[Signal | None, str], ...]] = {
    PARKED: (
        (0, ""),
        (0.0, ""),
        (-0.0, ""),
        (1, "not-parked"),
        (0.1, "not-parked"),
        (-3.0, "not-parked"),
        (None, "signal-missing"),
        (False, "signal-malformed"),
        ("0", "signal-malformed"),
        (math.nan, "signal-malformed"),
        (math.inf, "signal-malformed"),
    ),
    PLUGGED: (
        (True, ""),
        (False, "not-charging"),
        (None, "signal-missing"),
        (1, "signal-malformed"),
        ("true", "signal-malformed"),
    ),
    CHARGED: (
        (50, ""),
        (50.0, ""),
        (100, ""),
        (49.999, "battery-low"),
        (0, "battery-low"),
        (None, "signal-missing"),
        (True, "signal-malformed"),
        (-math.inf, "signal-malformed"),
    ),
    ONLINE: (
        ("wifi", ""),
        ("cellular", "no-wifi"),
        ("", "no-wifi"),
        (None, "signal-missing"),
        (1, "signal-malformed"),
    ),
}


def test_the_verdict_is_right_in_every_state_of_all_signals_together() -> None:
    # given every combination of the states of four signals
    seen = 0
    for states in product(*STATES.values()):
        signals = {
            rule.signal: value for rule, (value, _) in zip(STATES, states, strict=True) if value is not None
        }
        # when the rules judge it
        verdict = judge(tuple(STATES), signals)
        # then exactly the rules that do not hold refuse, each reason once, in order
        expected = tuple(sorted({reason for _, reason in states if reason}))
        assert (verdict.reasons, verdict.eligible) == (expected, not expected), signals
        seen += 1
    assert seen == 11 * 5 * 8 * 5


@pytest.mark.parametrize(
    ("op", "holds"),
    [
        ("==", (False, True, False)),
        ("!=", (True, False, True)),
        ("<", (True, False, False)),
        ("<=", (True, True, False)),
        (">", (False, False, True)),
        (">=", (False, True, True)),
    ],
)
def test_every_comparison_below_at_and_above_its_value(op: str, holds: tuple[bool, ...]) -> None:
    rule = Rule.model_validate({"signal": "Vehicle.Speed", "op": op, "value": 5, "reason": "no"})
    found = tuple(judge((rule,), {"Vehicle.Speed": value}).eligible for value in (4.9, 5, 5.1))
    assert found == holds


def test_without_rules_all_is_permitted() -> None:
    assert judge((), {}).eligible


def test_a_trace_holds_each_signal_until_its_next_value() -> None:
    trace = parse_trace(
        "time_s,signal,value\n1,Vehicle.Speed,0\n1,Vehicle.IsOn,true\n3.5,Vehicle.Speed,8.5\n", name="t"
    )
    assert trace.at(0.9) == {}
    assert trace.at(1.0) == {"Vehicle.Speed": 0.0, "Vehicle.IsOn": True}
    assert trace.at(100.0) == {"Vehicle.Speed": 8.5, "Vehicle.IsOn": True}


def test_a_gap_in_a_trace_is_missing_until_the_next_value_and_permits_nothing() -> None:
    trace = parse_trace(
        "time_s,signal,value\n0,Vehicle.Speed,0\n0,Vehicle.IsOn,true\n5,Vehicle.Speed,\n9,Vehicle.Speed,0\n",
        name="t",
    )
    assert judge((PARKED,), trace.at(4.9)).eligible
    assert trace.at(5.0) == {"Vehicle.IsOn": True}
    assert judge((PARKED,), trace.at(8.9)).reasons == ("signal-missing",)
    assert judge((PARKED,), trace.at(9.0)).eligible


def test_a_value_that_is_too_old_is_missing() -> None:
    text = "time_s,signal,value\n0,Vehicle.Speed,0\n10,Vehicle.IsOn,true\n30,Vehicle.Speed,0\n"
    trace = parse_trace(text, name="t", stale_s=12.0)
    assert trace.at(12.0) == {"Vehicle.Speed": 0.0, "Vehicle.IsOn": True}
    assert trace.at(12.1) == {"Vehicle.IsOn": True}
    assert trace.at(22.1) == {}
    assert trace.at(30.0) == {"Vehicle.Speed": 0.0}


def test_time_that_goes_back_gives_what_was_true_then() -> None:
    trace = parse_trace("time_s,signal,value\n1,Vehicle.Speed,0\n5,Vehicle.Speed,8\n", name="t")
    assert [trace.at(t).get("Vehicle.Speed") for t in (6.0, 2.0, -1.0)] == [8.0, 0.0, None]


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
