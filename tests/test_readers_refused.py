"""Readers: what is refused, with file, what was expected and what was found."""

import io
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import recorded

from fedfleet.protocol.errors import UsageError
from fedfleet.scenarios import members
from fedfleet.scenarios.csv_stream import collect
from fedfleet.scenarios.members import Stream
from fedfleet.scenarios.reading import open_recordings, read
from fedfleet.scenarios.records import ScenarioError
from fedfleet.scenarios.tfrecord import MAX_RECORD_BYTES, places

TRACKS = recorded.made(11, tracks=4, frames=40)


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


def change(path: Path, old: str, new: str, count: int = 1) -> None:
    text = path.read_text()
    assert re.search(old, text), old
    path.write_text(re.sub(old, new, text, count=count))


def double_line(path: Path, number: int) -> None:
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[number]]) + "\n")


# --- CSV: INTERACTION, NGSIM, highD, inD ---

FILES = {
    "interaction": "DR_Test/vehicle_tracks_000.csv",
    "ngsim": "trajectories.csv",
    "highd": "01_tracks.csv",
    "ind": "data/07_tracks.csv",
}
WRITE = {name: getattr(recorded, name) for name in FILES}


@pytest.fixture(params=FILES)
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The file with the positions, of each format of CSV in turn."""
    WRITE[request.param](tmp_path, TRACKS)
    return tmp_path / FILES[request.param]


def top(table: Path) -> Path:
    return table.parent if table.name in ("trajectories.csv", "01_tracks.csv") else table.parent.parent


def test_a_missing_column_is_named(table: Path) -> None:
    first = table.read_text().splitlines()[0].split(",")
    name = next(each for each in first if each in ("y", "Global_Y", "yCenter"))
    change(table, rf"\b{name}\b", "other")
    where = table.relative_to(top(table)).as_posix()
    assert f"missing-column: {where}: expected column {name} once, got '" in refusal(top(table))


@pytest.mark.parametrize("cell", ["nan", "inf", ""])
def test_a_place_that_is_no_number_is_named_with_its_line(table: Path, cell: str) -> None:
    lines = table.read_text().splitlines()
    place = (
        lines[0].split(",").index(next(n for n in lines[0].split(",") if n in ("x", "Global_X", "xCenter")))
    )
    cells = lines[5].split(",")
    cells[place] = cell
    table.write_text("\n".join([*lines[:5], ",".join(cells), *lines[6:]]) + "\n")
    where = table.relative_to(top(table)).as_posix()
    assert re.search(rf"nan-value: {where} line 6: expected a (finite )?\w+, got", refusal(top(table)))


def test_two_rows_of_one_track_in_one_frame_are_refused(table: Path) -> None:
    double_line(table, 3)
    text = refusal(top(table))
    assert "duplicate-row: " in text or "not-as-indexed: " in text  # tracksMeta counts rows
    assert "expected 1 observation, got 2" in text or "as in tracksMeta, got" in text


def test_a_cut_file_is_refused(table: Path) -> None:
    content = table.read_bytes()
    table.write_bytes(content[: content.rindex(b",") - 20])
    text = refusal(top(table))
    assert text.startswith(("malformed-csv", "not-as-indexed", "nan-value"))


def test_units_that_look_wrong_are_refused(tmp_path: Path) -> None:
    """Centimetres taken for metres: nothing on a road moves at more than 100 m/s."""
    fast = [recorded.Track(t.number, t.type, t.first, 100 * t.xy) for t in TRACKS]
    for name, write in WRITE.items():
        text = refusal(write(tmp_path / name, fast))
        assert re.search(
            r"wrong-units: \w.*: track 'P?\d+' moves at \d+ m/s, limit 100 m/s: are these metr", text
        )


def test_one_wild_step_is_no_reason_to_refuse(tmp_path: Path) -> None:
    wild = TRACKS[0].xy.copy()
    wild[7] += 500
    assert read(recorded.interaction(tmp_path, [recorded.Track(1, "vehicle", 0, wild)]))


def test_two_rates_in_one_file_are_refused(tmp_path: Path) -> None:
    # INTERACTION: from the middle on, frames are 40 ms apart
    def slower(line: str) -> str:
        cells = line.split(",")
        if cells[0].isdigit() and int(cells[1]) > 20:
            cells[2] = str(2000 + 40 * (int(cells[1]) - 20))
        return ",".join(cells)

    path = recorded.interaction(tmp_path / "a", TRACKS) / FILES["interaction"]
    for file in path.parent.iterdir():
        file.write_text("\n".join(map(slower, file.read_text().splitlines())) + "\n")
    assert "two-rates: DR_Test/" in refusal(tmp_path / "a")
    # the numbers of frames tell another rate than their times
    path = recorded.interaction(tmp_path / "b", TRACKS[:1]) / FILES["interaction"]
    change(path, r"\n1,30,", "\n1,31,")
    assert (
        "two-rates: DR_Test/vehicle_tracks_000.csv: expected one rate of 10 Hz, got frame_id 31"
        in refusal(tmp_path / "b")
    )
    recorded.ngsim(tmp_path / "c", TRACKS[:1])
    change(tmp_path / "c" / "trajectories.csv", r"\n1,30,", "\n1,60,")
    assert "two-rates: trajectories.csv: expected 10 Hz, vehicle 1: Frame_ID 60" in refusal(tmp_path / "c")
    recorded.highd(tmp_path / "d", TRACKS)
    change(tmp_path / "d" / "01_recordingMeta.csv", r"\Z", "1,30.0,2,-1,3\n")
    assert "two-rates: 01_recordingMeta.csv: expected one frameRate, got 25.0, 30.0" in refusal(
        tmp_path / "d"
    )


def test_cases_of_a_prediction_challenge_are_refused(tmp_path: Path) -> None:
    path = recorded.interaction(tmp_path, TRACKS) / FILES["interaction"]
    change(path, "track_id", "case_id,track_id")
    assert "unknown-variant: DR_Test/vehicle_tracks_000.csv has case_id: cases of a prediction" in refusal(
        tmp_path
    )


@pytest.mark.parametrize(
    ("file", "old", "new", "text"),
    [
        (
            "01_tracksMeta.csv",
            r"\n2,",
            "\n1,",
            "duplicate-track: 01_tracksMeta.csv: expected each track once",
        ),
        (
            "01_tracksMeta.csv",
            r"\n1,4,2,1,40,",
            "\n1,4,2,1,41,",
            "not-as-indexed: 01_tracks.csv: track 1: expected",
        ),
        (
            "01_tracksMeta.csv",
            r"\n1,4,2,1,40,",
            "\n1,4,2,9,3,",
            "frames-outside: 01_tracksMeta.csv: expected init",
        ),
        (
            "01_tracks.csv",
            r"\n2,1,",
            "\n2,77,",
            "not-as-indexed: 01_tracks.csv: track 77 is not in tracksMeta",
        ),
        (
            "01_recordingMeta.csv",
            r"25\.0",
            "0",
            "bad-rate: 01_recordingMeta.csv: expected a frameRate above 0",
        ),
        (
            "01_recordingMeta.csv",
            r"frameRate",
            "fps",
            "missing-column: 01_recordingMeta.csv: expected column frameR",
        ),
    ],
)
def test_the_files_of_a_recording_must_agree(
    tmp_path: Path, file: str, old: str, new: str, text: str
) -> None:
    change(recorded.highd(tmp_path, TRACKS) / file, old, new)
    assert text in refusal(tmp_path)


def test_a_recording_without_one_of_its_files_is_refused(tmp_path: Path) -> None:
    (recorded.highd(tmp_path, TRACKS) / "01_tracksMeta.csv").unlink()
    text = refusal(tmp_path)
    assert text.startswith("missing-file: 01_")
    assert text.endswith("expected 01_tracksMeta.csv beside it, got none")


@pytest.mark.parametrize("name", ["ngsim.zip", "highD-dataset.zip", "commonroad.zip"])
def test_a_truncated_zip_is_refused(tmp_path: Path, name: str) -> None:
    made = recorded.highd(tmp_path / "made", TRACKS)
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        for path in made.iterdir():
            archive.write(path, f"data/{path.name}")
            path.unlink()
    made.rmdir()
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:-200])
    assert f"not-a-zip: {name}: expected a whole zip archive, got {len(content) - 200} bytes" in refusal(
        tmp_path
    )


def test_a_zip_of_recordings_reads_as_the_files(tmp_path: Path) -> None:
    made = recorded.ind(tmp_path / "made", TRACKS)
    (tmp_path / "zipped").mkdir()
    with zipfile.ZipFile(tmp_path / "zipped" / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((made / "data").iterdir()):
            archive.write(path, f"data/{path.name}")
    for one, other in zip(read(made), read(tmp_path / "zipped"), strict=True):
        np.testing.assert_array_equal(one.xy, other.xy)


# --- a large file is streamed ---

_STREAM = """
import io, resource, sys
from fedfleet.scenarios.csv_stream import collect
from fedfleet.scenarios.members import Stream

