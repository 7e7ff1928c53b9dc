"""The local tangent plane against known points and against plain trigonometry."""

import math

import numpy as np
import pytest

from fedfleet.scenarios.local_plane import Plane, axes, ecef, geodetic


def test_known_points_of_the_ellipsoid() -> None:
    # Given the equator at Greenwich, the north pole, and 45 degrees north, whose coordinates are textbook values
    angles = np.radians([[0.0, 0.0], [90.0, 0.0], [45.0, 90.0]])
    # When
    xyz = ecef(angles[:, 0], angles[:, 1], np.zeros(3))
    # Then
    expected = [[6378137.0, 0.0, 0.0], [0.0, 0.0, 6356752.314245], [0.0, 4517590.878849, 4487348.408866]]
    np.testing.assert_allclose(xyz, expected, atol=1e-6)


@pytest.mark.parametrize("latitude", [-60.0, 0.0, 37.4, 49.0, 89.0])
def test_geodetic_is_the_inverse(latitude: float) -> None:
    point = np.radians([latitude, -122.0])
    found = geodetic(ecef(point[:1], point[1:], np.array([250.0]))[0])
    np.testing.assert_allclose(found, point, atol=1e-12)


def test_a_step_north_and_a_step_east_are_metres() -> None:
    # Given a plane at Karlsruhe and points 1e-5 rad away
    latitude, longitude, step = math.radians(49.0), math.radians(8.4), 1e-5
    plane = Plane.at(ecef(np.array([latitude]), np.array([longitude]), np.zeros(1))[0])
    # When
    points = ecef(np.array([latitude, latitude + step]), np.array([longitude + step, longitude]), np.zeros(2))
    east, north = plane.local(points)
    # Then their lengths are those of the ellipsoid's radii of curvature there
    e2 = 0.00669437999014
    n = 6378137.0 / math.sqrt(1 - e2 * math.sin(latitude) ** 2)
    m = n * (1 - e2) / (1 - e2 * math.sin(latitude) ** 2)
    np.testing.assert_allclose(east[:2], [n * math.cos(latitude) * step, 0.0], atol=1e-3)
    np.testing.assert_allclose(north[:2], [0.0, m * step], atol=1e-3)


def test_axes_are_orthonormal_and_right_handed() -> None:
    rows = axes(np.array([0.3, -0.7]), np.array([2.0, -1.0]))
    np.testing.assert_allclose(
        rows @ rows.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (2, 3, 3)), atol=1e-15
    )
    np.testing.assert_allclose(np.linalg.det(rows), 1.0)
