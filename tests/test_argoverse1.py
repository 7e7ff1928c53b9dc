"""Argoverse 1: what is read is what was recorded, drive by drive; anything else is refused with its name."""

import re
import struct
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import argoverse
import numpy as np
import pytest
import traffic

from fedfleet.models import prepared
from fedfleet.models.motion_forecast import TASK
from fedfleet.protocol.errors import UsageError
from fedfleet.scenarios import argoverse1, members
from fedfleet.scenarios.argoverse1_drives import is_west, same_drive
from fedfleet.scenarios.partition import partition
from fedfleet.scenarios.prepare import Job, prepare
from fedfleet.scenarios.reading import open_recordings, read, stream
from fedfleet.scenarios.tree import walk

Lines = list[str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return argoverse.write_folder(tmp_path / "recordings")


def one(folder: Path, change: Callable[[Lines], Lines] = lambda lines: lines, **header: str) -> Path:
    """A folder of one zip with one scenario, its rows changed."""
    content = argoverse.text(change(argoverse.rows()), **header)
    argoverse.write_zip(folder / "MIA.zip", {"MIA/7.csv": content})
    (folder / "index.csv").write_text(argoverse.index({"MIA": ["7"]}))
    return folder


def refusal(folder: Path) -> str:
    """What is refused of a folder, a line each: the error where nothing is left, else its account."""
    try:
        read(folder)
        lines = [row.text for row in open_recordings(folder).account.rows]
    except UsageError as error:
        lines = [str(error)]
    assert lines
    assert not any("\n" in line for line in lines)
    return "\n".join(lines)


# --- what is read ---


def test_a_scenario_is_its_tracks_by_id_on_fifty_frames(folder: Path) -> None:
    scenario = read(folder)[0]
    assert (scenario.region, scenario.drive, scenario.scenario_id) == ("mia-e", "mia-d5", "11")
    assert scenario.track_ids == ("track-0", "track-1", "track-2", "track-3")
    assert scenario.kinds == ("AV", "AGENT", "OTHERS", "OTHERS")
    assert (scenario.rate_hz, scenario.frames, scenario.xy.dtype) == (10.0, 50, np.float64)
    assert scenario.t0_s == argoverse.EPOCH_S + 5 * 3600
    np.testing.assert_allclose(scenario.xy[1, :, 0], 5000 + 0.6 * np.arange(50))
    np.testing.assert_array_equal(scenario.xy[1, :, 1], 4.0)


def test_the_index_names_regions_and_drives(folder: Path) -> None:
    drives = open_recordings(folder).drives
    assert Counter(drive.region for drive in drives.values()) == dict.fromkeys(
        ("mia-e", "mia-w", "pit-e", "pit-w"), 5
    )
    assert drives["pit-w/pit-d0"].recordings == 2
    assert drives["pit-w/pit-d0"].seconds == 10.0


def test_without_an_index_the_rule_finds_the_same_drives(folder: Path) -> None:
    listed = {(s.scenario_id, s.region) for s in read(folder)}
    (folder / "index.csv").unlink()
    derived = read(folder)
    assert {(s.scenario_id, s.region) for s in derived} == listed
    assert {s.scenario_id for s in derived if s.drive == "mia-3"} == {"3", "4"}


@pytest.mark.parametrize("place", [".", "data"])
@pytest.mark.parametrize("indexed", [False, True])
def test_plain_files_are_read_as_zips_are(folder: Path, tmp_path: Path, place: str, indexed: bool) -> None:
    plain = tmp_path / "plain"
    (plain / place).mkdir(parents=True)
    for city in ("MIA", "PIT"):
        for name, content in argoverse.scenarios(city).items():
            (plain / place / f"{name}.csv").write_text(content)
    if indexed:
        (plain / "index.csv").write_text((folder / "index.csv").read_text())
    else:
        (folder / "index.csv").unlink()
    assert open_recordings(plain).drives == open_recordings(folder).drives
    for left, right in zip(stream(plain), stream(folder), strict=True):
        assert (left.scenario_id, left.track_ids, left.kinds) == (
            right.scenario_id,
            right.track_ids,
            right.kinds,
        )
        np.testing.assert_array_equal(left.xy, right.xy)


def test_a_track_seen_at_times_has_gaps_that_are_counted(tmp_path: Path) -> None:
    # given a track without frames 10 to 19 and one that ends early
    def thin(lines: Lines) -> Lines:
        return [
            line
            for i, line in enumerate(lines)
            if not ("track-2" in line and 10 <= i // 4 < 20) and not ("track-3" in line and i // 4 > 30)
        ]

    folder = one(tmp_path, thin)
    # when
    samples = TASK.samples(folder, ["mia-w/mia-d0"])
    # then
    assert len(samples) == 2
    assert samples.problems == {"gap": 1, "too-short": 1}


def test_time_stamps_jitter_and_the_frame_number_is_the_clock(tmp_path: Path) -> None:
    def jitter(lines: Lines) -> Lines:
        cells = [line.split(",", 1) for line in lines]
        start = float(cells[0][0])
        return [f"{start + 2.8 * (float(t) - start):.6f},{rest}" for t, rest in cells]

    (scenario,) = read(one(tmp_path, jitter))
    np.testing.assert_allclose(np.diff(scenario.xy[0, :, 0]), 0.5)


def test_the_index_alone_is_read_to_list_drives(folder: Path) -> None:
    # given a scenario whose bytes are damaged, in a zip whose directory is whole
    path = folder / "MIA.zip"
    content = bytearray(path.read_bytes())
    content[60:160] = bytes(100)
    path.write_bytes(content)
    # when
    index = TASK.index(folder)
    # then
    assert (len(index.drives), index.is_counted, index.problems) == (20, False, {})
    assert len(TASK.samples(folder, ["pit-w/pit-d0"])) == 8
    whole = len(TASK.samples(folder, ["mia-w/mia-d1"]))
    assert len(TASK.samples(folder, ["mia-w/mia-d0"])) == whole // 2
    (row,) = open_recordings(folder).account.rows
    assert re.match(r"damaged-member: MIA\.zip: MIA/1\.csv: expected \d+ bytes, cannot be", row.text)


def test_listing_drives_needs_no_pyarrow(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from fedfleet.models.motion_forecast import TASK\n"
        f"print(len(TASK.index(Path({str(folder)!r})).drives), 'pyarrow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["20", "False"]


def test_a_file_that_changed_is_read_again(folder: Path) -> None:
    assert len(open_recordings(folder).drives) == 20
    (folder / "PIT.zip").unlink()
    argoverse.write_folder(folder, cities=["MIA"])
    assert len(open_recordings(folder).drives) == 10


# --- the rule for drives and regions ---


def test_scenarios_are_of_one_drive_when_the_car_could_get_there() -> None:
    t0_s = np.array([0.0, 10.0, 20.0, 20.0, 49.9, 79.9])
    x_m = np.array([0.0, 210.0, 420.0, 5000.0, 420.0, 420.0])
    drive = same_drive(t0_s, np.stack([x_m, np.zeros(6)], axis=1))
    np.testing.assert_array_equal(drive, [0, 0, 0, 3, 0, 5])


def test_the_order_of_files_does_not_matter() -> None:
    chance = np.random.default_rng(5)
    t0_s, xy = chance.uniform(0, 900, 200), chance.uniform(0, 900, (200, 2))
    order = chance.permutation(200)
    mixed = same_drive(t0_s[order], xy[order])
    np.testing.assert_array_equal(order[mixed], same_drive(t0_s, xy)[order])


def test_a_drive_counts_whole_to_one_side_and_a_tie_to_the_east() -> None:
    x_m = np.array([0.0, 1.0, 9.0, 0.0, 9.0, 8.0, 9.0])
    drive = np.array([0, 0, 0, 3, 3, 5, 5])
    np.testing.assert_array_equal(is_west(x_m, drive), [True] * 3 + [False] * 4)


# --- what is refused: the scenario ---


def _without(frame: int) -> Callable[[Lines], Lines]:
    return lambda lines: lines[: 4 * frame] + lines[4 * frame + 4 :]


def _cell(row: int, column: int, value: str) -> Callable[[Lines], Lines]:
    def change(lines: Lines) -> Lines:
        cells = lines[row].split(",")
        cells[column] = value
        return [*lines[:row], ",".join(cells), *lines[row + 1 :]]

    return change


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_without(20), "missing-frames: {}expected 50 frames (TIMESTAMP values) at 10 Hz, got 49 over 4.9 s"),
        (_without(49), "missing-frames: {}expected 50 frames (TIMESTAMP values) at 10 Hz, got 49 over 4.8 s"),
        (
            lambda lines: lines[:80],
            "missing-frames: {}expected 50 frames (TIMESTAMP values) at 10 Hz, got 20",
        ),
        (lambda _: [], "missing-frames: {}expected 50 frames, got no row"),
        (
            lambda lines: lines[:40] + lines[80:120] + lines[40:80] + lines[120:],
            "shuffled-frames: {}row 82: expected rows in the order of time, got a step back",
        ),
        (
            lambda lines: [*lines[:9], lines[8], *lines[9:]],
            "duplicate-row: {}track track-0 frame 2: expected 1 row, got 2",
        ),
        (_cell(8, 3, "nan"), "nan-value: {}row 10: expected a finite X, got nan"),
        (_cell(8, 4, ""), "nan-value: {}row 10: expected a finite Y, got nan"),
        (_cell(8, 4, "inf"), "nan-value: {}row 10: expected a finite Y, got inf"),
        (_cell(8, 4, "1e9"), "far-position: {}scenario '7': track 'track-0' frame 2: a coordinate is beyond"),
        (_cell(8, 3, "west"), "malformed-csv: {}line 10: expected a number of X, got 'west'"),
        (
            lambda lines: [*lines[:9], lines[9] + ",1", *lines[10:]],
            "malformed-csv: {}line 11: expected 6 cells, got 7",
        ),
        (lambda lines: [*lines[:-1], lines[-1][:30]], "malformed-csv: {}line 201: expected 6 cells, got 3"),
        (_cell(8, 5, "PIT"), "wrong-city: {}expected CITY_NAME MIA, got MIA, PIT"),
        (_cell(8, 2, "BUS"), "bad-kind: {}expected OBJECT_TYPE of AV, AGENT, OTHERS, got 'BUS'"),
        (_cell(11, 2, "AGENT"), "bad-kind: {}track track-3: expected one OBJECT_TYPE, got several"),
        (
            lambda lines: [line.replace("AGENT", "OTHERS") for line in lines],
            "bad-kind: {}expected 1 AGENT track, got 0",
        ),
        (
            lambda lines: [*lines[:8], *lines[9:]],
            "missing-frames: {}expected the AV in 50 frames, got 49",
        ),
        (
            lambda lines: [line for line in lines if "track-3" not in line],
            "not-as-indexed: {}expected 4 tracks as in the index, got 3",
        ),
        (
            lambda lines: [line.replace("31596794", "31596795", 1) for line in lines],
            "not-as-indexed: {}expected t0 315967941.000 s as in the index, got 315967951.000 s",
        ),
        (
            lambda lines: lines[:100] + [line.replace("31596794", "31596795", 1) for line in lines[100:]],
            "missing-frames: {}expected a frame within 1 s after frame 24, got one after 10.10 s",
        ),
    ],
)
def test_a_bad_scenario_is_named(tmp_path: Path, change: Callable[[Lines], Lines], text: str) -> None:
    where = "MIA.zip: MIA/7.csv" + (" " if "}line" in text else ": ")
    assert text.format(where) in refusal(one(tmp_path, change))


