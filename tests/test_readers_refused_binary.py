"""Readers of Parquet, TFRecord and zarr: what is refused, with file, what was expected and what was found."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import recorded

from fedfleet.protocol.errors import UsageError
from fedfleet.scenarios.crc32c import crc32c
from fedfleet.scenarios.protobuf_wire import fields
from fedfleet.scenarios.reading import open_recordings, read
from fedfleet.scenarios.records import ScenarioError

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
            "not-parquet: {}: expected a whole Parquet file, got ",
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
        "duplicate-scenario: scenario 637f20ca is in a.tfrecord: record 0 and again in a.tfrecord: record 1"
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
