"""Whether a vehicle may train now: rules over vehicle signals. Pure.

Signals are named as in the COVESA Vehicle Signal Specification (``Vehicle.Speed``,
``Vehicle.Powertrain.TractionBattery.Charging.IsCharging``); ``Vehicle.Connectivity.*`` are fedfleet's own.
A rule whose signal is missing or of another type refuses: what is not known does not permit.
"""

import csv
import math
import operator
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr

from fedfleet.protocol.errors import UsageError

__all__ = ["Conditions", "Fixed", "Rule", "Signal", "Trace", "Verdict", "fresh", "judge", "parse_trace"]

Signal = StrictBool | StrictInt | StrictFloat | StrictStr
SIGNAL_MISSING = "signal-missing"
SIGNAL_MALFORMED = "signal-malformed"

_COMPARE: Mapping[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class Rule(BaseModel):
    """One condition of training: ``signal op value`` must hold, else training is refused for ``reason``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    signal: Annotated[str, Field(pattern=r"^Vehicle(\.[A-Za-z0-9]+)+$", max_length=200)] = Field(
        description="VSS name of the signal, for example Vehicle.Speed"
    )
    op: Literal["==", "!=", "<", "<=", ">", ">="] = Field(
        description="how the signal is compared with the value"
    )
    value: Signal = Field(description="what it is compared with: a number, a truth value or a word")
    reason: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,40}$")] = Field(
        description="code of the refusal when the rule does not hold, for example not-parked"
    )


@dataclass(frozen=True)
class Verdict:
    """Whether training may start, and the reason codes of the rules that refuse, sorted, each once."""

    reasons: tuple[str, ...] = ()

    @property
    def eligible(self) -> bool:
        """Tell whether no rule refuses."""
        return not self.reasons


def judge(rules: Sequence[Rule], signals: Mapping[str, Signal]) -> Verdict:
    """Return what the rules say to these signals."""
    return Verdict(tuple(sorted({reason for rule in rules if (reason := _refusal(rule, signals))})))


def _refusal(rule: Rule, signals: Mapping[str, Signal]) -> str:
    if rule.signal not in signals:
        return SIGNAL_MISSING
    found, wanted = signals[rule.signal], rule.value
    if _kind(found) != _kind(wanted) or (isinstance(found, float) and not math.isfinite(found)):
        return SIGNAL_MALFORMED
    return "" if _COMPARE[rule.op](found, wanted) else rule.reason


def _kind(value: Signal) -> str:
    if isinstance(value, bool):
        return "truth"
    return "word" if isinstance(value, str) else "number"


class Conditions(Protocol):
    """Where signals come from: fixed ones, a trace, or a program (``conditions.py``), such as a databroker's client."""

    def at(self, scenario_s: float) -> Mapping[str, Signal]:
        """Return the signals as they are ``scenario_s`` seconds after the start."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""


@dataclass(frozen=True)
class Fixed:
    """Signals that never change."""

    signals: Mapping[str, Signal]

    def at(self, scenario_s: float) -> Mapping[str, Signal]:
        """Return the signals, whatever the time."""
        del scenario_s
        return self.signals

    def close(self) -> None:
        """Hold nothing."""


@dataclass(frozen=True)
class Trace:
    """Signals recorded over time; each holds its value until the next one. Before the first value it is missing.

    It is missing too from an empty value on, and when its last value is ``stale_s`` seconds old (None: never). A
    snapshot has time and value of every signal.
    """

    times_s: tuple[float, ...]
    snapshots: tuple[Mapping[str, tuple[float, Signal]], ...]
    stale_s: float | None = None

    def at(self, scenario_s: float) -> Mapping[str, Signal]:
        """Return the last value of every signal at or before this time."""
        count = bisect_right(self.times_s, scenario_s)
        return fresh(self.snapshots[count - 1], scenario_s, self.stale_s) if count else {}

    def close(self) -> None:
        """Hold nothing."""


def fresh(
    known: Mapping[str, tuple[float, Signal]], now_s: float, stale_s: float | None
) -> dict[str, Signal]:
    """Return the values whose time is not longer than ``stale_s`` ago."""
    return {
        name: value for name, (at_s, value) in known.items() if stale_s is None or now_s - at_s <= stale_s
    }


def parse_trace(text: str, *, name: str, stale_s: float | None = None) -> Trace:
    """Read a trace: CSV with the columns ``time_s, signal, value``, times never falling.

    ``true`` and ``false`` are truth values, what reads as a number is one, nothing is a gap, the rest are words.
    UsageError naming ``name`` and the line for anything else.
    """
    rows = csv.DictReader(text.splitlines(), strict=True)
    if rows.fieldnames is None or {"time_s", "signal", "value"} - set(rows.fieldnames):
        got = ",".join(rows.fieldnames or ()) or "nothing"
        raise UsageError(f"{name}: expected the columns time_s,signal,value, got {got[:80]}")
    times: list[float] = []
    snapshots: list[Mapping[str, tuple[float, Signal]]] = []
    try:
        for row in rows:
            _add(times, snapshots, row)
    except (ValueError, csv.Error) as error:
        raise UsageError(f"{name}, line {rows.line_num}: {error}") from error
    return Trace(tuple(times), tuple(snapshots), stale_s)


def _add(
    times: list[float], snapshots: list[Mapping[str, tuple[float, Signal]]], row: Mapping[str, str | None]
) -> None:
    time_text, signal, value = row["time_s"], row["signal"], row["value"]
    if time_text is None or not signal or value is None:
        raise ValueError("expected three values")
    time_s = float(time_text)
    if not math.isfinite(time_s) or (times and time_s < times[-1]):
        raise ValueError(f"time {time_text}: expected a number, not below the one before")
    known = snapshots[-1] if snapshots else {}
    merged = {each: found for each, found in known.items() if each != signal.strip()}
    if value.strip():
        merged[signal.strip()] = (time_s, _read(value.strip()))
    if times and times[-1] == time_s:
        snapshots[-1] = merged
    else:
        times.append(time_s)
        snapshots.append(merged)


def _read(text: str) -> Signal:
    if text in {"true", "false"}:
        return text == "true"
    try:
        number = float(text)
    except ValueError:
        return text
    if not math.isfinite(number):
        raise ValueError(f"value {text}: expected a finite number")
    return number
