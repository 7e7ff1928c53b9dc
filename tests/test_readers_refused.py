"""Readers: what is refused, with file, what was expected and what was found."""

import io
import json
import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import recorded

from fedfleet.protocol.errors import UsageError
from fedfleet.scenarios import members
from fedfleet.scenarios.crc32c import crc32c
from fedfleet.scenarios.csv_stream import collect
from fedfleet.scenarios.members import Stream
from fedfleet.scenarios.protobuf_wire import fields
from fedfleet.scenarios.reading import read
from fedfleet.scenarios.records import ScenarioError
from fedfleet.scenarios.tfrecord import MAX_RECORD_BYTES, places

TRACKS = recorded.made(11, tracks=4, frames=40)


def refusal(folder: Path) -> str:
    with pytest.raises(UsageError) as error:
        read(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


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


def test_another_delimiter_is_named(table: Path) -> None:
    table.write_text(table.read_text().replace(",", ";"))
    where = table.relative_to(top(table)).as_posix()
    assert f"wrong-delimiter: {where}: expected commas, got ';' in '" in refusal(top(table))


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
    recorded.ngsim(tmp_path / "c", TRACKS)
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


# --- Argoverse 2 ---


def _arrow(change: Callable[[dict[str, list[object]]], None]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        columns = pq.read_table(path).to_pydict()
        change(columns)
        pq.write_table(pa.table(columns), path)

    return apply


@pytest.mark.parametrize(
    ("apply", "text"),
    [
        (
            _arrow(lambda c: c.pop("position_y")),
            "missing-column: {}: expected column 'position_y', got observed",
        ),
        (
            _arrow(lambda c: c["position_x"].__setitem__(4, None)),
            "nan-value: {}: expected a position_x in each row",
        ),
        (
            _arrow(lambda c: c["position_x"].__setitem__(4, float("nan"))),
            "nan-value: {}: track AV frame 4: expected",
        ),
        (
            _arrow(lambda c: c["timestep"].__setitem__(4, 3)),
            "duplicate-row: {}: track AV frame 3: expected 1 obs",
        ),
        (
            _arrow(lambda c: c["timestep"].__setitem__(4, 40)),
            "frames-outside: {}: expected timestep 0 to 39, got 0 to",
        ),
        (
            _arrow(lambda c: c["city"].__setitem__(4, "miami")),
            "uneven-scenario: {}: expected one city in all rows, got",
        ),
        (
            _arrow(lambda c: c.__setitem__("end_timestamp", [t + 10**9 for t in c["end_timestamp"]])),  # type: ignore[operator]
            "two-rates: {}: expected 40 frames at 10 Hz, got 4.90 s from first to last",
        ),
        (
            lambda path: path.write_bytes(path.read_bytes()[:-50]),
            "not-parquet: {}: expected a Parquet file, got: ",
        ),
    ],
)
def test_a_bad_argoverse2_file_is_named(tmp_path: Path, apply: Callable[[Path], object], text: str) -> None:
    where = "0a1e/scenario_0a1e.parquet"
    whole = [*recorded.made(11, tracks=4, frames=40)]
    apply(recorded.argoverse2(tmp_path, whole) / where)
    assert text.format(where) in refusal(tmp_path)


def test_the_same_scenario_in_two_files_is_refused(tmp_path: Path) -> None:
    recorded.argoverse2(tmp_path, TRACKS)
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "scenario_x.parquet").write_bytes(
        (tmp_path / "0a1e/scenario_0a1e.parquet").read_bytes()
    )
    assert "duplicate-scenario: scenario 0a1e is in 0a1e/scenario_0a1e.parquet and again" in refusal(tmp_path)


# --- Waymo ---


def _waymo(folder: Path, *records: bytes, cut: int = 0, flip: int | None = None) -> str:
    data = bytearray(recorded.tfrecord(*records))
    if flip is not None:
        data[flip] ^= 0xFF
    (folder / "a.tfrecord").write_bytes(data[: len(data) - cut])
    return refusal(folder)


def test_a_bad_waymo_file_is_named(tmp_path: Path) -> None:
    good = recorded.waymo_scenario(TRACKS)
    nan = recorded.Track(9, "vehicle", 0, np.full((40, 2), np.nan))
    stamps = [0.1 * i for i in range(20)] + [2.0 + 0.04 * i for i in range(20)]
    assert "truncated-record: a.tfrecord: record 0: expected " in _waymo(tmp_path, good, cut=100)
    assert "truncated-record: a.tfrecord: record 1: expected a length, got 7 bytes" in _waymo(
        tmp_path, good, good, cut=len(good) + 9
    )
    assert "damaged-record: a.tfrecord: record 0: the checksum of its length" in _waymo(
        tmp_path, good, flip=9
    )
    assert "damaged-record: a.tfrecord: record 0: the checksum of its" in _waymo(tmp_path, good, flip=500)
    assert (
        "duplicate-scenario: scenario 637f20ca is in a.tfrecord and again in a.tfrecord: record 1"
        in _waymo(tmp_path, good, good)
    )
    assert "duplicate-track: a.tfrecord: record 0: track 1 appears twice" in _waymo(
        tmp_path, recorded.waymo_scenario([*TRACKS, TRACKS[0]])
    )
    assert "nan-value: a.tfrecord: record 0: track 9 frame 0: expected finite x and y" in _waymo(
        tmp_path, recorded.waymo_scenario([nan])
    )
    assert "two-rates: a.tfrecord: record 0: expected one rate" in _waymo(
        tmp_path, recorded.waymo_scenario(TRACKS, stamps=stamps)
    )
    assert (
        "uneven-lists: a.tfrecord: record 0: track 0 (id 1): expected 39 states, one per time stamp"
        in _waymo(tmp_path, recorded.waymo_scenario(TRACKS, stamps=[0.1 * i for i in range(39)]))
    )
    assert "missing-value: a.tfrecord: record 0: expected a scenario_id, got none" in _waymo(
        tmp_path, recorded.message((1, 0.0), (1, 0.1))
    )
    assert "malformed-protobuf: a.tfrecord: record 0: " in _waymo(tmp_path, b"\x0b\x01\x02")


def test_a_message_cut_anywhere_is_read_or_refused_never_more(tmp_path: Path) -> None:
    message = recorded.waymo_scenario(TRACKS[:1])
    for length in range(1, len(message), 173):
        text = ""
        (tmp_path / "a.tfrecord").write_bytes(recorded.tfrecord(message[:length]))
        try:
            read(tmp_path)
        except UsageError as error:
            text = str(error)
        assert re.match(r"[a-z-]+: a\.tfrecord: record 0", text), (length, text)


@pytest.mark.parametrize(
    "data", [b"\x08", b"\x08" + b"\x80" * 11, b"\x12\x05ab", b"\x09\x01", b"\x0b", b"\x0d\x01\x02", b"\xff"]
)
def test_bytes_that_are_no_message_are_refused(data: bytes) -> None:
    with pytest.raises(ScenarioError, match="malformed-protobuf: here: "):
        list(fields(data, "here"))


def test_the_checksum_is_that_of_the_rfc() -> None:
    """RFC 3720, appendix B.4, and the check value of the catalogue; lengths round the width of a lane."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    for length in (0, 1, 255, 256, 257, 511, 512, 768, 1793, 70_001):
        data = np.random.default_rng(length).bytes(length)
        assert crc32c(data) == _slow(data)


def _slow(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


# --- Lyft ---


def _meta(folder: Path, array: str, **changes: object) -> None:
    path = folder / "sample.zarr" / array / ".zarray"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("apply", "text"),
    [
        (
            lambda f: _meta(f, "agents", zarr_format=3),
            "unknown-version: sample.zarr/agents/.zarray: expected version",
        ),
        (
            lambda f: _meta(f, "agents", order="F"),
            "unknown-version: sample.zarr/agents/.zarray: expected version 2",
        ),
        (
            lambda f: _meta(f, "agents", compressor={"id": "zlib"}),
            "unknown-version: sample.zarr/agents/.zarray",
        ),
        (
            lambda f: _meta(f, "agents", dtype="<f8"),
            "unknown-version: sample.zarr/agents/.zarray: expected a list of",
        ),
        (
            lambda f: _meta(f, "agents", dtype=[["x", "|O"]]),
            "unknown-version: sample.zarr/agents/.zarray: expected",
        ),
        (lambda f: _meta(f, "agents", chunks=[10**9]), "member-too-large: sample.zarr/agents/.zarray: "),
        (
            lambda f: _meta(f, "frames", shape=[10]),
            "rows-outside: sample.zarr/frames: expected rows within 0 to 10",
        ),
        (
            lambda f: _meta(f, "frames", compressor={"id": "blosc"}),
            "damaged-member: sample.zarr/frames/0: expected",
        ),
        (
            lambda f: (f / "sample.zarr/agents/0").unlink(),
            "missing-file: sample.zarr/agents/0: expected a chunk",
        ),
        (
            lambda f: (f / "sample.zarr/agents/0").write_bytes(b"123"),
            "damaged-member: sample.zarr/agents/0: expected",
        ),
        (
            lambda f: (f / "sample.zarr/.zattrs").write_text("{"),
            "malformed-json: sample.zarr/.zattrs: expected JSON",
        ),
        (
            lambda f: (f / "sample.zarr/.zattrs").write_text("{}"),
            "missing-column: sample.zarr frames 0 to 40: expec",
        ),
        (
            lambda f: recorded.lyft5(f, TRACKS, step_ns=4 * 10**7),
            "two-rates: sample.zarr frames 0 to 40: expected",
        ),
    ],
)
def test_a_bad_zarr_store_is_named(tmp_path: Path, apply: Callable[[Path], object], text: str) -> None:
    apply(recorded.lyft5(tmp_path, TRACKS))
    assert text in refusal(tmp_path)


def test_a_nan_and_a_track_twice_in_a_frame_are_named(tmp_path: Path) -> None:
    recorded.lyft5(tmp_path, TRACKS)
    path = tmp_path / "sample.zarr" / "agents" / "0"
    rows = np.frombuffer(path.read_bytes(), dtype=recorded.AGENTS).copy()
    rows["centroid"][3] = np.nan
    path.write_bytes(rows.tobytes())
    assert "nan-value: sample.zarr frames 0 to 40: track " in refusal(tmp_path)
    recorded.lyft5(tmp_path / "b", [*TRACKS, TRACKS[1]])
    text = "duplicate-row: sample.zarr frames 0 to 40: track 2 frame "
    assert text in refusal(tmp_path / "b")


# --- the folder ---


def test_a_file_that_no_reader_knows_is_refused_beside_those_that_are_known(tmp_path: Path) -> None:
    recorded.interaction(tmp_path, TRACKS)
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    assert "unknown-file: notes.csv: no recordings of a known format: expected " in refusal(tmp_path)
