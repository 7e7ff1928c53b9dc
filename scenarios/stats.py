"""What moves in recordings, and how: speeds, accelerations, lengths of tracks, encounters. Counted in bounded memory.

Speeds and accelerations are means over half a second, as one step is mostly noise of the positions. numpy only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedfleet.scenarios.records import Scenario

__all__ = ["BINS", "CLOSE_M", "CONFLICT_M", "CONFLICT_S", "Histogram", "Tally", "tally"]

Doubles = NDArray[np.float64]
STEADY_S: Final = 0.5
CLOSE_M: Final = 10.0
CONFLICT_M: Final = 2.0
CONFLICT_S: Final = 3.0
LOOK_HZ: Final = 1.0
"""How often a second encounters are looked for."""
MOVES_MPS: Final = 0.5

BINS: Final[Mapping[str, Doubles]] = {
    "speed_mps": np.arange(0.0, 60.01, 0.5),
    "acceleration_mps2": np.arange(-10.0, 10.01, 0.25),
    "track_m": np.concatenate([[0.0], np.geomspace(1.0, 10_000.0, 81)]),
    "track_s": np.concatenate([[0.0], np.geomspace(0.1, 1000.0, 81)]),
}
"""Edges of what is counted; what is beyond them counts to the last."""


@dataclass(eq=False)
class Histogram:
    """Counts between edges, and from them the mean and any quantile, good to the width of a bin."""

    edges: Doubles
    counts: NDArray[np.int64] = field(init=False)
    total: float = 0.0

    def __post_init__(self) -> None:
        """Begin with nothing."""
        self.counts = np.zeros(len(self.edges) - 1, dtype=np.int64)

    def add(self, values: Doubles) -> None:
        """Count values, float64 of any shape; NaN is not counted."""
        found = values[np.isfinite(values)]
        self.total += float(found.sum())
        self.counts += np.histogram(np.clip(found, self.edges[0], self.edges[-1]), self.edges)[0]

    @property
    def count(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float | None:
        """The mean of the values themselves; None without one."""
        return self.total / self.count if self.count else None

    def quantile(self, share: float) -> float | None:
        """The value below which this share is, on a line through its bin; None without a value."""
        if not self.count:
            return None
        below = np.concatenate([[0], self.counts.cumsum()])
        return float(np.interp(share * self.count, below, self.edges))


@dataclass(eq=False)
class Tally:
    """One region: how many scenarios, tracks by type, seconds, histograms by name of BINS, and encounters.

    A pair of tracks counts as close once per scenario when it is ever within 10 m, and as a conflict when both going on
    as they do would bring them within 2 m in the next 3 s. Looked for once a second, among tracks that move.
    """

    scenarios: int = 0
    drives: set[str] = field(default_factory=set)
    seconds: float = 0.0
    types: Counter[str] = field(default_factory=Counter)
    histograms: dict[str, Histogram] = field(
        default_factory=lambda: {name: Histogram(edges) for name, edges in BINS.items()}
    )
    standing: int = 0
    """Tracks that never moved a metre."""
    close: int = 0
    conflicts: int = 0

    @property
    def tracks(self) -> int:
        """How many tracks there are."""
        return self.types.total()

    def add(self, scenario: Scenario) -> None:
        """Count one scenario."""
        self.scenarios += 1
        self.drives.add(scenario.drive)
        self.seconds += scenario.seconds
        self.types.update(scenario.types)
        speed = _velocities(scenario)
        metres = np.hypot(speed[..., 0], speed[..., 1])
        step = _step(scenario)
        self.histograms["speed_mps"].add(metres)
        if metres.shape[1] > step:
            change = (metres[:, step:] - metres[:, :-step]) * (scenario.rate_hz / step)
            self.histograms["acceleration_mps2"].add(change)
        seen = ~np.isnan(scenario.xy[..., 0])
        length = _lengths(scenario.xy, seen)
        self.standing += int((length < 1.0).sum())
        self.histograms["track_m"].add(length)
        self.histograms["track_s"].add(seen.sum(axis=1) / scenario.rate_hz)
        close, conflicts = _encounters(scenario, speed)
        self.close += close
        self.conflicts += conflicts


def tally(scenarios: Iterable[Scenario]) -> dict[str, Tally]:
    """Count scenarios by region."""
    found: dict[str, Tally] = {}
    for scenario in scenarios:
        found.setdefault(scenario.region, Tally()).add(scenario)
    return dict(sorted(found.items()))


def _step(scenario: Scenario) -> int:
    return max(1, min(round(STEADY_S * scenario.rate_hz), scenario.frames - 1))


def _velocities(scenario: Scenario) -> Doubles:
    """Mean velocity over the last half second, m/s, float64[tracks, frames − step, 2]; NaN where not seen."""
    step = _step(scenario)
    return np.asarray((scenario.xy[:, step:] - scenario.xy[:, :-step]) * (scenario.rate_hz / step))


def _lengths(xy: Doubles, seen: NDArray[np.bool_]) -> Doubles:
    """Metres along each track through the places where it was seen; the noise of standing does not add up."""
    lengths = np.zeros(len(xy))
    for track, (points, there) in enumerate(zip(xy, seen, strict=True)):
        places = points[there]
        coarse = np.concatenate([places[:-1:5], places[-1:]])
        lengths[track] = np.hypot(*np.diff(coarse, axis=0).T).sum()
    return lengths


def _encounters(scenario: Scenario, speed: Doubles) -> tuple[int, int]:
    """Count the pairs that come close, and those in conflict."""
    step, every = _step(scenario), max(1, round(scenario.rate_hz / LOOK_HZ))
    reach = 2 * CONFLICT_S * 30.0
    close: set[tuple[int, int]] = set()
    conflicts: set[tuple[int, int]] = set()
    for frame in range(0, speed.shape[1], every):
        points, velocity = scenario.xy[:, frame + step], speed[:, frame]
        moves = np.hypot(*velocity.T) >= MOVES_MPS  # False where it is not seen
        rows = np.flatnonzero(moves)
        one, other = _near(points[rows], reach)
        if not len(one):
            continue
        one, other = rows[one], rows[other]
        apart, towards = points[other] - points[one], velocity[other] - velocity[one]
        near = np.hypot(*apart.T) <= CLOSE_M
        when = -(apart * towards).sum(axis=1) / np.maximum((towards**2).sum(axis=1), 1e-9)
        least = np.hypot(*(apart + towards * np.clip(when, 0, CONFLICT_S)[:, None]).T)
        hits = (when > 0) & (least <= CONFLICT_M)
        close.update(zip(one[near].tolist(), other[near].tolist(), strict=True))
        conflicts.update(zip(one[hits].tolist(), other[hits].tolist(), strict=True))
    return len({tuple(sorted(pair)) for pair in close}), len({tuple(sorted(pair)) for pair in conflicts})


def _near(points: Doubles, reach: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the pairs whose x differ by at most `reach`, each once: rows of the one and of the other."""
    order = np.argsort(points[:, 0], kind="stable")
    x = points[order, 0]
    last = np.searchsorted(x, x + reach, side="right")
    ones, others = [], []
    for offset in range(1, int((last - np.arange(len(x))).max(initial=1))):
        place = np.flatnonzero(np.arange(len(x)) + offset < last)
        ones.append(order[place])
        others.append(order[place + offset])
    nothing = np.empty(0, dtype=np.int64)
    return np.concatenate([nothing, *ones]), np.concatenate([nothing, *others])
