"""Names that differ only in what an id has not: they stay two drives, two places, two cars; indexes side by side."""

import zipfile
from collections import Counter
from pathlib import Path

import argoverse
import numpy as np
import pytest
import recorded
import test_openscenario
import tubs
from hypothesis import given
from hypothesis import strategies as st

from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.ids import is_id
from fedfleet.scenarios.donkey import open_camera
from fedfleet.scenarios.places import place_id, place_ids
from fedfleet.scenarios.reading import open_recordings, read
from fedfleet.scenarios.records import Scenario

TRACKS = recorded.made(11, tracks=4, frames=60)
OTHER = recorded.made(12, tracks=4, frames=60)
PAIRS = [
    ("Monday", "monday"),
    ("DR_A 1", "DR_A-1"),
    ("München", "Munchen"),
    ("早_2024-03", "晚_2024-03"),
    ("x" * 40 + "1", "x" * 40 + "2"),
    ("a.b", "a,b"),
]


@given(st.lists(st.text(min_size=1, max_size=60), max_size=12), st.randoms())
def test_every_name_has_an_id_of_its_own_in_whatever_order(names: list[str], chance: object) -> None:
    ids = place_ids(names)
    chance.shuffle(names)  # type: ignore[attr-defined]
    assert place_ids(names) == ids
    assert all(is_id(one) for one in ids.values())
    import unicodedata

    composed = {unicodedata.normalize("NFC", name) for name in names}
    assert len(set(ids.values())) == len(composed)
    for name in names:
        if is_id(name) and place_id(name) == name:
            assert ids[name] == name


def drives(folder: Path) -> list[Scenario]:
    """One scenario of each drive; nothing was left out."""
    found = {(scenario.region, scenario.drive): scenario for scenario in read(folder)}
    assert open_recordings(folder).account.rows == []
    assert len(open_recordings(folder).drives) == len(found)
    return [*found.values()]


@pytest.mark.parametrize("pair", PAIRS)
def test_two_places_are_two_places(tmp_path: Path, pair: tuple[str, str]) -> None:
    for name, tracks in zip(pair, (TRACKS, OTHER), strict=True):
        recorded.interaction(tmp_path / "interaction", tracks, name)
        recorded.ngsim(tmp_path / "ngsim" / name, tracks, None)
        recorded.commonroad(tmp_path / "commonroad" / name, tracks, f"USA_{tracks is OTHER}-1_1_T-1")
    for kind in ("interaction", "ngsim", "commonroad"):
        found = drives(tmp_path / kind)
        assert len({scenario.region for scenario in found}) == 2, kind
        assert {len(scenario.track_ids) for scenario in found} == {4}


@pytest.mark.parametrize("pair", PAIRS)
def test_two_recordings_are_two_drives(tmp_path: Path, pair: tuple[str, str]) -> None:
    """Case 06, for every reader that names drives after files or after what the publisher wrote in them."""
    (tmp_path / "w").mkdir()
    (tmp_path / "x").mkdir()
    for name, tracks in zip(pair, (TRACKS, OTHER), strict=True):
        (tmp_path / "w" / f"{name}.tfrecord").write_bytes(
            recorded.tfrecord(recorded.waymo_scenario(tracks, name))
        )
        recorded.ngsim(tmp_path / "n" / str(tracks is OTHER), tracks, f'"{name}"')
        whole = test_openscenario.tracks(3 + (tracks is OTHER))
        stories = "".join(
            test_openscenario.event(one, test_openscenario.follow(xy)) for one, xy in whole.items()
        )
        text = test_openscenario.xosc(dict.fromkeys(whole, test_openscenario.CAR), stories)
        (tmp_path / "x" / f"{name}.xosc").write_text(text)
    for kind in ("w", "n", "x"):
        found = drives(tmp_path / kind)
        assert len(found) == 2, kind
        assert found[0].xy.tobytes() != found[1].xy.tobytes()


@pytest.mark.parametrize("pair", PAIRS)
def test_two_bags_are_two_drives(tmp_path: Path, pair: tuple[str, str]) -> None:
    test_bags = pytest.importorskip("test_bags")
    for name in pair:
        test_bags.write_mcap(tmp_path / f"{name}.mcap", test_bags.scenes(test_bags.tracks()))
    found = drives(tmp_path)
    assert len(found) == 2
    assert all(len(scenario.track_ids) == len(test_bags.tracks()) for scenario in found)


@pytest.mark.parametrize("pair", PAIRS)
def test_two_cars_are_two_cars(tmp_path: Path, pair: tuple[str, str]) -> None:
    pytest.importorskip("PIL", reason="Pillow is not installed (extra scenarios)")
    made = tubs.files(30)
    for name in pair:
        tubs.write_zip(tmp_path / f"hall-{name}.zip", made)
    found = open_camera(tmp_path)
    assert found.account.rows == []
    assert len({block.tub.car for block in found.blocks.values()}) == 2
    assert {block.tub.region for block in found.blocks.values()} == {"hall"}


def test_two_names_of_an_index_are_two_drives(tmp_path: Path) -> None:
    for name in ("1", "2", "3"):
        (tmp_path / f"{name}.csv").write_text(argoverse.text(argoverse.rows()))
    rows = "1,MIA,mia-w,Monday\n2,MIA,mia-w,monday\n3,MIA,mia-e,D_1\n"
    (tmp_path / "index.csv").write_text("scenario,city,district,drive\n" + rows)
    assert len(drives(tmp_path)) == 3


