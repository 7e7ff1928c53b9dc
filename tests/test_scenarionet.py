"""ScenarioNet pickles of nuScenes: the real files against Python's own reader, and what is refused."""

import io
import os
import pickle  # the independent reading, restricted to the names that the files hold
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedfleet.scenarios import scenarionet
from fedfleet.scenarios.records import ScenarioError
from fedfleet.scenarios.tree import walk

KNOWN = {"_reconstruct", "ndarray", "dtype", "defaultdict", "int"}


class Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        assert name in KNOWN, f"{module}.{name}"
        return super().find_class(module, name)


def track(kind: str, category: str, xy: np.ndarray, valid: np.ndarray | None = None) -> dict[str, Any]:
    position = np.column_stack([xy, np.zeros(len(xy))])
    state = {"position": position, "valid": np.ones(len(xy)) if valid is None else valid}
    return {"type": kind, "state": state, "metadata": {"type": category}}


def scene(*, frames: int = 60, name: str = "scene-0001_a_b", **changed: Any) -> dict[str, Any]:
    line = np.column_stack([np.arange(frames) * 0.5, np.zeros(frames)])
    tracks = {
        "ego": track("VEHICLE", "vehicle.car", line),
        "one": track("VEHICLE", "vehicle.bus.rigid", line + 5, np.arange(frames) % 2),
        "two": track("PEDESTRIAN", "human.pedestrian.adult", line * 0.1),
        "cone": track("TRAFFIC_CONE", "movable_object.trafficcone", line * 0.0),
        "never": track("CYCLIST", "vehicle.bicycle", line, np.zeros(frames)),
    }
    metadata = {
        "dataset": "nuscenes",
        "map": "boston-seaport",
        "ts": np.arange(frames) / 10,
        "sdc_id": "ego",
        "tracks_to_predict": {"one": {"track_id": "one"}},
    }
    whole = {"id": name, "length": frames, "metadata": metadata, "tracks": tracks}
    for key, value in changed.items():
        (whole if key in whole else metadata)[key] = value
    return whole


def write(folder: Path, *scenes: dict[str, Any]) -> Path:
    for number, each in enumerate(scenes):
        (folder / f"sd_nuscenes_v1_{number}.pkl").write_bytes(pickle.dumps(each, 4))
    return folder


def read(folder: Path) -> list[Any]:
    recordings = scenarionet.scan(folder, scenarionet.detect(walk(folder)))
    return [scenario for key in recordings.drives for scenario in recordings.read(key)]


def test_kinds_types_and_positions(tmp_path: Path) -> None:
    # Given one file
    (scenario,) = read(write(tmp_path, scene()))
    # Then the car, the track to predict and the others are told apart; one that was never seen is not there
    assert scenario.track_ids == ("cone", "ego", "one", "two")
    assert scenario.kinds == ("OTHERS", "AV", "AGENT", "OTHERS")
    assert scenario.types == ("static", "vehicle", "bus", "pedestrian")
    assert (scenario.region, scenario.drive, scenario.scenario_id) == (
        "boston-seaport",
        "scene-0001",
        "scene-0001_a_b",
    )
    # Then positions are those of the file where they are valid
    one = scenario.xy[2]
    np.testing.assert_array_equal(one[1::2], [[5 + 0.5 * i, 5.0] for i in range(1, 60, 2)])
    assert np.isnan(one[::2]).all()


def test_files_of_one_scene_are_one_drive_and_long_ones_several_scenarios(tmp_path: Path) -> None:
    # Given two files of one scene, one of them 25 s long, and one of another
    folder = write(
        tmp_path,
        scene(frames=250, name="scene-0001"),
        scene(name="scene-0001_a_b"),
        scene(name="scene-0002_a_b", map="singapore-onenorth"),
    )
    # When
    recordings = scenarionet.scan(folder, scenarionet.detect(walk(folder)))
    # Then
    drives = {key: (drive.recordings, round(drive.seconds, 1)) for key, drive in recordings.drives.items()}
    assert drives == {"boston-seaport/scene-0001": (4, 31.0), "singapore-onenorth/scene-0002": (1, 6.0)}
    ids = [scenario.scenario_id for scenario in recordings.read("boston-seaport/scene-0001")]
    assert ids == ["scene-0001-00000", "scene-0001-00001", "scene-0001-00002", "scene-0001_a_b"]
    assert ids == sorted(ids)


