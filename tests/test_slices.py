"""Slices: what each manoeuvre is, the registry, how sure a slice's figure is, and whether two models differ on it."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import tiny_task
from traffic import write_folder

from fedfleet.models import bootstrap, slices
from fedfleet.models.bootstrap import Tally, compare, estimates, holm, worst
from fedfleet.models.camera_steering import TASK as CAMERA
from fedfleet.models.motion_forecast import TASK, agent_frame
from fedfleet.models.slices_motion_forecast import manoeuvre, speed
from fedfleet.models.task import Metric, Samples
from fedfleet.protocol.errors import UsageError

ADE = Metric("ADE", "m", "lower")
TIME_S = np.arange(50) * 0.1


def samples(*tracks: np.ndarray) -> Samples:
    """Tracks float64[50, 2] in any frame, as samples in their own."""
    xy = np.stack(tracks)
    local = agent_frame(xy[:, :20], xy)
    return Samples(local[:, :20], local[:, 20:], np.ones(len(xy), dtype=np.bool_))


def along(speed_mps: np.ndarray, heading: np.ndarray) -> np.ndarray:
    """A track that goes with these speeds into these directions."""
    step = np.stack([np.cos(heading), np.sin(heading)], axis=-1) * speed_mps[:, None] * 0.1
    return np.concatenate([np.zeros((1, 2)), step[:-1].cumsum(axis=0)])


CONSTANT = np.full(50, 8.0)
AHEAD = np.full(50, 0.7)
LATER = np.clip((TIME_S - 2.0) / 3.0, 0.0, 1.0)

MANOEUVRES = {
    "straight": along(CONSTANT, AHEAD),
    "standing": along(np.zeros(50), AHEAD),
    "stop": along(np.clip(8.0 - 4.0 * (TIME_S - 1.9), 0, 8.0), AHEAD),
    "start": along(np.clip(2.5 * (TIME_S - 2.0), 0, 8.0), AHEAD),
    "turn-left": along(CONSTANT, AHEAD + 1.2 * LATER),
    "turn-right": along(CONSTANT, AHEAD - 1.2 * LATER),
    "lane-change": along(CONSTANT * 2, AHEAD + 0.15 * np.sin(np.pi * LATER)),
}


@pytest.mark.parametrize("name", MANOEUVRES)
def test_a_manoeuvre_is_what_the_track_does_whatever_way_it_points(name: str) -> None:
    track = MANOEUVRES[name]
    for turn in (0.0, 1.0, 3.0):
        cos, sin = math.cos(turn), math.sin(turn)
        turned = track @ np.array([[cos, sin], [-sin, cos]]) + [300.0, -40.0]
        assert manoeuvre(samples(turned)).tolist() == [name]


def test_mirroring_a_track_swaps_left_and_right_and_nothing_else() -> None:
    mirrored = [track * [1, -1] for track in MANOEUVRES.values()]
    swap = {"turn-left": "turn-right", "turn-right": "turn-left"}
    assert manoeuvre(samples(*mirrored)).tolist() == [swap.get(name, name) for name in MANOEUVRES]


def test_speed_is_that_of_the_last_half_second_known() -> None:
    tracks = [along(np.where(TIME_S < 1.4, 2.0, value), AHEAD) for value in (0.2, 3.0, 8.0, 12.0, 25.0)]
    assert speed(samples(*tracks)).tolist() == ["00-01", "01-05", "05-10", "10-15", "15+"]


def test_recordings_bring_drive_place_neighbours_and_type(tmp_path: Path) -> None:
    # given
    folder = write_folder(tmp_path / "pack", drives=2)
    # when
    found = TASK.samples(folder, ["town/d00", "coast/d01"])
    labels = slices.cut(TASK, found, region="town")
    # then
    assert set(found.traits["drive"]) == {"town/d00", "coast/d01"}
    assert set(labels) == {"manoeuvre", "speed_mps", "density", "type", "standing", "region"}
    assert set(labels["type"]) == {"unknown"}
    assert found.traits["neighbours"].min() >= 0
    assert len(found.traits["x_m"]) == len(found)


def test_sums_of_the_slices_of_a_dimension_add_up_to_all(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pack", drives=2)
    found = TASK.samples(folder, ["town/d00", "town/d01"])
    outputs = TASK.baseline(found.inputs)
    by_slice = slices.sums(TASK, outputs, found, slices.cut(TASK, found, region="town"))
    for dimension in ("manoeuvre", "speed_mps", "density", "region"):
        parts = [sums["ADE"] for name, sums in by_slice.items() if name.startswith(f"{dimension}=")]
        assert sum(total for total, _ in parts) == pytest.approx(by_slice["all"]["ADE"][0])
        assert sum(count for _, count in parts) == by_slice["all"]["ADE"][1] == int(found.judged.sum())


def test_a_task_without_slices_has_one_and_its_regions(tmp_path: Path) -> None:
    tiny_task.generate(tmp_path / "tiny")
    found = tiny_task.TASK.samples(tmp_path / "tiny", ["north/drive-00"])
    outputs = np.zeros((len(found), 1), dtype=np.float32)
    assert list(slices.sums(tiny_task.TASK, outputs, found, slices.cut(tiny_task.TASK, found))) == ["all"]
    labels = slices.cut(tiny_task.TASK, found, region="north")
    assert list(slices.sums(tiny_task.TASK, outputs, found, labels)) == ["all", "region=north"]


def test_a_task_s_own_slices_are_used_and_what_is_no_name_is_one_line(tmp_path: Path) -> None:
    tiny_task.generate(tmp_path / "tiny")

    class Sliced(tiny_task.TinyTask):
        slices: Mapping[str, object] = {
            "sign": lambda found: np.where(found.inputs[:, 0] > 0, "plus", "minus")
        }

    found = tiny_task.TASK.samples(tmp_path / "tiny", ["north/drive-00"])
    outputs = np.zeros((len(found), 1), dtype=np.float32)
    names = list(slices.sums(Sliced(), outputs, found, slices.cut(Sliced(), found)))
    assert names == ["all", "sign=minus", "sign=plus"]
    Sliced.slices = {"sign": lambda found: np.arange(len(found))}
    with pytest.raises(UsageError, match=r"slices tiny.sign: expected text\[64\], got int64\[64\]"):
        slices.cut(Sliced(), found)
    Sliced.slices = {"id": lambda found: np.arange(len(found)).astype(str)}
    many = tiny_task.TASK.samples(tmp_path / "tiny", [f"north/drive-{i:02d}" for i in range(6)])
    with pytest.raises(UsageError, match="slices by id: 384 names, expected at most 200"):
        list(slices.known(slices.cut(Sliced(), many)))


def test_a_package_adds_slices_by_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given an installed package with slices of a task that is not its own
    (tmp_path / "braking.py").write_text(
        "import numpy as np\n\n\ndef cut(samples):\n    return np.full(len(samples), 'brakes')\n"
    )
    about = tmp_path / "braking-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: braking\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[fedfleet.slices]\nmotion_forecast.braking = braking:cut\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    # then
    tracks = samples(*MANOEUVRES.values())
    assert set(slices.cut(TASK, tracks)["braking"]) == {"brakes"}
    assert "braking" not in slices.slicers(tiny_task.TASK)
    # when it takes the name of the task's own
    (about / "entry_points.txt").write_text("[fedfleet.slices]\nmotion_forecast.manoeuvre = braking:cut\n")
    with pytest.raises(UsageError, match="task motion_forecast has this dimension already"):
        slices.slicers(TASK)


def test_camera_frames_are_cut_by_steering_and_light() -> None:
    images = np.stack([np.full((3, 66, 200), value, dtype=np.uint8) for value in (10, 100, 150, 200, 255)])
    angles = np.array([[-0.9], [-0.3], [0.0], [0.3], [0.9]], dtype=np.float32)
    labels = slices.cut(CAMERA, Samples(images, angles, np.ones(5, dtype=np.bool_)))
    assert labels["steering"].tolist() == ["sharp-left", "left", "straight", "right", "sharp-right"]
    assert labels["light"].tolist() == ["000-059", "060-119", "120-179", "180-255", "180-255"]


# --- how sure ---


def tally(means: Mapping[str, np.ndarray], each: int = 10) -> Tally:
    """Slices with these means in drive after drive, over so many samples each."""
    drives = len(next(iter(means.values())))
    return {
        f"d{i:03d}": {name: {"ADE": (float(values[i]) * each, each)} for name, values in means.items()}
        for i in range(drives)
    }


def test_an_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    # given many data sets of 40 drives whose true mean is 2
    chance = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        found = estimates(tally({"all": chance.normal(2.0, 1.0, 40)}), [ADE], seed=1, draws=400)["all"][0]
        held += found.low <= 2.0 <= found.high  # type: ignore[operator]
    # then: 95 % of 200, within three of its standard deviations
    assert 180 <= held <= 199


def test_the_same_seed_gives_the_same_interval_and_another_drive_order_too() -> None:
    values = np.random.default_rng(1).normal(2, 1, 30)
    one = tally({"all": values, "type=bus": values + 1})
    turned = dict(reversed(list(one.items())))
    assert estimates(one, [ADE], seed=3) == estimates(turned, [ADE], seed=3)
    assert estimates(one, [ADE], seed=3) != estimates(one, [ADE], seed=4)


def test_one_drive_has_no_interval() -> None:
    (found,) = estimates(tally({"all": np.array([2.0])}), [ADE], seed=0)["all"]
    assert (found.value, found.low, found.high, found.drives, found.samples) == (2.0, None, None, 1, 10)


def test_a_metric_made_of_means_has_an_interval() -> None:
    metric = Metric("RMSE", "m", "lower", lambda means: math.sqrt(means["ADE"]))
    (found,) = estimates(tally({"all": np.array([3.0, 4.0, 5.0])}), [metric], seed=0)["all"]
    assert found.value == pytest.approx(2.0)
    assert found.low is not None
    assert math.sqrt(3) <= found.low < 2 < found.high <= math.sqrt(5)  # type: ignore[operator]


def test_the_worst_slice_is_named_and_few_samples_do_not_count_while_others_have_more() -> None:
    found = estimates(
        {"d": {"all": {"ADE": (20.0, 20)}, "a=x": {"ADE": (30.0, 15)}, "a=y": {"ADE": (50.0, 5)}}},
        [ADE],
        seed=0,
    )
    assert worst(found, ADE) == "a=x"
    assert worst(found, Metric("ADE", "", "higher")) == "a=x"
    assert worst({name: each for name, each in found.items() if name != "a=x"}, ADE) == "a=y"
    assert worst({}, ADE) is None


# --- two models ---


def test_a_slice_that_is_really_better_is_said_to_be_and_one_that_is_not_is_not() -> None:
    chance = np.random.default_rng(2)
    hard = chance.normal(5, 2, 40)  # drives differ far more than the models
    ours = tally({"all": hard, "a=x": hard, "a=y": hard})
    theirs = tally(
        {
            "all": hard - 0.1 + chance.normal(0, 0.1, 40),
            "a=x": hard + 0.2 + chance.normal(0, 0.1, 40),
            "a=y": hard + chance.normal(0, 0.1, 40),
        }
    )
    found = compare(ours, theirs, ADE, seed=0)
    assert [found[name].verdict for name in ("all", "a=x", "a=y")] == [
        "better",
        "worse",
        "no-difference-shown",
    ]
    assert found["a=x"].difference == pytest.approx(found["a=x"].other - found["a=x"].value)
    assert found["a=x"].low > 0  # type: ignore[operator]
    assert compare(ours, theirs, Metric("ADE", "", "higher"), seed=0)["a=x"].verdict == "better"


def test_models_that_do_not_differ_are_rarely_said_to() -> None:
    # given 150 pairs of models that differ by chance alone, on ten slices each
    chance = np.random.default_rng(5)
    false = 0
    for _ in range(150):
        zero = {f"a={i}": np.zeros(30) for i in range(10)}
        by_chance = {name: chance.normal(0, 1, 30) for name in zero}
        found = compare(tally(zero), tally(by_chance), ADE, seed=1, draws=2000)
        false += any(one.verdict != "no-difference-shown" for one in found.values())
    # then: in about 5 % of them one slice is said to differ (percentile bootstrap of 30 drives: a little more)
    assert false / 150 <= 0.13


def test_a_model_against_itself_differs_nowhere() -> None:
    one = tally({"all": np.random.default_rng(0).normal(2, 1, 30)})
    found = compare(one, one, ADE, seed=0)["all"]
    assert (found.difference, found.p, found.verdict) == (0.0, 1.0, "no-difference-shown")


def test_few_drives_cannot_show_a_difference() -> None:
    ours, theirs = tally({"all": np.full(4, 1.0)}), tally({"all": np.full(4, 2.0)})
    assert compare(ours, theirs, ADE, seed=0)["all"].p_corrected == pytest.approx(1 / 8)


def test_holm_corrects_for_the_number_of_slices() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def test_models_judged_on_other_samples_are_our_error() -> None:
    with pytest.raises(ValueError, match="expected answers to the same samples"):
        compare(tally({"all": np.ones(3)}), tally({"all": np.ones(3)}, each=5), ADE, seed=0)


def test_many_drives_are_drawn_in_parts_of_bounded_size() -> None:
    parts = list(bootstrap._weights(1000, 10_000, 3))
    assert [part.shape for part in parts] == [(4000, 1000), (4000, 1000), (2000, 1000)]
    assert all((part.sum(axis=1) == 1000).all() for part in parts)
