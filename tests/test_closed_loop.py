"""The closed loop without SUMO: geometry, policy, measures, figures as pure functions; the loop on a made-up road."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from server_world import configuration
from straight_road import LANE_M, LENGTH_M, WIDTH_M, Other, StraightRoad
from test_coordinator import World

from fedfleet.cli.closed_loop import released
from fedfleet.cli.config import load
from fedfleet.cli.main import main
from fedfleet.protocol.errors import UsageError
from fedfleet.scenarios.closed_loop import drive
from fedfleet.scenarios.closed_loop_figures import MEASURES, difference, exact_p, percentiles, wilson
from fedfleet.scenarios.closed_loop_forecast import Tracks, by_model, constant_velocity, road_velocity
from fedfleet.scenarios.closed_loop_measure import Meter, Outcome, touch
from fedfleet.scenarios.closed_loop_plan import plan
from fedfleet.scenarios.closed_loop_policy import Action, Ego, Others, keep_gap, merge
from fedfleet.scenarios.closed_loop_road import Road
from fedfleet.scenarios.closed_loop_world import Seen, Vehicle
from fedfleet.scenarios.records import ScenarioError

GAP, MERGE = plan("gap", 0, seed=1), plan("merge", 0, seed=1)
STEPS = np.arange(31) * 0.1


def ego(*, speed: float = 25.0, acceleration: float = 0.0) -> Ego:
    return Ego(0.0, speed, acceleration, 33.3, LENGTH_M, WIDTH_M)


def others(*rows: tuple[float, float, float]) -> Others:
    """Vehicles at (metres ahead, metres to the left of both lanes' centre, m/s) that keep their speed."""
    s = (
        np.array([[ahead] for ahead, _, _ in rows]).reshape(-1, 1)
        + np.array([[speed] for *_, speed in rows]).reshape(-1, 1) * STEPS
    )
    d = np.array([[left] for _, left, _ in rows]).reshape(-1, 1) + 0.0 * STEPS
    size = np.ones(len(rows))
    return Others(s, d, d, LENGTH_M * size, WIDTH_M * size)


def outcome(**changes: Any) -> Outcome:
    values: dict[str, Any] = {
        "collision": False,
        "collision_with": "",
        "min_ttc_s": 10.0,
        "min_ttc_rear_s": 10.0,
        "harsh": 0,
        "harsh_s": 0.0,
        "follower_harsh": 0,
        "hardest_ms2": 0.0,
        "mean_speed_ms": 25.0,
        "time_lost_s": 1.0,
        "merged_s": None,
        "driven_s": 30.0,
    }
    return Outcome(**(values | changes))


def figure(name: str) -> Any:
    return next(each for each in MEASURES if each.name == name)


# --- the road ---


def test_a_point_beside_a_bend_lies_at_its_arc_length_and_distance() -> None:
    # given a left-hand arc of 600 m radius
    angle = np.linspace(0.0, 1.0, 200)
    road = Road.of(600.0 * np.stack([np.sin(angle), 1.0 - np.cos(angle)], axis=1))
    # when points 3 m to its left (towards the centre) and to its right are projected
    at = np.array([0.2, 0.5, 0.8])
    for left in (3.0, -3.0):
        points = np.stack([(600 - left) * np.sin(at), 600 - (600 - left) * np.cos(at)], axis=1)
        s, d = road.project(points, near_s_m=300.0)
        # then
        assert s == pytest.approx(600.0 * at, abs=0.1)
        assert d == pytest.approx(left, abs=0.05)


def test_a_lane_of_its_own_ends_where_its_points_end() -> None:
    line = np.array([[0.0, 0.0], [1000.0, 0.0]])
    road = Road.of(line, np.array([[0.0, -50.0], [200.0, -3.2], [600.0, -3.2]]))
    assert road.end_s_m == pytest.approx(600.0)
    assert road.own_d(np.array([400.0])) == pytest.approx([-3.2])
    assert Road.of(line).end_s_m == np.inf


# --- keeping a gap ---


def test_a_free_road_is_used() -> None:
    assert keep_gap(ego(speed=25.0), others()).acceleration_ms2 > 0.5
    assert keep_gap(ego(speed=33.3), others()).acceleration_ms2 == pytest.approx(0.0)


def test_a_vehicle_that_stands_close_ahead_is_braked_for_as_hard_as_it_takes() -> None:
    standing = keep_gap(ego(speed=20.0), others((45.0, 0.0, 0.0)))
    assert standing.acceleration_ms2 < -4.0
    far = keep_gap(ego(speed=20.0), others((150.0, 0.0, 0.0)))
    assert -4.0 < far.acceleration_ms2 < 0.5


def test_a_follower_and_a_neighbour_that_stays_in_its_lane_change_nothing() -> None:
    alone = keep_gap(ego(), others())
    assert keep_gap(ego(), others((-8.0, 0.0, 30.0), (10.0, LANE_M, 15.0))) == alone


def test_a_predicted_cut_in_is_braked_for_before_it_happens() -> None:
    # given a slower neighbour just ahead that is predicted to move over within a second
    beside = others((14.0, LANE_M, 18.0))
    coming = Others(beside.s_m, beside.own_m - 3.0 * STEPS, beside.target_m, beside.length_m, beside.width_m)
    # then it counts, and one that is predicted to come only after 2 s does not
    assert keep_gap(ego(), coming).acceleration_ms2 < keep_gap(ego(), beside).acceleration_ms2 - 1.0
    late = np.where(STEPS < 2.0, LANE_M, 0.0)[None]
    assert keep_gap(ego(), Others(beside.s_m, late, late, beside.length_m, beside.width_m)) == keep_gap(
        ego(), beside
    )


def test_a_leader_that_is_predicted_to_brake_is_braked_for_earlier() -> None:
    steady = others((45.0, 0.0, 25.0))
    slower = Others(
        45.0 + 25.0 * STEPS[None] - 2.5 * STEPS[None] ** 2,
        steady.own_m,
        steady.target_m,
        steady.length_m,
        steady.width_m,
    )
    assert keep_gap(ego(), slower).acceleration_ms2 <= keep_gap(ego(), steady).acceleration_ms2 - 0.5


@settings(deadline=None, max_examples=50)
@given(
    gap=st.floats(5.0, 200.0), speed=st.floats(0.0, 36.0), leader=st.floats(0.0, 36.0), last=st.floats(-8, 2)
)
def test_the_acceleration_is_always_one_of_the_choices(
    gap: float, speed: float, leader: float, last: float
) -> None:
    chosen = keep_gap(ego(speed=speed, acceleration=last), others((gap, 0.0, leader))).acceleration_ms2
    assert -8.0 <= chosen <= 2.0


# --- merging ---


def beside(*rows: tuple[float, float]) -> Others:
    """Vehicles at (metres ahead, m/s) in the target lane, which is one lane to the left of the ego's."""
    found = others(*((ahead, 0.0, speed) for ahead, speed in rows))
    return Others(found.s_m, found.own_m + LANE_M, found.target_m, found.length_m, found.width_m)


def test_an_empty_lane_is_taken_at_once() -> None:
    assert merge(ego(), beside(), end_s_m=300.0).change


def test_a_gap_that_holds_is_taken_and_one_with_a_fast_follower_is_not() -> None:
    assert merge(ego(), beside((60.0, 26.0), (-45.0, 25.0)), end_s_m=300.0).change
    assert not merge(ego(), beside((60.0, 26.0), (-35.0, 35.0)), end_s_m=300.0).change
    assert not merge(ego(), beside((3.0, 25.0)), end_s_m=300.0).change


def test_without_a_gap_the_ego_stops_before_the_lane_ends() -> None:
    # given a target lane that is full for ever
    wall = beside(*((float(at), 20.0) for at in range(-60, 61, 12)))
    place, speed, action = 0.0, 20.0, Action(0.0)
    for _ in range(400):
        now = Others(wall.s_m + place, wall.own_m, wall.target_m, wall.length_m, wall.width_m)
        here = Ego(place, speed, action.acceleration_ms2, 33.3, LENGTH_M, WIDTH_M)
        action = merge(here, now, end_s_m=200.0)
        assert not action.change
        speed = max(0.0, speed + action.acceleration_ms2 * 0.1)
        place += speed * 0.1
    assert place + LENGTH_M / 2 <= 200.0
    assert speed < 0.5


# --- forecasts ---


def circle(radius: float, speed: float) -> np.ndarray:
    angle = np.arange(-19, 1) * 0.1 * speed / radius
    return radius * np.stack([np.sin(angle), 1.0 - np.cos(angle)], axis=1)[None]


def test_the_model_gets_the_tasks_own_frame_and_its_answer_comes_back_onto_the_road() -> None:
    # given a model that answers constant velocity in the agent's frame, and a track that goes north
    seen = []

    def run(inputs: np.ndarray) -> np.ndarray:
        seen.append(inputs)
        return np.stack([np.arange(1, 31) * 2.0, np.zeros(30)], axis=1)[None].astype(np.float32)

    track = np.stack([np.full(20, 5.0), 2.0 * np.arange(20) + 100.0], axis=1)[None]
    road = Road.of(np.array([[8.0, 0.0], [8.0, 1000.0]]))
    # when
    s, d = by_model(run)(track, road, 138.0)
    # then
    assert seen[0].dtype == np.float32
    assert seen[0][0, -1] == pytest.approx([0.0, 0.0])
    assert seen[0][0, 0] == pytest.approx([-38.0, 0.0], abs=1e-4)
    assert s[0] == pytest.approx(138.0 + 2.0 * np.arange(1, 31), abs=1e-3)
    assert d[0] == pytest.approx(3.0, abs=1e-3)


def test_constant_velocity_leaves_a_bend_and_constant_velocity_along_the_road_does_not() -> None:
    road = Road.of(circle(400.0, 30.0)[0][-1] + np.array([[0.0, 0.0], [1.0, 0.0]]))
    angle = np.linspace(-0.5, 0.8, 200)
    road = Road.of(400.0 * np.stack([np.sin(angle), 1.0 - np.cos(angle)], axis=1))
    track = circle(400.0, 30.0)
    near = float(road.project(track[0, -1:])[0][0])
    _, straight = constant_velocity(track, road, near)
    along, bent = road_velocity(track, road, near)
    assert straight[0, -1] < -8.0
    assert abs(bent[0]).max() < 0.1
    assert along[0, -1] - near == pytest.approx(90.0, rel=0.01)


def test_an_answer_that_is_not_finite_is_refused() -> None:
    road = Road.of(np.array([[0.0, 0.0], [900.0, 0.0]]))
    broken = by_model(lambda inputs: np.full((len(inputs), 30, 2), np.nan, dtype=np.float32))
    with pytest.raises(UsageError, match="the model's output is not finite"):
        broken(circle(400.0, 30.0), road, 0.0)


def test_tracks_count_from_their_twentieth_frame_and_have_the_same_noise_again() -> None:
    histories = []
    for _ in range(2):
        tracks = Tracks(seed=3)
        for frame in range(25):
            tracks.see({"old": (float(frame), 0.0)} | ({"new": (0.0, float(frame))} if frame > 10 else {}))
        names, history = tracks.known()
        assert names == ["old"]
        histories.append(history)
    assert (histories[0] == histories[1]).all()
    assert 0.0 < abs(histories[0][0, :, 1]).max() < 0.15
    tracks.see({})
    assert tracks.known()[0] == []


# --- measures ---


@pytest.mark.parametrize(
    ("other", "touches"),
    [
        (Vehicle(4.5, 0.0, 0.0, 0.0, LENGTH_M, WIDTH_M), True),
        (Vehicle(4.7, 0.0, 0.0, 0.0, LENGTH_M, WIDTH_M), False),
        (Vehicle(0.0, 1.9, 0.0, 0.0, LENGTH_M, WIDTH_M), False),
        # corner to corner: the boxes around them overlap, they do not
        (Vehicle(3.9, 2.9, np.pi / 4, 0.0, LENGTH_M, WIDTH_M), False),
        (Vehicle(0.0, 1.9, np.pi / 4, 0.0, LENGTH_M, WIDTH_M), True),
    ],
)
def test_vehicles_touch_when_their_rectangles_overlap(other: Vehicle, touches: bool) -> None:
    one = Vehicle(0.0, 0.0, 0.0, 0.0, LENGTH_M, WIDTH_M)
    assert touch(one, other) is touches
    assert touch(other, one) is touches


def test_time_to_collision_braking_and_speed_are_those_of_the_world() -> None:
    # given an ego at 20 m/s behind one at 10 m/s, 40 m of gap; one at 25 m/s comes from behind, 50 m away
    road = Road.of(np.array([[-500.0, 0.0], [900.0, 0.0]]))
    meter = Meter(road, wanted_ms=20.0)
    size = (LENGTH_M, WIDTH_M)

    def frame(time: float, speed: float, follower: float) -> Seen:
        return Seen(
            time,
            Vehicle(0.0, 0.0, 0.0, speed, *size),
            {
                "ahead": Vehicle(40.0 + LENGTH_M, 0.0, 0.0, 10.0, *size),
                "behind": Vehicle(-50.0 - LENGTH_M, 0.5, 0.0, follower, *size),
                "beside": Vehicle(-9.0, LANE_M, 0.0, 90.0, *size),
            },
        )

    # when the ego brakes with 6 m/s² twice, with a pause, and the follower once
    for number, (speed, follower) in enumerate(
        [(20.0, 25.0), (19.4, 24.4), (18.8, 24.4), (18.8, 24.4), (18.2, 24.4)]
    ):
        meter.see(frame(number * 0.1, speed, follower), s_m=500.0)
    found = meter.outcome(merged_s=None)
    # then
    assert not found.collision
    assert found.min_ttc_s == pytest.approx(4.0)
    assert found.min_ttc_rear_s == pytest.approx(50.0 / 6.2)
    assert (found.harsh, found.harsh_s) == (2, pytest.approx(0.3))
    assert found.follower_harsh == 1
    assert found.hardest_ms2 == pytest.approx(-6.0)
    assert found.time_lost_s == pytest.approx(0.1 * sum(1 - v / 20.0 for v in (20.0, 19.4, 18.8, 18.8, 18.2)))


# --- the loop ---


def test_a_leader_that_brakes_to_a_stop_is_not_run_into_and_the_same_drive_again_is_the_same() -> None:
    def brakes(now: float) -> float:
        return float(np.clip(25.0 - 4.0 * max(0.0, now - 5.0), 0.0, 25.0))

    world = StraightRoad({"ahead": Other(50.0, 0.0, brakes)})
    first, second = (drive(world, GAP, road_velocity) for _ in range(2))
    assert first == second
    assert not first.collision
    assert first.min_ttc_s < 10.0
    assert first.mean_speed_ms < 15.0


def test_a_forecast_that_sees_nobody_runs_into_whoever_stands_there() -> None:
    # given a forecast that moves everyone a kilometre away
    def blind(history: np.ndarray, road: Road, near: float) -> tuple[np.ndarray, np.ndarray]:
        s, d = road_velocity(history, road, near)
        return s + 1000.0, d + 1000.0

    standing = {"ahead": Other(300.0, 0.0, lambda _: 0.0)}
    seeing, blinded = (drive(StraightRoad(standing), GAP, each) for each in (road_velocity, blind))
    assert not seeing.collision
    assert blinded.min_ttc_s < seeing.min_ttc_s


def test_the_ego_merges_into_a_gap_and_says_when() -> None:
    traffic = {f"v{at}": Other(float(at), 0.0, lambda _: 24.0) for at in (-160, -120, 90, 130)}
    world = StraightRoad(traffic, lane=-1.0, end_m=400.0, speed_ms=22.0)
    found = drive(world, MERGE, road_velocity)
    assert not found.collision
    assert found.merged_s is not None
    assert 2.0 < found.merged_s < 15.0


def test_an_ego_that_leaves_the_road_ends_the_run_with_a_reason() -> None:
    with pytest.raises(ScenarioError, match="left-the-road: gap episode 0: the ego left the road"):
        drive(StraightRoad({}, leaves_at_s=3.0), GAP, road_velocity)


# --- figures ---


def test_shares_come_with_counts_intervals_and_an_exact_p() -> None:
    pairs = [(outcome(), outcome(collision=True))] * 6 + [(outcome(), outcome())] * 14
    found = difference(pairs, figure("collisions"), seed=1)
    assert found["counts"] == [0, 6]
    assert (found["model"], found["against"], found["difference"]) == (0.0, 0.3, -0.3)
    assert (found["only_model"], found["only_against"]) == (0, 6)
    assert found["p"] == pytest.approx(2 / 2**6)
    assert found["low"] < -0.3 < found["high"] < 0.0
    assert difference(pairs, figure("collisions"), seed=1) == found


def test_speed_is_compared_only_where_nobody_collided_and_no_value_is_no_figure() -> None:
    pairs = [
        (outcome(mean_speed_ms=20.0), outcome(mean_speed_ms=22.0)),
        (outcome(mean_speed_ms=5.0, collision=True), outcome(mean_speed_ms=22.0)),
    ]
    speed = difference(pairs, figure("mean_speed_ms"), seed=1)
    assert (speed["episodes"], speed["difference"], speed["low"]) == (1, -2.0, None)
    assert difference(pairs, figure("merged_s"), seed=1)["episodes"] == 0


def test_known_values_of_the_intervals() -> None:
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(5, 20) == pytest.approx((0.1119, 0.4687), abs=1e-4)
    assert exact_p(0, 0) == 1.0
    assert exact_p(1, 9) == pytest.approx(22 / 1024)
    assert percentiles([outcome(min_ttc_s=float(each)) for each in range(1, 12)])["p50"] == 6.0


def test_an_episode_is_the_same_whoever_asks_for_it() -> None:
    assert plan("gap", 3, seed=5) == plan("gap", 3, seed=5)
    assert len({plan("gap", number, seed=5).seed for number in range(20)}) == 20
    assert plan("gap", 3, seed=5).seed != plan("merge", 3, seed=5).seed


# --- bad input ---


@pytest.fixture
def closed_loop(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["fedfleet", "closed-loop", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capfd.readouterr().err.strip()

    return call


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "expected one of --model FILE and --release VERSION"),
        (["--model", "m.onnx", "--release", "newest"], "expected one of --model FILE and --release VERSION"),
        (["--model", "m.onnx"], "--model m.onnx: cannot be read: No such file or directory"),
        (["--model", "bad.onnx"], "--model bad.onnx: not a model that ONNX Runtime can load"),
        (["--release", "newest"], "no fleet server has kept its store here"),
        (["--model", "m.onnx", "--situation", "parking"], "--situation parking: expected one of gap, merge"),
    ],
)
def test_a_mistake_is_one_line(closed_loop: Any, tmp_path: Path, arguments: list[str], said: str) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    code, error = closed_loop(*arguments)
    assert code == 2
    assert said in error
    assert len(error.splitlines()) == 1


