"""How unlike the vehicles of a split are: in their labels, their targets and their inputs. numpy only, seeded.

Labels: Jensen-Shannon divergence (Lin 1991, base 2: 0 alike, 1 nothing in common) of a vehicle's slices from those of
all vehicles together. Targets and inputs: sliced Wasserstein distance (Bonneel et al. 2015) in standard deviations.
Beside each the same of a shuffled split with vehicles of the same sizes: what chance alone makes of alike vehicles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedfleet.models.task import Samples

__all__ = ["Skew", "jensen_shannon", "skews"]

Doubles = NDArray[np.float64]
DIRECTIONS: Final = 32
QUANTILES: Final = 101
MOST: Final = 4000
"""Samples of a vehicle that are looked at, drawn from the seed."""
CHUNK: Final = 256


@dataclass(frozen=True)
class Skew:
    """One vehicle: divergences of its labels (by dimension), targets and inputs, and those of a shuffled split."""

    samples: int
    labels: Mapping[str, float]
    target: float
    feature: float
    shuffled_labels: Mapping[str, float]
    shuffled_target: float
    shuffled_feature: float


def skews(
    parts: Mapping[str, Samples], labels: Mapping[str, Mapping[str, NDArray[np.str_]]], *, seed: int
) -> dict[str, Skew]:
    """Return how far each vehicle's samples are from those of all vehicles; `labels` as `models.slices.cut` has them.

    A vehicle without samples is left out.
    """
    chance = np.random.default_rng(seed)
    rows = {name: _some(len(one), chance) for name, one in parts.items() if len(one)}
    if not rows:
        return {}
    sizes = [len(each) for each in rows.values()]
    mixed = chance.permutation(sum(sizes))
    features = [_projected([parts[name].inputs[some] for name, some in rows.items()], chance)]
    features.append(_projected([parts[name].targets[some] for name, some in rows.items()], chance))
    names = list(dict.fromkeys(dimension for name in rows for dimension in labels[name]))
    texts = {
        each: np.concatenate([labels[name][each][some] for name, some in rows.items()]) for each in names
    }
    plain = (
        [_of_all(values, sizes) for values in features],
        {each: _labels(values, sizes) for each, values in texts.items()},
    )
    shuffled = (
        [_of_all(values[mixed], sizes) for values in features],
        {each: _labels(values[mixed], sizes) for each, values in texts.items()},
    )
    found = {}
    for place, name in enumerate(rows):
        values = [
            (
                {each: every[place] for each, every in by_label.items()},
                distances[1][place],
                distances[0][place],
            )
            for distances, by_label in (plain, shuffled)
        ]
        found[name] = Skew(len(parts[name]), *values[0], *values[1])
    return found


def jensen_shannon(one: Doubles, other: Doubles) -> float:
    """The divergence of two distributions over the same names, given as counts, in bits: 0 to 1."""
    p, q = one / one.sum(), other / other.sum()
    middle = (p + q) / 2
    parts = [np.sum(each[each > 0] * np.log2(each[each > 0] / middle[each > 0])) for each in (p, q)]
    return float(max(0.0, sum(parts) / 2))


def _some(count: int, chance: np.random.Generator) -> NDArray[np.int64]:
    """Choose rows, sorted, MOST at most."""
    if count <= MOST:
        return np.arange(count)
    return np.sort(chance.choice(count, MOST, replace=False))


def _projected(parts: list[NDArray[Any]], chance: np.random.Generator) -> Doubles:
    """Standardise every number and project on random directions, float64[N, DIRECTIONS], itself standardised."""
    wide = int(np.prod(parts[0].shape[1:]))
    chunks = [part[i : i + CHUNK].reshape(-1, wide) for part in parts for i in range(0, len(part), CHUNK)]
    count = sum(len(each) for each in chunks)
    total = np.sum([each.sum(axis=0, dtype=np.float64) for each in chunks], axis=0)
    squared = np.sum([(each.astype(np.float64) ** 2).sum(axis=0) for each in chunks], axis=0)
    spread = np.sqrt(np.maximum(squared / count - (total / count) ** 2, 0))
    safe = np.where(spread > 1e-9, spread, np.inf)  # what is constant tells nothing
    directions = chance.normal(size=(wide, DIRECTIONS)) / safe[:, None]
    values = np.concatenate([each.astype(np.float64) @ directions for each in chunks])
    deviation = values.std(axis=0)
    return np.asarray((values - values.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0))


def _of_all(values: Doubles, sizes: list[int]) -> list[float]:
    """Return the mean distance of the quantiles of each part from those of all, over the directions."""
    levels = (np.arange(QUANTILES) + 0.5) / QUANTILES
    whole = np.quantile(values, levels, axis=0)
    parts = np.split(values, np.cumsum(sizes)[:-1])
    return [float(np.abs(np.quantile(part, levels, axis=0) - whole).mean()) for part in parts]


def _labels(values: NDArray[np.str_], sizes: list[int]) -> list[float]:
    names, which = np.unique(values, return_inverse=True)
    whole = np.bincount(which, minlength=len(names)).astype(np.float64)
    parts = np.split(which, np.cumsum(sizes)[:-1])
    return [
        jensen_shannon(np.bincount(part, minlength=len(names)).astype(np.float64), whole) for part in parts
    ]