def test_a_zip_of_them_reads_as_the_files(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    folder = write(tmp_path / "files", scene())
    (zips := tmp_path / "zips").mkdir()
    with zipfile.ZipFile(zips / "nuscenes.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(folder / "sd_nuscenes_v1_0.pkl", "nuscenes_0/sd_nuscenes_v1_0.pkl")
    (one,), (other,) = read(folder), read(zips)
    np.testing.assert_array_equal(one.xy, other.xy)


def test_the_real_files_against_pythons_own_reader(data_dir: Path) -> None:
    # Given the real files, read here
    folder = data_dir / "formats" / "scenarionet-nuscenes"
    whole = [Restricted(io.BytesIO(path.read_bytes())).load() for path in sorted(folder.glob("*.pkl"))]
    # When
    scenarios = read(folder)
    # Then
    assert [scenario.region for scenario in scenarios] == ["boston-seaport", "singapore-queenstown"]
    assert [(scenario.frames, scenario.rate_hz) for scenario in scenarios] == [(81, 10.0), (71, 10.0)]
    for scenario, expected in zip(scenarios, whole, strict=True):
        assert scenario.scenario_id == expected["id"]
        assert set(scenario.track_ids) == set(expected["tracks"])
        assert len(scenario.track_ids) == expected["metadata"]["number_summary"]["num_objects"]
        kinds = dict(zip(scenario.track_ids, scenario.kinds, strict=True))
        assert {name for name, kind in kinds.items() if kind == "AGENT"} == set(
            expected["metadata"]["tracks_to_predict"]
        )
        assert [name for name, kind in kinds.items() if kind == "AV"] == ["ego"]
        for name, xy in zip(scenario.track_ids, scenario.xy, strict=True):
            state = expected["tracks"][name]["state"]
            truth = np.where(state["valid"][:, None] > 0, state["position"][:, :2], np.nan)
            np.testing.assert_array_equal(xy, truth)


@pytest.mark.parametrize(
    ("changed", "reason", "text"),
    [
        ({"dataset": "waymo"}, "unknown-dataset", "expected dataset 'nuscenes', got 'waymo'"),
        ({"id": "train-1"}, "bad-name", "expected an id 'scene-NNNN…', got 'train-1'"),
        ({"map": None}, "missing-field", "expected a text 'map', got NoneType"),
        ({"ts": [0.0, 0.1]}, "missing-field", "expected an array 'ts' of 1 axes, got list"),
        ({"ts": np.r_[np.arange(30) / 10, 3 + np.arange(30) / 25]}, "two-rates", "expected one rate"),
        ({"ts": np.full(60, np.nan)}, "shuffled-frames", "rising time stamps"),
        ({"length": 59}, "missing-frames", "expected 60 frames as in 'ts', got length 59"),
        ({"sdc_id": "nobody"}, "missing-track", "expected track 'nobody'"),
        ({"tracks_to_predict": {"x": 1}}, "missing-track", "expected track 'x'"),
        ({"tracks": []}, "missing-field", "tracks: expected a dictionary, got list"),
        ({"tracks": {"ego": {}}}, "missing-field", "tracks ego state: expected a dictionary, got NoneType"),
        (
            {"tracks": {"ego": track("VEHICLE", "", np.ones((59, 2)))}},
            "missing-frames",
            "expected 60 positions",
        ),
    ],
)
def test_what_is_not_as_it_must_be_is_refused(
    tmp_path: Path, changed: dict[str, Any], reason: str, text: str
) -> None:
    with pytest.raises(ScenarioError) as refused:
        read(write(tmp_path, scene(**changed)))
    assert refused.value.reason == reason
    assert text in str(refused.value)


def test_nan_positions_are_refused(tmp_path: Path) -> None:
    whole = scene()
    whole["tracks"]["two"]["state"]["position"][7, 0] = np.nan
    with pytest.raises(ScenarioError, match="track two frame 7: expected finite x and y"):
        read(write(tmp_path, whole))


def test_a_scenario_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ScenarioError, match=r"duplicate-scenario: scenario scene-0001_a_b is in sd_nuscenes_v1_0"
    ):
        read(write(tmp_path, scene(), scene()))


def test_a_hostile_file_is_refused_and_nothing_is_called(tmp_path: Path) -> None:
    # Given a scene whose reading would leave a folder
    class Hostile:
        def __reduce__(self) -> tuple[Any, Any]:
            return os.mkdir, (str(tmp_path / "called"),)

    folder = write(tmp_path, scene(map=Hostile()))
    # When
    with pytest.raises(ScenarioError, match=r"unsafe-pickle: sd_nuscenes_v1_0.pkl.* it names posix.mkdir"):
        read(folder)
    # Then
    assert not (tmp_path / "called").exists()


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, scene()) / "sd_nuscenes_v1_0.pkl"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ScenarioError, match=r"malformed-pickle: sd_nuscenes_v1_0 ?.pkl"):
        read(tmp_path)


def test_other_pickles_are_not_of_this_format(tmp_path: Path) -> None:
    (tmp_path / "model.pkl").write_bytes(b"")
    assert scenarionet.detect(walk(tmp_path)) == ()
