"""The account of a folder: every file below it is read, refused with a reason, or listed; nothing third."""

import gzip
import io
import json
import re
import zipfile
from pathlib import Path

import argoverse
import numpy as np
import pytest
import recorded
import traffic
import tubs
import zstandard
from typer.testing import CliRunner

from fedfleet.cli import data as shared
from fedfleet.cli.config import load
from fedfleet.cli.main import app
from fedfleet.models import prepared
from fedfleet.protocol.errors import UsageError
from fedfleet.scenarios.donkey import open_camera
from fedfleet.scenarios.pack import sumo_pack
from fedfleet.scenarios.reading import open_recordings, read
from fedfleet.scenarios.tree import MAX_DEPTH, walk

TRACKS = recorded.made(11, tracks=4, frames=60)
SCENARIO = argoverse.text(argoverse.rows())
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def rows(folder: Path) -> dict[str, str]:
    """The reasons of all that is not read, by path."""
    read(folder)
    return {row.path: row.reason for row in open_recordings(folder).account.rows}


def run(*arguments: str) -> tuple[int, str]:
    """The exit code and what is said; an error's one line at the end."""
    done = CliRunner().invoke(app, [*arguments], env={"COLUMNS": "200"})
    if isinstance(done.exception, UsageError):
        return 2, f"{done.output}{done.exception}"
    return done.exit_code, done.output


def content(folder: Path) -> list[tuple[str, bytes]]:
    try:
        return [(scenario.scenario_id, scenario.xy.tobytes()) for scenario in read(folder)]
    except UsageError:
        return []


# --- read in spite of its name or place ---


def test_endings_in_capitals_are_read(tmp_path: Path) -> None:
    """Case 01: Windows tools and cameras write PIT.ZIP."""
    argoverse.write_zip(tmp_path / "MIA.zip", {"MIA/1.csv": SCENARIO})
    argoverse.write_zip(tmp_path / "MORE.ZIP", {"MIA/2.CSV": SCENARIO})
    (tmp_path / "3.Csv").write_text(SCENARIO)
    traffic.write_table(tmp_path / "A.PARQUET", [traffic.scenario()])
    assert sorted(scenario.scenario_id for scenario in read(tmp_path)) == ["1", "2", "3", "s0"]
    assert rows(tmp_path) == {}


def test_a_folder_is_looked_through_however_deep_its_parts_lie(tmp_path: Path) -> None:
    """Case 04: a second place lies one level deeper than the first."""
    recorded.interaction(tmp_path, TRACKS, "Place_A")
    recorded.interaction(tmp_path / "more" / "of" / "it", TRACKS, "Place_B")
    recorded.ngsim(tmp_path / "a" / "b" / "ngsim", TRACKS, None)
    traffic.write_table(tmp_path / "x" / "y.parquet", [traffic.scenario()]) if (
        tmp_path / "x"
    ).mkdir() else None
    assert {drive.region for drive in open_recordings(tmp_path).drives.values()} == {
        "place-a",
        "place-b",
        "ngsim",
    }


def test_what_lies_deeper_than_is_looked_is_named(tmp_path: Path) -> None:
    recorded.interaction(tmp_path, TRACKS)
    deep = tmp_path.joinpath(*["d"] * (MAX_DEPTH + 1))
    recorded.interaction(deep, TRACKS, "Place_B")
    assert rows(tmp_path) == {"/".join(["d"] * (MAX_DEPTH + 1)): "too-deep"}


@pytest.mark.parametrize(("ending", "pack"), [("gz", gzip.compress), ("zst", zstandard.compress)])
def test_packed_text_is_read(tmp_path: Path, ending: str, pack: object) -> None:
    recorded.highd(tmp_path / "plain", TRACKS)
    (tmp_path / "packed").mkdir()
    for path in (tmp_path / "plain").iterdir():
        (tmp_path / "packed" / f"{path.name}.{ending}").write_bytes(pack(path.read_bytes()))  # type: ignore[operator]
    for one, other in zip(read(tmp_path / "plain"), read(tmp_path / "packed"), strict=True):
        np.testing.assert_array_equal(one.xy, other.xy)