def test_without_the_extra_it_says_how_to_install_it(
    closed_loop: Any, tmp_path: Path, closed_loop_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "libsumo" else found(name, *more)
    )
    code, error = closed_loop("--model", closed_loop_model, "--out", tmp_path / "out")
    assert (code, error) == (
        2,
        "fedfleet: the closed loop needs libsumo, which is not installed: pip install 'fedfleet[sumo]'",
    )
    assert not (tmp_path / "out").exists()


def test_a_release_is_the_file_that_the_server_keeps_of_it(tmp_path: Path) -> None:
    # given a server that has released three versions
    world = World(configuration(tmp_path))
    world.drive("n-0", "n-1", "n-2", "s-0", "s-1")
    world.turn(30)
    (tmp_path / "fedfleet.toml").write_text(f'work_dir = "{tmp_path}"\n')
    settings = load(tmp_path / "fedfleet.toml")
    # then
    newest = released(settings, "newest")
    assert newest == tmp_path / "server" / "models" / "3.onnx"
    assert newest.read_bytes() == (tmp_path / "server" / "model.onnx").read_bytes()
    assert released(settings, "2").name == "2.onnx"
    with pytest.raises(UsageError, match=r"--release 9: expected newest or a released version \(.*3\)"):
        released(settings, "9")
    newest.unlink()
    with pytest.raises(UsageError, match="is not kept any more; name a file with --model"):
        released(settings, "3")
    world.parts.close()


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ("psychic", "--against psychic: expected constant-velocity, road-velocity or a model file"),
        ("bad.onnx", "--against bad.onnx: not a model that ONNX Runtime can load"),
    ],
)
def test_an_unknown_predictor_to_compare_with_is_refused(
    closed_loop: Any, tmp_path: Path, closed_loop_model: Path, other: str, said: str
) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    code, error = closed_loop("--model", closed_loop_model, "--against", other)
    assert code == 2
    assert said in error


@pytest.fixture(scope="module")
def closed_loop_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch", reason="torch is not installed (extra train)")
    from fedfleet.fleet_server.export import export
    from fedfleet.models.layout import patch
    from fedfleet.models.motion_forecast import TASK

    exported = export(TASK, seed=1)
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    path.write_bytes(patch(exported.onnx, exported.layout, exported.initial))
    return path