@pytest.mark.parametrize(
    ("header", "text"),
    [
        (
            "TIMESTAMP,TRACK_ID,TYPE,X,Y,CITY_NAME",
            "expected column OBJECT_TYPE once, got 'TIMESTAMP,TRACK_ID,TY",
        ),
        (
            "TIMESTAMP,TRACK_ID,OBJECT_TYPE,X,X,CITY_NAME",
            "expected column X once, got 'TIMESTAMP,TRACK_ID,OBJ",
        ),
    ],
)
@pytest.mark.parametrize("indexed", [True, False])
def test_a_missing_column_is_named(tmp_path: Path, header: str, text: str, indexed: bool) -> None:
    folder = one(tmp_path, header=header)
    if not indexed:
        (folder / "index.csv").unlink()
    assert f"missing-column: MIA.zip: MIA/7.csv: {text}" in refusal(folder)


def test_units_that_look_wrong_are_refused(tmp_path: Path) -> None:
    content = argoverse.text(argoverse.rows(x_m=0.0))
    fast = "\n".join(
        ",".join([*c[:3], str(100 * float(c[3])), *c[4:]]) if c[0] != "TIMESTAMP" else ",".join(c)
        for c in (line.split(",") for line in content.split())
    )
    (tmp_path / "7.csv").write_text(fast + "\n")
    assert "wrong-units: Argoverse 1: scenario '7': track 'track-0' moves at 500 m/s, limit" in refusal(
        tmp_path
    )


