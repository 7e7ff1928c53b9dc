"""From outcomes of the same episodes under several predictors to figures: shares, means, paired differences, intervals.

May live here: pure statistics, seeded. An episode is the unit: its frames are anything but independent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from fedfleet.scenarios.closed_loop_measure import Outcome
from fedfleet.scenarios.closed_loop_road import Doubles

__all__ = ["MEASURES", "Measure", "Pair", "difference", "exact_p", "percentiles", "wilson"]

DRAWS: Final = 10_000
CHUNK: Final = 2_000_000
Z_95: Final = 1.959963984540054
PERCENTILES: Final = (1, 5, 25, 50)

Pair: TypeAlias = tuple[Outcome, Outcome]


@dataclass(frozen=True)
class Measure:
    """What is compared: a value of an outcome, None where it has none, and which direction is good.

    A `share` is of episodes in which something was so; the others are means over episodes.
    """

    name: str
    title: str
    unit: str
    better: Literal["lower", "higher"]
    of: Callable[[Outcome], float | bool | None]
    share: bool = False
    whole: bool = False
    """Only where neither drive of a pair ended in a collision: a drive cut short has no time to lose."""


MEASURES: Final = (
    Measure("collisions", "collision", "share", "lower", lambda one: one.collision, share=True),
    Measure(
        "ttc_below_1_5_s", "TTC below 1.5 s", "share", "lower", lambda one: one.min_ttc_s < 1.5, share=True
    ),
    Measure("ttc_below_3_s", "TTC below 3 s", "share", "lower", lambda one: one.min_ttc_s < 3.0, share=True),
    Measure("min_ttc_s", "smallest TTC", "s", "higher", lambda one: one.min_ttc_s),
    Measure("min_ttc_rear_s", "smallest TTC behind", "s", "higher", lambda one: one.min_ttc_rear_s),
    Measure("harsh_braking", "braking harder than 4 m/s²", "times", "lower", lambda one: float(one.harsh)),
    Measure(
        "follower_harsh", "the same, whoever follows", "times", "lower", lambda one: float(one.follower_harsh)
    ),
    Measure("mean_speed_ms", "mean speed", "m/s", "higher", lambda one: one.mean_speed_ms, whole=True),
    Measure("time_lost_s", "time lost", "s", "lower", lambda one: one.time_lost_s, whole=True),
    Measure("merged", "merged", "share", "higher", lambda one: one.merged_s is not None, share=True),
    Measure("merged_s", "time to merge", "s", "lower", lambda one: one.merged_s),
)


def difference(pairs: Sequence[Pair], measure: Measure, *, seed: int) -> dict[str, Any]:
    """Compare (one, other) by a measure: both means, one − other, and what 95 % of draws of episodes give.

    Shares come with Wilson's interval of each side, how often only one side had it, and McNemar's exact p. None stands
    where no pair has a value.
    """
    values = [
        (float(ours), float(theirs))
        for one, other in pairs
        if not (measure.whole and (one.collision or other.collision))
        and (ours := measure.of(one)) is not None
        and (theirs := measure.of(other)) is not None
    ]
    table = np.array(values, dtype=np.float64).reshape(-1, 2)
    if not len(table):
        return {"episodes": 0, "model": None, "against": None, "difference": None, "low": None, "high": None}
    gap = table[:, 0] - table[:, 1]
    low, high = _interval(gap, seed)
    found: dict[str, Any] = {
        "episodes": len(table),
        "model": _rounded(table[:, 0].mean()),
        "against": _rounded(table[:, 1].mean()),
        "difference": _rounded(gap.mean()),
        "low": low,
        "high": high,
    }
    if measure.share:
        only = int((gap > 0).sum()), int((gap < 0).sum())
        counts = [int(side.sum()) for side in table.T]
        found["counts"] = counts
        found["wilson"] = [[_rounded(edge) for edge in wilson(count, len(table))] for count in counts]
        found["only_model"], found["only_against"] = only
        found["p"] = _rounded(exact_p(*only))
    return found


def percentiles(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Return low percentiles of the smallest time to collision of each episode, in seconds."""
    values = [one.min_ttc_s for one in outcomes]
    return {f"p{each}": _rounded(np.percentile(values, each)) for each in PERCENTILES} if values else {}


def wilson(count: int, of: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson 1927)."""
    share, square = count / of, Z_95**2
    middle = (share + square / (2 * of)) / (1 + square / of)
    half = Z_95 / (1 + square / of) * math.sqrt(share * (1 - share) / of + square / (4 * of * of))
    return max(0.0, middle - half), min(1.0, middle + half)


def exact_p(only_one: int, only_other: int) -> float:
    """Return McNemar's exact two-sided p: so uneven, or more, a split of the episodes in which the two differ."""
    both = only_one + only_other
    tail = sum(math.comb(both, k) for k in range(min(only_one, only_other) + 1))
    return float(min(1.0, 2 * tail / 2**both))


def _interval(gap: Doubles, seed: int) -> tuple[float | None, float | None]:
    """Percentile bootstrap over episodes (Efron & Tibshirani 1993, chapter 13); none for a single one."""
    if len(gap) < 2:
        return None, None
    chance = np.random.default_rng([seed, len(gap)])
    each = max(1, CHUNK // len(gap))
    means = [
        gap[chance.integers(0, len(gap), (min(each, DRAWS - start), len(gap)))].mean(axis=1)
        for start in range(0, DRAWS, each)
    ]
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return _rounded(low), _rounded(high)


def _rounded(value: float | np.floating[Any]) -> float:
    return round(float(value), 6)