HEAD = b"Vehicle_ID,Global_Time,Global_X,Location\\n"
BLOCK = b"".join(b"%d,%d,%d.25,%s\\n" % (i, i, i, b"us-101" if i % 5000 else b"i-80") for i in range(50000))
SIZE = int(sys.argv[1])

class Made(io.RawIOBase):
    def __init__(self): self.at = 0
    def readable(self): return True
    def readinto(self, out):
        want = min(len(out), SIZE - self.at)
        place = (self.at - len(HEAD)) % len(BLOCK)
        piece = HEAD[self.at:][:want] if self.at < len(HEAD) else BLOCK[place:place + want]
        out[:len(piece)] = piece
        self.at += len(piece)
        return len(piece)

SIZE = len(HEAD) + SIZE // len(BLOCK) * len(BLOCK)
stream = Stream("made.csv", "made.csv", SIZE, lambda: io.BufferedReader(Made(), 1 << 20))
def keep(block):
    place, names = block.texts["Location"]
    return place == (names.index("i-80") if "i-80" in names else -1)
columns = {"Vehicle_ID": "whole", "Global_X": "number", "Location": "text"}
from fedfleet.scenarios.csv_stream import Names
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = collect(stream, columns, {"Location": Names()}, keep=keep)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(rows["Global_X"]), (SIZE - len(HEAD)) // len(BLOCK) * 10, (after - before) // 1024)
"""


def test_a_file_of_any_size_is_gone_through_in_bounded_memory() -> None:
    """2 GB in benchmarks/readers.py; here a tenth, in a process of its own whose peak is told by the kernel."""
    done = subprocess.run(
        [sys.executable, "-c", _STREAM, str(200 * 10**6)],
        capture_output=True,
        text=True,
        check=True,
        timeout=170,
    )
    rows, expected, grown_mb = map(int, done.stdout.split())
    assert rows == expected
    assert grown_mb < 160


def test_the_records_of_a_2_gb_file_are_found_without_reading_it(tmp_path: Path) -> None:
    # given a sparse file of records that are hardly on the disk
    length = struct.pack("<Q", MAX_RECORD_BYTES)
    header = length + struct.pack("<I", recorded.masked(length))
    path = tmp_path / "large.tfrecord"
    with path.open("wb") as file:
        for _ in range(32):
            file.write(header)
            file.seek(MAX_RECORD_BYTES + 4, 1)
        file.truncate(file.tell())
    # when
    with path.open("rb") as file:
        found = list(places(file, path.stat().st_size, "large.tfrecord"))
    # then
    assert path.stat().st_size > 2 * 10**9
    assert [place.number for place in found] == list(range(32))


def test_too_many_rows_of_one_drive_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedfleet.scenarios.csv_stream.MAX_ROWS", 9)
    data = b"a\n" + b"1\n" * 10
    stream = Stream("a.csv", "a.csv", len(data), lambda: io.BytesIO(data))
    with pytest.raises(ScenarioError, match=r"table-too-large: a\.csv: more than 9 rows of one drive"):
        collect(stream, {"a": "whole"}, {})


# --- XML ---


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        (
            "<commonRoad ",
            '<!DOCTYPE x [<!ENTITY a "b">]><commonRoad ',
            "xml-entities: {}: expected no document type",
        ),
        ("</commonRoad>", "", "malformed-xml: {}: expected XML: "),
        ("2020a", "1999z", "unknown-version: {}: expected <commonRoad> of version 2020a or 2018b, got"),
        ('timeStepSize="0.1"', 'timeStepSize="0"', "bad-rate: {}: expected a timeStepSize above 0"),
        ('timeStepSize="0.1"', "", "missing-value: {}: expected timeStepSize and states with exact"),
        ('id="2"', 'id="1"', "duplicate-track: {}: obstacle 1 appears 2 times"),
        (
            "<x>[^<]*</x>",
            "<x>nan</x>",
            "nan-value: {}: obstacle 1 time 0: x: expected a finite number, got 'nan'",
        ),
        (
            "<exact>7</exact>",
            "<exact>6</exact>",
            "duplicate-row: {}: obstacle 1: expected rising time steps, got 6",
        ),
        (
            "<exact>7</exact>",
            "<exact>5</exact>",
            "shuffled-frames: {}: obstacle 1: expected rising time steps",
        ),
        ("<point>", "<rectangle>", "malformed-xml: {}"),
        (
            r"<point><x>[^/]*</x><y>[^/]*</y></point>",
            "<circle/>",
            "missing-value: {}: obstacle 1 time 0: expected an",
        ),
        (
            "trajectory>",
            "occupancySet>",
            "no-trajectory: {}: obstacle 1: expected a trajectory, got occupancySet",
        ),
    ],
)
def test_a_bad_commonroad_file_is_named(tmp_path: Path, old: str, new: str, text: str) -> None:
    name = "USA_Test-1_1_T-1.xml"
    path = recorded.commonroad(tmp_path, TRACKS) / name
    change(path, old, new, count=2 if "trajectory" in old else 1)
    assert text.format(name) in refusal(tmp_path)


def test_an_xml_bomb_is_refused_before_it_is_unfolded(tmp_path: Path) -> None:
    entities = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10 if i else "lol"}">' for i in range(12))
    text = f'<?xml version="1.0"?><!DOCTYPE b [{entities}]><commonRoad>&l11;</commonRoad>'
    (tmp_path / "bomb.xml").write_text(text)
    assert "bomb.xml" in refusal(tmp_path)
    with zipfile.ZipFile(tmp_path / "more.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("big.xml", "<commonRoad>" + " " * (members.MAX_MEMBER_BYTES // 2) + "</commonRoad>")
    (tmp_path / "bomb.xml").unlink()
    assert "zip-bomb: more.zip" in refusal(tmp_path)


# --- the folder ---


def test_a_file_that_no_reader_knows_is_named_beside_those_that_are_known(tmp_path: Path) -> None:
    recorded.interaction(tmp_path, TRACKS)
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    assert "unknown-file: notes.csv has the columns of no format that is read: 'a,b'" in refusal(tmp_path)