# --- what is refused: the archive ---


def test_a_truncated_zip_is_refused(folder: Path) -> None:
    path = folder / "PIT.zip"
    path.write_bytes(path.read_bytes()[:-500])
    text = refusal(folder)
    assert text.startswith("not-a-zip: PIT.zip: expected a whole zip archive, got ")


def test_a_file_that_is_no_zip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "MIA.zip").write_text("hello")
    assert "not-a-zip: MIA.zip: expected a whole zip archive, got 5 bytes that are none" in refusal(tmp_path)


def test_a_member_with_another_checksum_is_refused(folder: Path) -> None:
    path = folder / "MIA.zip"
    with zipfile.ZipFile(path) as archive:
        name = archive.infolist()[4].filename
        at = archive.infolist()[4].header_offset + 30 + len(name) + 40
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)
    assert f"damaged-member: MIA.zip: {name}: expected " in refusal(folder)


def test_a_member_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    folder = one(tmp_path, lambda lines: [*lines, "0" * members.MAX_MEMBER_BYTES])
    assert "member-too-large: MIA.zip: MIA/7.csv: 16.8 MB unpacked, limit 16.8 MB" in refusal(folder)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(folder: Path) -> None:
    bomb = argoverse.text([]) + "\n" * (members.MAX_MEMBER_BYTES // 2)
    argoverse.write_zip(folder / "ZZZ.zip", {f"{i}.csv": bomb for i in range(8)})
    assert "zip-bomb: ZZZ.zip: 0.07 MB unpack to 67.1 MB, limit 200 times" in refusal(folder)


def test_a_member_larger_than_its_directory_says_is_refused(tmp_path: Path) -> None:
    path = one(tmp_path) / "MIA.zip"
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02") + 24
    struct.pack_into("<I", content, at, 1000)
    path.write_bytes(content)
    assert "damaged-member: MIA.zip: MIA/7.csv: expected 1000 bytes, cannot be unpacked: " in refusal(
        tmp_path
    )


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    path = one(tmp_path) / "MIA.zip"
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    assert "encrypted-member: MIA.zip: MIA/7.csv needs a password" in refusal(tmp_path)


def test_another_compression_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "MIA.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("7.csv", argoverse.text(argoverse.rows()))
    assert "unknown-compression: MIA.zip: 7.csv: expected stored or deflated, got method 14" in refusal(
        tmp_path
    )


def test_a_zip_without_scenarios_is_refused(folder: Path) -> None:
    argoverse.write_zip(folder / "ZZZ.zip", {"notes.txt": "hello"})
    assert "unknown-file: ZZZ.zip is a zip with nothing in it that is read: notes.txt" in refusal(folder)


def test_a_scenario_in_two_archives_is_refused(folder: Path) -> None:
    argoverse.write_zip(folder / "MORE.zip", {"3.csv": argoverse.text(argoverse.rows())})
    assert "duplicate-scenario: scenario 3 is in MIA.zip: MIA/3.csv and again in MORE.zip: 3.csv" in refusal(
        folder
    )


def test_two_formats_in_one_folder_are_each_read_by_their_own(folder: Path) -> None:
    traffic.write_folder(folder)
    recordings = open_recordings(folder)
    assert [part.reader.format for part in recordings.parts] == ["fedfleet scenario table", "Argoverse 1"]
    assert len(recordings.drives) == 20 + 12
    assert recordings.part("coast/d00").reader.format == "fedfleet scenario table"


def test_a_drive_in_two_formats_is_refused(folder: Path) -> None:
    traffic.write_table(folder / "a.parquet", [traffic.scenario(region="mia-w", drive="mia-d0")])
    text = "duplicate-drive: drive mia-w/mia-d0 is in fedfleet scenario table and again in Argoverse 1"
    assert text in refusal(folder)


def test_a_scenario_in_two_formats_is_refused_when_both_are_read(folder: Path) -> None:
    traffic.write_table(folder / "a.parquet", [traffic.scenario("11", region="town")])
    text = "duplicate-scenario: scenario 11 is in Argoverse 1 and again in fedfleet scenario table"
    assert text in refusal(folder)


# --- what is refused: the index ---


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        (
            "\n3,MIA",
            "\n99,MIA",
            "missing-scenario: index.csv: expected a file for each scenario, got none for 99",
        ),
        ("\n3,MIA", "\n4,MIA", "duplicate-scenario: index.csv line 5: scenario 4 is listed twice"),
        ("\n3,MIA", "\n3,NYC", "unknown-city: index.csv line 4: expected city MIA or PIT, got 'NYC'"),
        (
            "district",
            "region",
            "missing-column: index.csv: expected column 'district', got 'scenario,city,region,",
        ),
        (
            "4,MIA,MIA-W",
            "4,MIA,MIA-E",
            "drive-in-two-regions: index.csv line 5: drive mia-d1 is in mia-w and mia-e",
        ),
        ("4,MIA,MIA-W", "4,MIA,", "bad-name: index.csv line 5: expected the name of a district, got none"),
        ("\n3,MIA", "\n,MIA", "bad-name: index.csv line 4: expected the name of a scenario, got ''"),
        (",4\n3,", ",four\n3,", "nan-value: index.csv line 3: tracks: expected a finite number, got 'four'"),
    ],
)
def test_a_bad_index_is_named(folder: Path, old: str, new: str, text: str) -> None:
    path = folder / "index.csv"
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new, 1), encoding="utf-8")
    assert text in refusal(folder)


