"""A road as the closed loop sees it: distance along a lane, and how far to its left a point lies.

May live here: geometry of centre lines, numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["Doubles", "Road"]

Doubles = NDArray[np.float64]

SPACING_M: Final = 10.0
NEAR_M: Final = 350.0


@dataclass(frozen=True, eq=False)
class Road:
    """Centre line of the lane that the ego is to drive in, and where its own lane runs until it ends.

    `points` f64[P, 2] metres, about 10 m apart; `along_m` f64[P] from the first. The own lane's centre is `own_d_m` to
    the left of the line at `own_s_m`, both f64[K]; it ends at `end_s_m`, inf where it is the line itself.
    """

    points: Doubles
    along_m: Doubles
    own_s_m: Doubles
    own_d_m: Doubles
    end_s_m: float

    @classmethod
    def of(cls, reference: Doubles, own: Doubles | None = None) -> Road:
        """Make a road from the points f64[., 2] of two lanes; without `own` the ego is on the reference lane."""
        points, along_m = _even(reference)
        line = cls(points, along_m, np.zeros(1), np.zeros(1), np.inf)
        if own is None:
            return line
        s, d = line.project(_even(own)[0])
        return cls(points, along_m, s, d, float(s[-1]))

    def project(self, xy: Doubles, *, near_s_m: float | None = None) -> tuple[Doubles, Doubles]:
        """Metres along the line and to its left, f64[...] each, of points f64[..., 2].

        With `near_s_m` only the 350 m of line before and after it are looked at.
        """
        first, last = 0, len(self.points)
        if near_s_m is not None:
            first, last = np.searchsorted(self.along_m, [near_s_m - NEAR_M, near_s_m + NEAR_M])
            first, last = min(int(first), last - 2), max(int(last), int(first) + 2)
        line = self.points[first:last]
        flat = xy.reshape(-1, 2)
        square = (flat[:, :1] - line[:, 0]) ** 2 + (flat[:, 1:] - line[:, 1]) ** 2
        nearest = square.argmin(axis=1) + first
        way = flat - self.points[nearest]
        ahead = self._tangents()[nearest]
        s = self.along_m[nearest] + (way * ahead).sum(axis=1)
        d = ahead[:, 0] * way[:, 1] - ahead[:, 1] * way[:, 0]
        return s.reshape(xy.shape[:-1]), d.reshape(xy.shape[:-1])

    def own_d(self, s_m: Doubles) -> Doubles:
        """How far to the left of the line the ego's own lane runs at `s_m`."""
        return np.asarray(np.interp(s_m, self.own_s_m, self.own_d_m), dtype=np.float64)

    def _tangents(self) -> Doubles:
        along = np.gradient(self.points, axis=0)
        return np.asarray(along / np.linalg.norm(along, axis=1, keepdims=True), dtype=np.float64)


def _even(points: Doubles) -> tuple[Doubles, Doubles]:
    """The same line with points at even distances, and their distance from the first."""
    steps = np.hypot(*np.diff(points, axis=0).T)
    kept = np.concatenate([[True], steps > 1e-3])
    points, steps = points[kept], steps[kept[1:]]
    along = np.concatenate([[0.0], np.cumsum(steps)])
    even = np.linspace(0.0, along[-1], max(2, round(along[-1] / SPACING_M) + 1))
    return np.stack([np.interp(even, along, points[:, axis]) for axis in (0, 1)], axis=1), even
