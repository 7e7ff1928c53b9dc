"""Which tracks can teach: what no car does is counted by its reason."""

import numpy as np
import pytest

from fedfleet.scenarios.labels import judge
from fedfleet.scenarios.records import Scenario

FRAMES = 50


def verdict(*tracks: np.ndarray) -> tuple[list[bool], list[bool], dict[str, int]]:
    xy = np.stack(tracks).astype(np.float64)
    names = tuple(f"t{number}" for number in range(len(tracks)))
    kinds = ("AV", *("OTHERS",) * (len(tracks) - 1))
    scenario = Scenario("s", "town", "d", 10.0, 0.0, names, kinds, xy)
    found = judge(scenario, frames=FRAMES, rate_hz=10.0)
    return found.sound.tolist(), found.labelled.tolist(), dict(found.problems)


def along(x: np.ndarray) -> np.ndarray:
    return np.stack([x, np.zeros_like(x)], axis=1)


def steady(speed: float = 10.0) -> np.ndarray:
    return along(np.arange(FRAMES) * speed / 10)


def changing(acceleration: float) -> np.ndarray:
    """10 m/s for 2 s, then faster by this much, m/s², for 1 s, then steady."""
    time = np.arange(FRAMES) / 10
    speed = 10.0 + acceleration * np.clip(time - 2.0, 0.0, 1.0)
    return along(np.concatenate([[0.0], np.cumsum(speed[1:]) / 10]))


def test_an_acceleration_that_no_tyre_holds_is_no_label() -> None:
    assert verdict(steady(), changing(9.0), changing(45.0)) == (
        [True, True, True],
        [True, True, False],
        {"impossible-acceleration": 1},
    )


def test_a_tracker_s_noise_is_no_acceleration() -> None:
    noisy = steady() + np.random.default_rng(1).normal(0, 0.15, (FRAMES, 2))
    assert np.abs(np.diff(noisy, n=2, axis=0)).max() * 100 > 30  # from frame to frame it seems to be one
    assert verdict(steady(), noisy)[1:] == ([True, True], {})


@pytest.mark.parametrize("frame", [10, 30])
def test_a_track_that_jumps_is_counted_as_that(frame: int) -> None:
    jumping = steady()
    jumping[frame:] += 20.0
    assert verdict(steady(), jumping) == ([True, False], [True, False], {"jump": 1})


def test_gaps_and_short_tracks_keep_their_reasons() -> None:
    gap, short = steady(), changing(45.0)
    gap[20:23] = np.nan
    short[30:] = np.nan
    assert verdict(steady(), gap, short)[1:] == ([True, False, False], {"gap": 1, "too-short": 1})