def test_a_scenario_that_no_index_lists_is_refused(folder: Path) -> None:
    path = folder / "index.csv"
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if line[:2] != "3,"))
    text = "unlisted-scenario: MIA.zip: MIA/3.csv: expected a row in index.csv, got none for 3"
    assert text in refusal(folder)


def test_a_city_unknown_to_the_rule_is_refused(tmp_path: Path) -> None:
    lines = argoverse.rows(city="NYC")
    argoverse.write_zip(tmp_path / "NYC.zip", {"7.csv": argoverse.text(lines)})
    assert "unknown-city: NYC.zip: 7.csv: expected city MIA or PIT, got 'NYC'" in refusal(tmp_path)


def test_a_scenario_without_the_test_car_is_refused_by_the_rule(tmp_path: Path) -> None:
    lines = [line for line in argoverse.rows() if ",AV," not in line]
    argoverse.write_zip(tmp_path / "MIA.zip", {"7.csv": argoverse.text(lines)})
    assert "bad-kind: MIA.zip: 7.csv: expected 1 AV track, got 0" in refusal(tmp_path)


# --- splits and preparation ---


def test_one_drive_only_cannot_be_split(tmp_path: Path) -> None:
    index = TASK.index(one(tmp_path))
    with pytest.raises(
        UsageError, match="region mia-w has 1 drives, too few for 1 vehicles, 1 drives for valid"
    ):
        partition(index.drives, vehicles={"mia-w": 1}, seed=1)


