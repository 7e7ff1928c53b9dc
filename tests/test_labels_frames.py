"""Which camera frames can teach: each reason on its own, and which counts first."""

import numpy as np
import pytest

from fedfleet.scenarios.labels_frames import judge_frames


def judged(
    angles: list[float], repeated: list[int] | None = None, autopilot: list[int] | None = None
) -> tuple[list[int], dict[str, int]]:
    flags = np.zeros(len(angles), dtype=np.bool_)
    flags[repeated or []] = True
    itself = np.zeros(len(angles), dtype=np.bool_)
    itself[autopilot or []] = True
    verdict = judge_frames(np.array(angles, dtype=np.float64), flags, itself)
    return [int(i) for i in np.flatnonzero(~verdict.labelled)], dict(verdict.problems)


def test_sound_frames_all_teach() -> None:
    assert judged([-1.0, -1.0, 0.0, 1.0, 1.0, 0.2]) == ([], {})


@pytest.mark.parametrize("angle", [float("nan"), float("inf"), 1.01, -30.0])
def test_an_angle_that_is_none_is_counted(angle: float) -> None:
    assert judged([0.0, angle, 0.0]) == ([1], {"bad-angle": 1})


def test_a_frozen_camera_is_counted_frame_by_frame() -> None:
    assert judged([0.0, 0.1, 0.2, 0.3], [1, 2]) == ([1, 2], {"frozen-camera": 2})


def test_an_angle_that_leaps_and_comes_back_is_an_outlier() -> None:
    # given a driver at full left, and one frame at full right
    assert judged([-0.9, -1.0, 1.0, -0.9, -0.9]) == ([2], {"angle-outlier": 1})


@pytest.mark.parametrize(
    "angles",
    [
        [0.0, 0.0, 1.0, 0.0, 0.0],  # a stick tapped to the side is steering
        [-1.0, -1.0, 1.0, 1.0, 1.0],  # and so is one that stays there
        [1.0, -1.0],
    ],
)
def test_quick_steering_is_no_outlier(angles: list[float]) -> None:
    assert judged(angles) == ([], {})


def test_the_first_reason_counts_once() -> None:
    assert judged([-1.0, float("nan"), -1.0, 1.0, -1.0], [1, 3]) == (
        [1, 3],
        {"bad-angle": 1, "frozen-camera": 1},
    )


def test_no_frames_are_no_problem() -> None:
    assert judged([]) == ([], {})


def test_where_the_car_steered_itself_the_angle_is_not_even_looked_at() -> None:
    nan = float("nan")
    expected = [1, 2, 3], {"autopilot": 3}
    assert judged([0.1, 0.0, nan, 7.0, 0.2], repeated=[2], autopilot=[1, 2, 3]) == expected