def test_packed_text_that_is_cut_or_a_bomb_is_refused(tmp_path: Path) -> None:
    recorded.interaction(tmp_path, TRACKS)
    good = (tmp_path / "DR_Test" / "vehicle_tracks_000.csv").read_bytes()
    for name, data in {
        "cut.csv.gz": gzip.compress(SCENARIO.encode())[:-9],
        "cut.csv.zst": zstandard.compress(SCENARIO.encode())[:-9],
        "vehicle_tracks_001.csv.gz": gzip.compress(good + b"\n" * 2**27),
    }.items():
        (tmp_path / name).write_bytes(data)
    reasons = rows(tmp_path)
    assert reasons["vehicle_tracks_001.csv.gz"] == "zip-bomb"
    assert set(reasons) == {"cut.csv.gz", "cut.csv.zst", "vehicle_tracks_001.csv.gz"}


# --- named ---

LEFT: dict[str, tuple[bytes, str]] = {
    "b.mcap.zstd": (b"\x28\xb5\x2f\xfd", "packed"),
    "c.bag": (b"#ROSBAG V2.0\n", "ros1-bag"),
    "d.mcap.active": (b"\x89MCAP0\r\n", "unfinished"),
    "e.csv.part": (b"TIMESTAMP", "unfinished"),
    "trajectories-0750am.txt": (b"2 13 437 1118846980200\n", "unknown-file"),
    "sub/other.csv": (b"a,b\n1,2\n", "unknown-file"),
    "sub/empty.csv": (b"", "empty-file"),
    "sub/login.csv": (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "web-page"),
    "sub/pointer.csv": (LFS.encode(), "not-fetched"),
    "sub/annex.csv": (b"/annex/objects/SHA256E-s123--abc.csv\n", "not-fetched"),
    "sub/9.csv.dvc": (b"outs:\n- md5: 1\n  path: 9.csv\n", "not-fetched"),
    "data.tar.gz": (b"\x1f\x8b", "packed"),
    "data.7z": (b"7z", "packed"),
    "tracks.xlsx": (b"PK", "spreadsheet"),
    "DR_Bad/vehicle_tracks_000.csv": (b"", "empty-file"),
    "scenario_1.parquet": (b"<html>", "web-page"),
    "table.parquet": (LFS.encode(), "not-fetched"),
    "zeros.csv": (bytes(8192), "only-zeros"),
    "old/record_1.json": (b"{}", "old-tub"),
    "index.csv": (b"a,b\n1,2\n", "unused-index"),
    "x.zip": (b"<html>", "web-page"),
    "sd_x.pkl": (b"", "empty-file"),
    "a.tfrecord": (b"", "empty-file"),
    "b.xosc": (b"<!doctype html><html>", "web-page"),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_not_read_is_named_with_its_reason(tmp_path: Path, name: str) -> None:
    # given one good recording and one file that is none
    recorded.interaction(tmp_path, TRACKS)
    data, reason = LEFT[name]
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(data)
    # when / then
    assert rows(tmp_path) == {name: reason}
    assert len(read(tmp_path)) == 1


def test_all_of_them_together_are_told_by_list_and_check(tmp_path: Path) -> None:
    recorded.interaction(tmp_path, TRACKS)
    for name, (data, _) in LEFT.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    for command in ("list", "check"):
        code, said = run("scenarios", command, "--scenarios", str(tmp_path))
        assert code == 0, said
        assert f"not read: {len(LEFT)} files" in said
        assert "ros1-bag: c.bag is a ROS 1 bag" in said
        code, told = run("scenarios", command, "--scenarios", str(tmp_path), "--json")
        assert {row["path"]: row["reason"] for row in json.loads(told)["not_read"]} == {
            name: reason for name, (_, reason) in LEFT.items()
        }
    code, said = run("scenarios", "check", "--strict", "--scenarios", str(tmp_path))
    assert code == 2
    assert f"{len(LEFT)} files are not read" in said


def test_a_link_to_nothing_is_named_and_an_editors_lock_is_nobodys(tmp_path: Path) -> None:
    """Case 18: a recording under git-annex that was not fetched; Emacs' lock files are such links too."""
    argoverse.write_zip(tmp_path / "MIA.zip", {"MIA/1.csv": SCENARIO})
    (tmp_path / "103.csv").symlink_to("../.git/annex/objects/absent")
    (tmp_path / ".#101.csv").symlink_to("someone@host.1234:5678")
    (tmp_path / "self.csv").symlink_to("self.csv")
    (tmp_path / "up").symlink_to("..")
    assert rows(tmp_path) == {"103.csv": "link-to-nothing", "self.csv": "link-to-nothing", "up": "link-loop"}


def test_names_that_say_what_they_are_are_not_listed(tmp_path: Path) -> None:
    recorded.interaction(tmp_path, TRACKS)
    for name in (
        "README.md", "readme.txt", "LICENSE", "CITATION.cff", ".DS_Store", "Thumbs.db", "desktop.ini", "._a.csv",
        "~$tracks.csv", ".~lock.tracks.csv#", "a.csv~", ".gitattributes", "__MACOSX/._a.csv", ".git/objects/1",
        "DR_Test.osm", "maps/DR_Test.osm", "SHA256SUMS",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert rows(tmp_path) == {}


def test_many_of_a_kind_are_one_row(tmp_path: Path) -> None:
    recorded.interaction(tmp_path, TRACKS)
    (tmp_path / "frames").mkdir()
    for number in range(40):
        (tmp_path / "frames" / f"{number}.jpg").write_bytes(b"\xff\xd8")
    read(tmp_path)
    (row,) = open_recordings(tmp_path).account.rows
    assert (row.path, row.reason, row.files) == ("frames", "unknown-file", 40)


def test_what_a_zip_holds_beside_recordings_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "MIA.zip", "w") as archive:
        for name in (
            "MIA/1.csv",
            "__MACOSX/MIA/._1.csv",
            "README.txt",
            "notes.txt",
            "inner.zip",
            "MIA/2.json",
        ):
            archive.writestr(name, SCENARIO if name == "MIA/1.csv" else "x")
    made = recorded.highd(tmp_path / "made", TRACKS)
    with zipfile.ZipFile(tmp_path / "highD.zip", "w") as archive:
        for path in made.iterdir():
            archive.write(path, f"data/{path.name}")
            path.unlink()
        archive.writestr("data/99_other.csv", "a,b\n")
    assert rows(tmp_path) == {
        f"MIA.zip: {name}": "unknown-file" for name in ("notes.txt", "inner.zip", "MIA/2.json")
    } | {"highD.zip: data/99_other.csv": "unknown-file"}


# --- one bad file refuses itself ---


def test_one_bad_file_of_a_format_refuses_itself(tmp_path: Path) -> None:
    # given two recordings of each format, one of each damaged
    for place in ("Place_A", "Place_B"):
        recorded.interaction(tmp_path / "i", TRACKS, place)
    for number in ("01", "02"):
        recorded.highd(tmp_path / "h", TRACKS, number)
    for name in ("a", "b"):
        recorded.ngsim(tmp_path / "n" / name, TRACKS, None)
        recorded.commonroad(tmp_path / "c", TRACKS, f"USA_{name.upper()}-1_1_T-1")
        (tmp_path / "w").mkdir(exist_ok=True)
        (tmp_path / "w" / f"{name}.tfrecord").write_bytes(
            recorded.tfrecord(recorded.waymo_scenario(TRACKS, name * 8))
        )
    bad = {
        "i/Place_B/vehicle_tracks_000.csv": "malformed-csv",
        "h/02_tracks.csv": "",
        "n/b/trajectories.csv": "malformed-csv",
        "c/USA_B-1_1_T-1.xml": "malformed-xml",
        "w/b.tfrecord": "truncated-record",
    }
    for name in bad:
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[: -len(path.read_bytes()) // 3])
    # when
    found = read(tmp_path)
    # then the other five are there, and each of the bad is in the account, once
    assert len({(scenario.region, scenario.drive) for scenario in found}) == 5
    told = [row.text for row in open_recordings(tmp_path).account.rows]
    assert len(told) == 5
    for name in bad:
        assert sum(name in text for text in told) == 1, (name, told)


def test_where_nothing_is_left_the_first_reason_ends_the_command(tmp_path: Path) -> None:
    for place in ("Place_A", "Place_B"):
        recorded.interaction(tmp_path, TRACKS, place)
        for path in (tmp_path / place).iterdir():
            path.write_text(path.read_text().replace("car", "car\0").replace(",0,0\n", ",0\n"))
    code, said = run("scenarios", "check", "--scenarios", str(tmp_path))
    assert code == 2
    assert re.search(
        r"malformed-csv: Place_A/\w+\.csv line 2: expected 8 cells, got 7 \(and \d+ more", said
    ), said


def test_check_goes_on_after_a_drive_that_cannot_be_read(tmp_path: Path) -> None:
    for number in ("01", "02"):
        recorded.highd(tmp_path, recorded.made(1, frames=200), number)
    path = tmp_path / "01_tracks.csv"
    path.write_text(path.read_text().replace(",4.0,2.0", ",wide,2.0", 1))
    code, said = run("scenarios", "check", "--scenarios", str(tmp_path))
    assert code == 0, said
    assert "2 drives" in said
    assert "malformed-csv: 01_tracks.csv line 2: expected a number of width, got 'wide'" in said


# --- of another task, or the wrong folder ---


@pytest.fixture(scope="module")
def tub() -> dict[str, bytes]:
    pytest.importorskip("PIL", reason="Pillow is not installed (extra scenarios)")
    return tubs.files(90)


def test_tubs_among_tracks_and_tracks_among_tubs_are_named_with_their_task(
    tmp_path: Path, tub: dict[str, bytes]
) -> None:
    recorded.interaction(tmp_path, TRACKS)
    tubs.write_folder(tmp_path / "cars" / "hall-red", tub)
    tubs.write_zip(tmp_path / "hall-blue.zip", tub)
    read(tmp_path)
    told = [row.text for row in open_recordings(tmp_path).account.rows]
    assert told == [
        "other-task: cars/hall-red is a Donkey tub, of another task: try --task camera_steering",
        "other-task: hall-blue.zip is a Donkey tub, of another task: try --task camera_steering",
    ]
    found = open_camera(tmp_path)
    assert {block.tub.car for block in found.blocks.values()} == {"red", "blue"}
    assert {row.path: row.reason for row in found.account.rows} == {
        f"DR_Test/{walker}_tracks_000.csv": "other-task" for walker in ("vehicle", "pedestrian")
    }
    assert "try --task motion_forecast" in found.account.rows[0].text


def test_a_task_that_finds_nothing_says_which_would(tmp_path: Path, tub: dict[str, bytes]) -> None:
    tubs.write_folder(tmp_path / "a" / "hall-red", tub)
    with pytest.raises(
        UsageError, match=r"no recordings: 92 × other-task: hall-red is a Donkey tub.*camera_steering"
    ):
        open_recordings(tmp_path / "a")
    recorded.interaction(tmp_path / "b", TRACKS)
    with pytest.raises(
        UsageError, match=r"no recordings: 2 × other-task: .* is of INTERACTION.*motion_forecast"
    ):
        open_camera(tmp_path / "b")
    with pytest.raises(UsageError, match=r"it lies in a Donkey tub: give the folder one level up"):
        open_camera(tmp_path / "a" / "hall-red" / "images")


def test_an_old_tub_beside_a_new_one_is_named(tmp_path: Path, tub: dict[str, bytes]) -> None:
    tubs.write_folder(tmp_path / "hall-red", tub)
    for number in range(9):
        (tmp_path / "tub_1").mkdir(exist_ok=True)
        (tmp_path / "tub_1" / f"record_{number}.json").write_text("{}")
        (tmp_path / "tub_1" / f"{number}_cam-image_array_.jpg").write_bytes(b"\xff\xd8")
    account = open_camera(tmp_path).account
    assert {row.reason: (row.path, row.files) for row in account.rows} == {
        "old-tub": ("tub_1", 9),
        "unknown-file": ("tub_1", 9),
    }


def test_a_bad_tub_refuses_itself(tmp_path: Path, tub: dict[str, bytes]) -> None:
    tubs.write_folder(tmp_path / "hall-red", tub)
    (tmp_path / "hall-blue.zip").write_bytes(b"PK\3\4 and no more")
    tubs.write_zip(tmp_path / "hall-green.zip", {**tub, "catalog_0.catalog": b""})
    assert {row.path: row.reason for row in open_camera(tmp_path).account.rows} == {
        "hall-blue.zip": "not-a-zip",
        "hall-green.zip": "no-frames",
    }


def test_whoever_splits_a_folder_says_what_of_it_is_not_read(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`compare`, `demo` and the others print one line."""
    monkeypatch.chdir(tmp_path)
    folder = traffic.write_folder(tmp_path / "data", drives=6)
    (folder / "c.bag").write_bytes(b"#ROSBAG V2.0\n")
    # when
    shared.split(load(None), folder)
    # then
    said = capfd.readouterr().err
    ask = f"`fedfleet scenarios check --scenarios {folder}` names them"
    assert said.splitlines() == [f"1 file in {folder} is not read (1 × ros1-bag): {ask}"]


def test_what_is_refused_while_it_is_prepared_is_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recordings are read in a process of its own, long after the folder was opened."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data"
    for number in ("01", "02"):
        recorded.highd(folder, recorded.made(1, frames=200), number)
    path = folder / "01_tracks.csv"
    path.write_text(path.read_text().replace(",4.0,2.0", ",wide,2.0", 1))
    # when
    drives = ["highd-2/highd-2-01", "highd-2/highd-2-02"]
    shared.prepare(load(None), folder, [shared.Job(tmp_path / "made", drives, ("train",))])
    # then
    assert prepared.open_meta(tmp_path / "made").counts["train_samples"] > 0
    said = capfd.readouterr().err
    assert "not read: malformed-csv: 01_tracks.csv line 2: expected a number of width, got 'wide'" in said


# --- nothing third ---


@pytest.mark.parametrize("seed", range(6))
def test_every_file_is_read_refused_or_listed(tmp_path: Path, seed: int) -> None:
    # given a folder in which anything lies anywhere
    chance = np.random.default_rng(seed)
    writers = [recorded.interaction, recorded.highd, recorded.commonroad, recorded.waymo, recorded.argoverse2]
    for number in range(5):
        place = tmp_path.joinpath(*(f"d{int(chance.integers(3))}" for _ in range(int(chance.integers(4)))))
        writers[number](place, recorded.made(seed * 10 + number, tracks=3, frames=30))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    for path in chance.choice(np.array(files, dtype=object), 3, replace=False):
        path.write_bytes(chance.bytes(int(chance.integers(0, 200))))
    for name in chance.choice(sorted(LEFT), 6, replace=False):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(LEFT[name][0])
    # when each file is taken away in turn
    recorded.ngsim(tmp_path / "good", recorded.made(seed, tracks=3, frames=30))
    whole = content(tmp_path)
    told = " ".join(row.path + row.detail for row in open_recordings(tmp_path).account.rows)
    for path in walk(tmp_path).files:
        where = path.relative_to(tmp_path).as_posix()
        if where in told or re.sub(r"01_\w+", "01_tracks.csv", where)[:-4] in told:
            continue  # a recording of three files is named by the one that is wrong
        # then one that the account does not name was read: without it, something else is there
        data = path.read_bytes()
        path.unlink()
        assert content(tmp_path) != whole, where
        path.write_bytes(data)


def test_a_zip_of_files_that_are_read_only_unpacked_says_so(tmp_path: Path) -> None:
    recorded.interaction(tmp_path, TRACKS)
    with zipfile.ZipFile(tmp_path / "bags.zip", "w") as archive:
        archive.writestr("monday.mcap", b"x")
    assert rows(tmp_path) == {"bags.zip": "packed"}


def test_a_stored_zip_of_nothing_is_named(tmp_path: Path) -> None:
    recorded.interaction(tmp_path, TRACKS)
    empty = io.BytesIO()
    zipfile.ZipFile(empty, "w").close()
    (tmp_path / "empty.zip").write_bytes(empty.getvalue())
    assert rows(tmp_path) == {"empty.zip": "empty-archive"}


def test_the_shipped_pack_is_read_whole() -> None:
    assert open_recordings(sumo_pack()).account.rows == []