def test_a_region_without_a_drive_left_for_validation_is_refused(folder: Path) -> None:
    index = TASK.index(folder)
    with pytest.raises(
        UsageError, match="region mia-e has 5 drives, too few for 4 vehicles, 1 drives for val"
    ):
        partition(index.drives, vehicles=16, seed=1)


def test_preparation_reads_each_job_and_tells_how_far_it_is(folder: Path, tmp_path: Path) -> None:
    parts = partition(TASK.index(folder).drives, vehicles=4, seed=1)
    jobs = [
        Job(out=tmp_path / "out" / name, drives=drives, parts=("train", "frames"))
        for name, (_, drives) in parts.vehicles.items()
    ]
    told: list[tuple[int, int, str]] = []
    metas = prepare(TASK, folder, jobs, report=lambda *one: told.append(one))
    assert told == [(0, 4, "v01"), (1, 4, "v02"), (2, 4, "v03"), (3, 4, "v04")]
    assert [meta.counts["train_samples"] for meta in metas] == [24] * 4
    assert len(prepared.open(tmp_path / "out" / "v01", "train")) == 24


def test_a_damaged_scenario_refuses_itself_and_is_in_the_account(folder: Path, tmp_path: Path) -> None:
    argoverse.write_zip(
        folder / "MIA.zip",
        {
            f"{name}.csv": content if name != "4" else content[:3000]
            for name, content in argoverse.scenarios("MIA").items()
        },
    )
    job = Job(out=tmp_path / "out", drives=("mia-w/mia-d0", "mia-w/mia-d1"), parts=("train",))
    (meta,) = prepare(TASK, folder, [job])
    assert meta.counts["train_samples"] == 3 * len(TASK.samples(folder, ["mia-w/mia-d2"])) // 2
    (row,) = open_recordings(folder).account.rows
    assert row.text.startswith("malformed-csv: MIA.zip: 4.csv line ")


