"""How sure a figure of a slice is, and whether two models differ on it: bootstrap over whole drives. Pure, seeded.

Samples of one drive resemble each other, so drives are drawn, with replacement, and all slices and both models see the
same draws (Efron & Tibshirani 1993, chapters 8 and 16). P values of several slices are corrected as Holm (1979) does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedfleet.models.slices import ALL, REGION
from fedfleet.models.task import Metric, Sums, added

__all__ = ["SAME", "Difference", "Estimate", "Tally", "compare", "estimates", "holm", "worst"]

Doubles: TypeAlias = NDArray[np.float64]
Tally: TypeAlias = Mapping[str, Mapping[str, Sums]]
"""Drive -> slice -> sums over its judged samples."""

DRAWS: Final = 10_000
OF_DRAWS: Final = 1_000
"""For metrics that are made of several means, one draw after the other."""
CHUNK: Final = 4_000_000
"""Numbers that are drawn at once."""
LEVEL: Final = 0.95
ALPHA: Final = 0.05
SAME: Final = 1e-6
"""Two values that differ by less than this share are the same."""
FEW_SAMPLES: Final = 10
"""A slice with fewer judged samples is not named the worst while another has more."""

Verdict: TypeAlias = Literal["better", "worse", "no-difference-shown"]


@dataclass(frozen=True)
class Estimate:
    """A metric on one slice: its value, and the interval that 95 % of draws are in; None where it has none.

    An interval needs two drives; with few drives it is too narrow, so their number stands beside it.
    """

    slice: str
    metric: str
    samples: int
    drives: int
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference:
    """The other model's primary metric against this one's on one slice, over the same samples.

    `difference` is the other's minus this one's, with its interval; `gain` is the same with + for better, whichever way
    the metric goes. `p` is two-sided, `p_corrected` of all slices together (Holm); better and worse are said of the
    other model, at 5 %. It is worse in `drives_worse` of the drives.
    """

    slice: str
    samples: int
    drives: int
    value: float
    other: float
    difference: float
    low: float | None
    high: float | None
    p: float
    p_corrected: float
    verdict: Verdict
    better: Literal["lower", "higher"] = "lower"
    drives_worse: int = 0

    @property
    def gain(self) -> float:
        """How much better the other model is; below 0 it is worse."""
        return -self.difference if self.better == "lower" else self.difference

    @property
    def gain_interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the gain; None where there is none."""
        if self.low is None or self.high is None:
            return None
        return (-self.high, -self.low) if self.better == "lower" else (self.low, self.high)

    @property
    def is_worse(self) -> bool:
        """Whether the other model's value is worse, for sure or not; rounding is not counted."""
        return self.gain < -SAME * abs(self.value)


def estimates(
    tally: Tally, metrics: Sequence[Metric], *, seed: int, draws: int = DRAWS
) -> dict[str, tuple[Estimate, ...]]:
    """Return, by slice, every metric with its interval, `all` first, the others by name; seeded."""
    names = _names(tally)
    found: dict[str, list[Estimate]] = {name: [] for name in names}
    for metric in metrics:
        several = OF_DRAWS if metric.of is not None else draws
        columns = {name: _column(tally, name) for name in names}
        spread = _spread(columns, metric, draws=min(draws, several), seed=seed)
        for name, column in columns.items():
            value = metric.value(added(column.values()))
            low, high = _interval(spread[name], column)
            count = max((count for _, count in added(column.values()).values()), default=0)
            found[name].append(Estimate(name, metric.name, count, len(column), value, low, high))
    return {name: tuple(each) for name, each in found.items()}


