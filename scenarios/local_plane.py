"""Positions on the Earth as metres in a plane: x east, y north, tangent to the WGS 84 ellipsoid at one point.

May live here: geodetic and Earth-centred (ECEF) coordinates and the local tangent plane, by the formulae of B.
Hofmann-Wellenhof et al., "GNSS", 2008, chapter 8. numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["Plane", "axes", "ecef", "geodetic"]

A_M: Final = 6_378_137.0
F: Final = 1.0 / 298.257223563
E2: Final = F * (2.0 - F)

Doubles = NDArray[np.float64]


def ecef(latitude: Doubles, longitude: Doubles, altitude_m: Doubles) -> Doubles:
    """Earth-centred metres float64[N, 3] of float64[N] latitudes and longitudes (rad) and ellipsoidal heights (m)."""
    sin, cos = np.sin(latitude), np.cos(latitude)
    n = A_M / np.sqrt(1.0 - E2 * sin * sin)
    r = (n + altitude_m) * cos
    xyz = [r * np.cos(longitude), r * np.sin(longitude), (n * (1.0 - E2) + altitude_m) * sin]
    return np.stack(xyz, axis=-1)


def geodetic(xyz: Doubles) -> tuple[float, float]:
    """Latitude and longitude (rad) of one Earth-centred point float64[3] near the ground; good to 1e-12 rad."""
    x, y, z = (float(value) for value in xyz)
    p = float(np.hypot(x, y))
    latitude = float(np.arctan2(z, p * (1.0 - E2)))
    for _ in range(8):
        n = A_M / float(np.sqrt(1.0 - E2 * np.sin(latitude) ** 2))
        latitude = float(np.arctan2(z + E2 * n * np.sin(latitude), p))
    return latitude, float(np.arctan2(y, x))


def axes(latitude: Doubles, longitude: Doubles) -> Doubles:
    """Rows east, north, up in Earth-centred coordinates: float64[..., 3, 3] of angles (rad) of any one shape."""
    sin, cos, sin_l, cos_l = np.sin(latitude), np.cos(latitude), np.sin(longitude), np.cos(longitude)
    none = np.zeros_like(sin)
    east = np.stack([-sin_l, cos_l, none], axis=-1)
    north = np.stack([-sin * cos_l, -sin * sin_l, cos], axis=-1)
    up = np.stack([cos * cos_l, cos * sin_l, sin], axis=-1)
    return np.stack([east, north, up], axis=-2)


@dataclass(frozen=True, eq=False)
class Plane:
    """The tangent plane at one point: `origin` float64[3] Earth-centred, `rows` float64[3, 3] east, north, up."""

    origin: Doubles
    rows: Doubles

    @classmethod
    def at(cls, xyz: Doubles) -> Plane:
        """The plane at an Earth-centred point float64[3]."""
        latitude, longitude = geodetic(xyz)
        return cls(np.array(xyz), axes(np.float64(latitude), np.float64(longitude)))  # type: ignore[arg-type]

    def local(self, xyz: Doubles) -> Doubles:
        """Earth-centred float64[..., 3] as east, north, up in metres from the origin."""
        return (xyz - self.origin) @ self.rows.T