# --- the real recordings ---


def test_the_real_recordings_are_all_read(data_dir: Path) -> None:
    scenarios, tracks, full = 0, 0, 0
    for scenario in stream(data_dir / "argoverse1"):
        scenarios += 1
        tracks += len(scenario.track_ids)
        full += int((~np.isnan(scenario.xy[..., 0])).all(axis=1).sum())
    assert (scenarios, tracks, full) == (2104, 79_499, 18_514)


def test_the_real_index_has_708_drives_and_each_in_one_part(data_dir: Path) -> None:
    drives = TASK.index(data_dir / "argoverse1").drives
    assert (len(drives), sum(drive.recordings for drive in drives)) == (708, 2104)
    parts = partition(drives, vehicles=12, seed=7)
    dealt = [drive for _, each in parts.vehicles.values() for drive in each]
    held = [drive for part in (parts.validation, parts.test) for each in part.values() for drive in each]
    assert len(dealt) + len(held) == len({*dealt, *held}) == 708


def test_the_rule_finds_the_drives_of_the_real_index(data_dir: Path, tmp_path: Path) -> None:
    # given the real zips without their index
    for city in ("MIA", "PIT"):
        (tmp_path / f"{city}.zip").symlink_to(data_dir / "argoverse1" / f"{city}.zip")
    # when
    derived, listed = (
        argoverse1.scan(folder, argoverse1.detect(walk(folder))).entries
        for folder in (tmp_path, data_dir / "argoverse1")
    )
    # then the same drives, and few of them on the other side of a cut that was made with more recordings
    left, right = (
        {tuple(entry.scenario for entry in each): key.split("/")[0] for key, each in one.items()}
        for one in (derived, listed)
    )
    assert left.keys() == right.keys()
    assert sum(left[drive] != right[drive] for drive in left) <= 7