def compare(
    tally: Tally, other: Tally, metric: Metric, *, seed: int, draws: int = DRAWS
) -> dict[str, Difference]:
    """Compare two models on every slice by a metric that is a plain mean; both have answered the same samples.

    The p value is twice the share of draws on the other side of zero, and never below 2^(1 − drives), the least that
    drives which all point one way can show. Raises ValueError for tallies of other drives, slices or sample counts.
    """
    names = _names(tally)
    _check_same(tally, other)
    columns = {name: _differences(tally, other, name, metric) for name in names}
    spread = _spread(columns, metric, draws=draws, seed=seed)
    raw = {name: _p(spread[name], len(columns[name])) for name in names}
    corrected = _corrected(raw, columns, {name: _column(tally, name) for name in names})
    found = {}
    for name, column in columns.items():
        (total, count), (others, _) = (
            added(_column(one, name).values()).get(metric.name, (0.0, 0)) for one in (tally, other)
        )
        value, beside = total / count, others / count
        low, high = _interval(spread[name], column)
        verdict = _verdict(beside - value, corrected[name], metric)
        shown = (value, beside, beside - value, low, high)
        worse = sum(metric.gain(total, 0.0) < 0 for one in column.values() for total, _ in one.values())
        found[name] = Difference(
            name, count, len(column), *shown, raw[name], corrected[name], verdict, metric.better, worse
        )
    return found


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Correct p values for their number (Holm 1979): step down, never falling, at most 1."""
    corrected, highest = {}, 0.0
    for place, name in enumerate(sorted(p, key=lambda each: (p[each], each))):
        highest = max(highest, min(1.0, p[name] * (len(p) - place)))
        corrected[name] = highest
    return {name: corrected[name] for name in p}


def _corrected(raw: Mapping[str, float], *columns: Mapping[str, Mapping[str, Sums]]) -> dict[str, float]:
    """Correct p values for their number; two names for the same samples (`all` and the only type) are one test."""
    first: dict[str, str] = {}
    for name in raw:
        same = (other for other in first.values() if all(one[other] == one[name] for one in columns))
        first[name] = next(same, name)
    corrected = holm({name: raw[name] for name in raw if first[name] == name})
    return {name: corrected[first[name]] for name in raw}


def worst(found: Mapping[str, Sequence[Estimate]], metric: Metric) -> str | None:
    """Name the slice with the worst value of a metric, of those with 10 samples if there are such; None without one."""
    rows = [
        one
        for name, each in found.items()
        for one in each
        if name != ALL and one.metric == metric.name and one.value is not None
    ]
    rows = [one for one in rows if one.samples >= FEW_SAMPLES] or rows
    sign = 1.0 if metric.better == "lower" else -1.0
    # Of slices that are equally bad the one that says what it shows, rather than only where.
    order = sorted(
        rows, key=lambda one: (-sign * (one.value or 0.0), one.slice.startswith(f"{REGION}="), one.slice)
    )
    return order[0].slice if order else None


def _names(tally: Tally) -> list[str]:
    names = {name for slices in tally.values() for name in slices}
    return [*([ALL] if ALL in names else []), *sorted(names - {ALL})]


def _column(tally: Tally, name: str) -> dict[str, Sums]:
    """Return the drives that have samples of the slice."""
    return {drive: slices[name] for drive, slices in sorted(tally.items()) if name in slices}


def _differences(tally: Tally, other: Tally, name: str, metric: Metric) -> dict[str, Sums]:
    ours, theirs = _column(tally, name), _column(other, name)
    found: dict[str, Sums] = {}
    for drive, sums in ours.items():
        (total, count), (others, _) = sums[metric.name], theirs[drive][metric.name]
        found[drive] = {metric.name: (others - total, count)}
    return found


def _spread(
    columns: Mapping[str, Mapping[str, Sums]], metric: Metric, *, draws: int, seed: int
) -> dict[str, Doubles]:
    """Return the metric of every draw of drives, float64[draws], by slice; NaN where a draw has no sample of it."""
    drives = sorted({drive for column in columns.values() for drive in column})
    place = {drive: number for number, drive in enumerate(drives)}
    keys = sorted({key for column in columns.values() for sums in column.values() for key in sums})
    keys = [metric.name] if metric.of is None else keys
    table = np.zeros((len(drives), len(columns), len(keys), 2))
    for at, column in enumerate(columns.values()):
        for drive, sums in column.items():
            for number, key in enumerate(keys):
                table[place[drive], at, number] = sums.get(key, (0.0, 0))
    parts = [
        _values(np.einsum("bd,dskt->bskt", weights, table, optimize=True), metric, keys)
        for weights in _weights(len(drives), draws, seed)
    ]
    together = np.concatenate(parts) if parts else np.empty((0, len(columns)))
    return {name: together[:, at] for at, name in enumerate(columns)}


def _weights(drives: int, draws: int, seed: int) -> Iterator[Doubles]:
    """Give how often each drive is drawn, float64[some, drives], in parts of bounded size."""
    chance = np.random.default_rng([seed, drives])
    each = max(1, CHUNK // max(1, drives))
    for start in range(0, draws if drives else 0, each):
        some = min(each, draws - start)
        chosen = chance.integers(0, drives, (some, drives)) + np.arange(some)[:, None] * drives
        yield np.bincount(chosen.ravel(), minlength=some * drives).reshape(some, drives).astype(np.float64)


def _values(sums: Doubles, metric: Metric, keys: Sequence[str]) -> Doubles:
    """From sums float64[draws, slices, keys, (total, count)] the metric, float64[draws, slices]."""
    totals, counts = sums[..., 0], sums[..., 1]
    means = np.divide(totals, counts, out=np.full_like(totals, np.nan), where=counts > 0)
    if metric.of is None:
        return means[..., 0]
    found = np.full(means.shape[:2], np.nan)
    for draw, at in np.ndindex(*found.shape):
        if not np.isnan(means[draw, at]).any():
            found[draw, at] = metric.of(dict(zip(keys, means[draw, at].tolist(), strict=True)))
    return found


def _interval(spread: Doubles, column: Mapping[str, Sums]) -> tuple[float | None, float | None]:
    usable = spread[np.isfinite(spread)]
    if len(column) < 2 or len(usable) < 2:
        return None, None
    low, high = np.quantile(usable, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _p(spread: Doubles, drives: int) -> float:
    usable = spread[np.isfinite(spread)]
    sides = int((usable <= 0).sum()), int((usable >= 0).sum())
    drawn = 2 * (min(sides) + 1) / (len(usable) + 1)
    return float(min(1.0, max(drawn, 2.0 ** (1 - drives))))


def _verdict(difference: float, p: float, metric: Metric) -> Verdict:
    if p >= ALPHA or not math.isfinite(difference) or difference == 0:
        return "no-difference-shown"
    return "better" if (difference < 0) == (metric.better == "lower") else "worse"


def _check_same(tally: Tally, other: Tally) -> None:
    counts = [
        {
            (drive, name): {key: count for key, (_, count) in sums.items()}
            for drive, slices in one.items()
            for name, sums in slices.items()
        }
        for one in (tally, other)
    ]
    if counts[0] != counts[1]:
        raise ValueError(
            "two models that are compared: expected answers to the same samples of the same drives"
        )
