"""Features and metrics of motion forecasting, and which tracks teach."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import traffic

from fedfleet.models.motion_forecast import TASK, agent_frame, constant_velocity
from fedfleet.models.task import Samples
from fedfleet.protocol.errors import UsageError
from fedfleet.scenarios.labels import judge
from fedfleet.scenarios.reading import open_recordings, read
from fedfleet.scenarios.records import Scenario
from fedfleet.scenarios.table import write_table


def straight(speed_mps: float, *, heading: float = 0.0, frames: int = 50) -> np.ndarray:
    way = np.arange(frames)[:, None] * 0.1 * speed_mps
    return way * [np.cos(heading), np.sin(heading)] + [1000.0, -500.0]


def one(xy: np.ndarray, kinds: tuple[str, ...] | None = None, rate_hz: float = 10.0) -> Scenario:
    ids = tuple(f"t{i}" for i in range(len(xy)))
    return Scenario(
        "s", "town", "d", rate_hz, 0.0, ids, kinds or ("OTHERS",) * len(xy), np.array(xy, dtype=float)
    )


# --- frame of the agent ---


@pytest.mark.parametrize("heading", [0.0, 0.7, -2.5, np.pi])
def test_the_agent_frame_looks_along_the_heading(heading: float) -> None:
    # given a car at 10 m/s
    track = straight(10, heading=heading)[None]
    # when
    local = agent_frame(track[:, :20], track)
    # then it is at the origin now and drives along x
    np.testing.assert_allclose(local[0, 19], [0, 0], atol=1e-4)
    np.testing.assert_allclose(local[0, [0, 49]], [[-19, 0], [30, 0]], atol=1e-4)
    assert local.dtype == np.float32


def test_a_car_that_has_stopped_keeps_the_heading_with_which_it_came() -> None:
    track = straight(5, heading=np.pi / 2, frames=20)
    track[10:] = track[10]
    local = agent_frame(track[None], track[None])
    np.testing.assert_allclose(local[0, 0], [-5, 0], atol=1e-4)


def test_a_car_that_stood_all_the_time_looks_east() -> None:
    track = np.full((1, 20, 2), 7.0)
    track[0, ::2, 0] += 0.05
    local = agent_frame(track, track)
    np.testing.assert_allclose(local[0, 0, 0] - local[0, 1, 0], 0.05, atol=1e-5)


def test_constant_velocity_is_exact_for_a_straight_drive() -> None:
    track = straight(8)[None]
    local = agent_frame(track[:, :20], track)
    np.testing.assert_allclose(constant_velocity(local[:, :20]), local[:, 20:], atol=1e-4)


def test_constant_velocity_refuses_another_shape() -> None:
    with pytest.raises(UsageError, match=r"history: expected float32\[N, 20, 2\], got float32\[3, 19, 2\]"):
        constant_velocity(np.zeros((3, 19, 2), "f4"))


# --- metrics ---


def test_metrics_by_hand() -> None:
    # given two judged tracks, off by 1 m throughout and by 3 m at the end only, and one that is not judged
    targets = np.zeros((3, 30, 2), "f4")
    outputs = targets.copy()
    outputs[0, :, 0] = 1
    outputs[1, -1, 1] = 3
    outputs[2] = 100
    samples = Samples(np.zeros((3, 20, 2), "f4"), targets, np.array([True, True, False]))
    # when
    scores = TASK.score(outputs, samples)
    # then
    assert scores["ADE"] == (pytest.approx(1.1), 2)
    assert scores["FDE"] == (pytest.approx(4.0), 2)
    assert scores["miss_rate"] == (1.0, 2)
    assert TASK.score_all(outputs, samples)["miss_rate"] == (2.0, 3)


# --- which tracks teach ---


def test_each_bad_track_is_counted_under_one_reason() -> None:
    # given a good track, one with a jump, one with a gap, one that ends early, one that comes late
    xy = np.stack([straight(10) for _ in range(5)])
    xy[1, 30:] += 7  # 9.9 m in 0.1 s
    xy[2, 25:28] = np.nan
    xy[3, 40:] = np.nan
    xy[4, :10] = np.nan
    # when
    verdict = judge(one(xy), frames=50, rate_hz=10)
    # then
    assert verdict.labelled.tolist() == [True, False, False, False, False]
    assert verdict.sound.tolist() == [True, False, True, True, True]
    assert verdict.problems == {"jump": 1, "gap": 1, "too-short": 2}


def test_60_mps_is_still_a_car_also_over_a_gap() -> None:
    xy = straight(59.9)[None].copy()
    xy[0, 3:5] = np.nan
    assert judge(one(xy), frames=50, rate_hz=10).problems == {"gap": 1}
    assert judge(one(straight(60.2)[None]), frames=50, rate_hz=10).problems == {"jump": 1}


def test_another_frame_rate_teaches_nothing_and_is_counted() -> None:
    verdict = judge(one(straight(10)[None], rate_hz=25.0), frames=50, rate_hz=10)
    assert verdict.problems == {"wrong-rate": 1}
    assert not verdict.sound.any()


def test_a_short_scenario_is_too_short_and_has_no_frame(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", [traffic.scenario(frames=15, tracks=3)])
    assert TASK.index(tmp_path).problems == {"too-short": 3}
    assert len(TASK.samples(tmp_path, ["town/d00"])) == 0
    assert len(TASK.frames(tmp_path, ["town/d00"])) == 0


def test_frames_hold_the_tracks_seen_for_2_s(tmp_path: Path) -> None:
    # given 52 frames, one track throughout, one from frame 10 on, one with a jump
    xy = np.stack([straight(10, frames=52) for _ in range(3)])
    xy[1, :10] = np.nan
    xy[2, 30:] += 50
    write_table(tmp_path / "a.parquet", [one(xy)])
    # when
    frames = TASK.frames(tmp_path, ["town/d"])
    # then from frame 19 on one track is seen, from frame 29 on two; only the first has a known future
    assert len(frames) == 33
    assert np.diff(frames.offsets).tolist() == [1] * 10 + [2] * 23
    assert frames.sample.tolist() == [0] + [-1] * 55
    assert frames.rate_hz == 10.0


# --- reading ---


def test_a_folder_of_another_format_is_named(tmp_path: Path) -> None:
    (tmp_path / "tracks.csv").write_text("a,b\n")
    with pytest.raises(UsageError, match=r"no recordings: .*tracks\.csv has the columns of no format"):
        read(tmp_path)


def test_a_missing_folder_and_a_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="absent: expected a folder of recordings, got nothing"):
        read(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file: expected a folder of recordings, got a file"):
        read(tmp_path / "file")


def test_a_malformed_file_is_named(tmp_path: Path) -> None:
    traffic.write_folder(tmp_path)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    assert len(read(tmp_path)) == 24
    (row,) = open_recordings(tmp_path).account.rows
    assert re.match(r"not-parquet: .*broken\.parquet: expected a whole Parquet file", row.text)


def test_the_same_scenario_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_table(tmp_path / f"{name}.parquet", [traffic.scenario()])
    with pytest.raises(UsageError, match="scenario town/d00/s0 appears 2 times"):
        read(tmp_path)


def test_a_changed_folder_is_read_again(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", [traffic.scenario("s0")])
    assert len(read(tmp_path)) == 1
    write_table(tmp_path / "b.parquet", [replace(traffic.scenario("s1"), drive="d01")])
    assert [scenario.drive for scenario in read(tmp_path)] == ["d00", "d01"]


# --- windows of longer scenarios ---


def test_windows_slide_over_a_longer_scenario(tmp_path: Path) -> None:
    # Given 10 s in which one car is seen throughout, one from 2.5 s on, one too briefly, one with a gap late
    xy = np.stack([straight(5.0 + track, frames=100) for track in range(4)])
    xy[1, :25] = np.nan
    xy[2, 40:] = np.nan
    xy[3, 80] = np.nan
    scenario = one(xy, kinds=("AGENT", "AGENT", "OTHERS", "OTHERS"))
    write_table(tmp_path / "town.parquet", [scenario])
    # When
    samples = TASK.samples(tmp_path, ["town/d"])
    frames = TASK.frames(tmp_path, ["town/d"])
    # Then
    assert samples.traits["track"].tolist() == ["t0", "t3", "t0", "t1", "t3", "t0", "t1"]
    assert samples.judged.tolist() == [True, False, True, True, False, True, True]
    # t1 and t2 in the first window, t2 in the second, t3 in the third
    assert samples.problems == {"too-short": 3, "gap": 1}
    # and the replay knows the truth of every sample, at the frame in which its window begins
    where = {int(truth): at for at, truth in enumerate(frames.sample) if truth >= 0}
    assert sorted(where) == list(range(len(samples)))
    for truth, at in where.items():
        np.testing.assert_array_equal(frames.inputs[at], samples.inputs[truth])
        assert np.searchsorted(frames.offsets, at, side="right") - 1 == (0, 0, 25, 25, 25, 50, 50)[truth]


def test_a_view_shows_the_window_of_its_sample(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra viz)")
    from fedfleet.models.plot_motion_forecast import views
    from fedfleet.models.task import Case

    xy = np.stack([straight(5.0, frames=100), straight(8.0, frames=100)])
    write_table(tmp_path / "town.parquet", [one(xy)])
    samples = TASK.samples(tmp_path, ["town/d"])
    shown = views([Case("town/d", at, samples.targets[at]) for at in range(len(samples))], tmp_path)
    for view in shown:
        np.testing.assert_allclose(view.prediction, view.truth, atol=1e-3)
    assert [view.track for view in shown] == ["t0", "t1"] * 3