def test_the_same_number_in_two_data_sets_is_two_recordings(tmp_path: Path) -> None:
    recorded.highd(tmp_path / "a", TRACKS, "01")
    recorded.ind(tmp_path / "b", OTHER, "01")
    assert len(drives(tmp_path)) == 2


def test_the_same_name_twice_is_refused_once(tmp_path: Path) -> None:
    recorded.interaction(tmp_path / "a", TRACKS, "Place")
    recorded.interaction(tmp_path / "b", OTHER, "Place")
    assert len(read(tmp_path)) == 1
    (row,) = open_recordings(tmp_path).account.rows
    assert row.text.startswith("duplicate-drive: drive place/place-000 is in a/Place/")


# --- NGSIM: a number that was given again ---


def again(folder: Path, *, pause: int, first: int = 0, frames: int = 60) -> Path:
    """Vehicle 2 is seen from frame 0 on, and another of its number after a pause, its Frame_ID from `first` on."""
    recorded.ngsim(folder, [recorded.Track(t.number, t.type, 0, OTHER[0].xy[:60] + t.number) for t in OTHER])
    path = folder / "trajectories.csv"
    rows = [line.split(",") for line in path.read_text().splitlines() if line.startswith("2,")]
    for number, row in enumerate(rows[:frames]):
        row[1] = str(first + number + 1)
        row[3] = str(int(row[3]) + 100 * (60 + pause))
        row[6] = str(float(row[6]) + 3000)
    path.write_text(path.read_text() + "".join(",".join(row) + "\n" for row in rows[:frames]))
    return folder


@pytest.mark.parametrize("first", [0, 60, 500])
def test_a_number_given_again_is_another_vehicle(tmp_path: Path, first: int) -> None:
    """Case 29: for as long as the first, so that Total_Frames does not tell them apart."""
    found = read(again(tmp_path, pause=120, first=first))
    seen = Counter(track for scenario in found for track in scenario.track_ids)
    assert set(seen) == {"1", "2", "2-2", "3", "4"}
    for scenario in found:
        assert np.nanmax(np.abs(np.diff(scenario.xy, axis=1)), initial=0) < 10
    assert "reused-number" not in open_recordings(tmp_path).problems


def test_a_vehicle_whose_frames_and_times_disagree_is_left_out_and_counted(tmp_path: Path) -> None:
    found = read(again(tmp_path, pause=2, first=500))
    assert {track for scenario in found for track in scenario.track_ids} == {"1", "3", "4"}
    assert open_recordings(tmp_path).problems["reused-number"] == 1
    # and where that is all of them, the file is refused
    path = recorded.ngsim(tmp_path / "one", TRACKS[:1]) / "trajectories.csv"
    path.write_text(path.read_text().replace("\n1,30,", "\n1,60,"))
    with pytest.raises(UsageError, match=r"two-rates: trajectories\.csv: expected 10 Hz, vehicle 1"):
        read(tmp_path / "one")


# --- two formats, each with its index.csv (row 35) ---


def _both(folder: Path, *, argoverse_index: str, commonroad_index: str) -> Path:
    (folder / argoverse_index).parent.mkdir(parents=True, exist_ok=True)
    (folder / commonroad_index).parent.mkdir(parents=True, exist_ok=True)
    scenarios = argoverse.scenarios("MIA")
    argoverse.write_zip(
        folder / Path(argoverse_index).parent / "MIA.zip",
        {f"{name}.csv": text for name, text in scenarios.items()},
    )
    (folder / argoverse_index).write_text(argoverse.index({"MIA": sorted(scenarios, key=int)}))
    with zipfile.ZipFile(folder / Path(commonroad_index).parent / "USA.zip", "w") as archive:
        for name in "ABC":
            title = f"USA_{name}-1_1_T-1"
            archive.writestr(f"{title}.xml", recorded.commonroad_text(TRACKS, title))
    rows = "".join(
        f"Road 5,USA_{name}-1_1_T-1.xml,G{group}\n" for name, group in zip("ABC", "112", strict=True)
    )
    (folder / commonroad_index).write_text("location,file,overlap_group\n" + rows)
    return folder


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("index.csv", "index-commonroad.csv"),
        ("index-argoverse1.csv", "index.csv"),
        ("index-argoverse1.csv", "INDEX-CommonRoad.CSV"),
        ("a/index.csv", "c/index.csv"),
        ("index.csv", "c/index.csv"),
        ("a/index.csv", "index.csv"),
    ],
)
def test_each_format_reads_its_own_index(tmp_path: Path, first: str, second: str) -> None:
    found = open_recordings(_both(tmp_path, argoverse_index=first, commonroad_index=second))
    assert found.account.rows == []
    counts = {key: drive.recordings for key, drive in found.drives.items() if key.startswith("road-5")}
    assert counts == {"road-5/g1": 2, "road-5/g2": 1}
    assert sum(key.startswith("mia-w/mia-d") for key in found.drives) == 5


def test_an_index_of_another_format_is_not_taken_for_ones_own(tmp_path: Path) -> None:
    _both(tmp_path, argoverse_index="index.csv", commonroad_index="index-commonroad.csv")
    (tmp_path / "index-commonroad.csv").unlink()
    found = open_recordings(tmp_path)
    assert {key for key in found.drives if key.startswith("usa")} == {f"usa-{x}/usa-{x}-1" for x in "abc"}
    assert found.account.rows == []
