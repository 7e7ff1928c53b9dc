"""Scenario records and the scenario table: what is valid, what is refused, and with which words."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedfleet.scenarios.records import Scenario, ScenarioError
from fedfleet.scenarios.table import SCHEMA, read_table, table_sha256, write_table


def scenario(**changes: Any) -> Scenario:
    xy = np.arange(3 * 6 * 2, dtype=np.float64).reshape(3, 6, 2)
    given: dict[str, Any] = {
        "scenario_id": "s0",
        "region": "grid-city",
        "drive": "d0",
        "rate_hz": 10.0,
        "t0_s": 12.5,
        "track_ids": ("a", "b", "c"),
        "kinds": ("AV", "AGENT", "OTHERS"),
        "xy": xy,
    }
    return Scenario(**(given | changes))


def positions(**cells: float) -> np.ndarray:
    """Three tracks of six frames; `t1f2=nan` sets x of track 1 in frame 2."""
    xy = np.ones((3, 6, 2))
    for name, value in cells.items():
        track, frame = name[1:].split("f")
        xy[int(track), int(frame), 0] = value
    return xy


def empty_track() -> np.ndarray:
    xy = np.ones((3, 6, 2))
    xy[2] = math.nan
    return xy


REFUSED = [
    ({"scenario_id": ""}, "bad-name: scenario '': scenario_id must be 1 to 128 printable characters, got ''"),
    ({"drive": "a\nb"}, "bad-name: scenario 's0': drive must be 1 to 128 printable characters, got 'a\\nb'"),
    (
        {"region": "Grid City"},
        "bad-region: scenario 's0': region must match [a-z0-9-]{1,36}, got 'Grid City'",
    ),
    ({"rate_hz": math.nan}, "bad-rate: scenario 's0': rate_hz must be above 0 and at most 1000, got nan"),
    ({"rate_hz": 0.0}, "bad-rate: scenario 's0': rate_hz must be above 0 and at most 1000, got 0.0"),
    ({"t0_s": math.inf}, "bad-time: scenario 's0': t0_s must be finite, got inf"),
    ({"track_ids": ()}, "bad-track-count: scenario 's0': expected 1 to 4096 tracks, got 0"),
    (
        {"track_ids": ("a", "b", "a")},
        "duplicate-track: scenario 's0': track 'a' appears 2 times, expected once",
    ),
    ({"kinds": ("AV",)}, "bad-kinds: scenario 's0': expected 3 kinds, one per track, got 1"),
    ({"kinds": ("AV", "AV", "AGENT")}, "bad-kinds: scenario 's0': expected at most one AV track, got 2"),
    (
        {"kinds": ("AV", "CAR", "AGENT")},
        "bad-kind: scenario 's0': track 'b': kind must be one of AV, AGENT, OTHERS, got 'CAR'",
    ),
    (
        {"xy": np.zeros((3, 6, 2), dtype=np.float32)},
        "bad-shape: scenario 's0': xy must be float64[tracks, frames, 2], got float32[3, 6, 2]",
    ),
    ({"xy": np.zeros((2, 6, 2))}, "bad-shape: scenario 's0': xy must hold 3 tracks, got 2"),
    ({"xy": np.zeros((3, 0, 2))}, "bad-frame-count: scenario 's0': expected 1 to 4096 frames, got 0"),
    (
        {"xy": positions(t1f2=math.nan)},
        "nan-position: scenario 's0': track 'b' frame 2: one coordinate is NaN, expected both or none",
    ),
    (
        {"xy": positions(t2f5=math.inf)},
        "infinite-position: scenario 's0': track 'c' frame 5: a coordinate is infinite, expected metres",
    ),
    (
        {"xy": positions(t0f0=-3e7)},
        "far-position: scenario 's0': track 'a' frame 0: a coordinate is beyond 2e+07 m of the origin",
    ),
    (
        {"xy": empty_track()},
        "empty-track: scenario 's0': track 'c' has no observed frame, expected at least 1",
    ),
]


@pytest.mark.parametrize(("changes", "words"), REFUSED, ids=[words.split(":")[0] for _, words in REFUSED])
def test_an_invalid_scenario_cannot_be_made(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        scenario(**changes)
    assert str(caught.value) == words


def test_positions_of_a_scenario_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        scenario().xy[0, 0, 0] = 1.0


def mixed() -> list[Scenario]:
    """Two drives out of order, a late track, a track with a gap."""
    rng = np.random.default_rng(1)
    xy = rng.normal(0.0, 50.0, (3, 6, 2))
    xy[1, :2] = math.nan
    xy[2, 2:4] = math.nan
    return [
        scenario(scenario_id="s2", drive="d1", xy=xy, t0_s=0.1),
        scenario(scenario_id="s1", track_ids=("c", "a", "b"), xy=rng.normal(0.0, 2e5, (3, 6, 2))),
        scenario(scenario_id="s0"),
    ]


def test_a_table_gives_back_its_scenarios_in_order_and_to_the_centimetre(tmp_path: Path) -> None:
    given = mixed()
    # when
    written = write_table(tmp_path / "t.parquet", given)
    got = read_table(tmp_path / "t.parquet")
    # then
    assert [(s.drive, s.scenario_id) for s in got] == [("d0", "s0"), ("d0", "s1"), ("d1", "s2")]
    assert got[1].track_ids == ("a", "b", "c")
    assert got[1].kinds == ("AGENT", "OTHERS", "AV")
    np.testing.assert_allclose(got[1].xy, given[1].xy[[1, 2, 0]], atol=0.00501)
    np.testing.assert_allclose(got[2].xy, given[0].xy, atol=0.00501)
    assert (got[2].t0_s, got[2].rate_hz, got[2].frames) == (0.1, 10.0, 6)
    assert written == table_sha256(got) == table_sha256(reversed(given))
    assert [s.scenario_id for s in read_table(tmp_path / "t.parquet", drives={"d1"})] == ["s2"]
    assert list(tmp_path.iterdir()) == [tmp_path / "t.parquet"]


def test_the_table_hash_is_as_documented() -> None:
    """A golden value: the canonical form must not drift."""
    assert (
        table_sha256([scenario()], version=1)
        == "3fabbf3ef33d8715da8613a6bab601f842eaaedede3aadf931029c083fb191ce"
    )
    assert table_sha256([scenario(t0_s=12.6)]) != table_sha256([scenario()])


def test_the_same_scenario_twice_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="duplicate-scenario: scenario 's0' of drive 'd0' appears twice"):
        write_table(tmp_path / "t.parquet", [scenario(), scenario()])
    assert list(tmp_path.iterdir()) == []


def damaged(tmp_path: Path, **columns: Any) -> Path:
    """A table of one scenario whose named columns are replaced; `metadata` and `keep` change the file's frame."""
    path = tmp_path / "bad.parquet"
    write_table(path, [scenario()])
    table = pq.read_table(path)
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        kind = None if isinstance(values, pa.Array) else SCHEMA.field(name).type
        table = table.set_column(place, name, pa.array(values, type=kind))
    pq.write_table(table.replace_schema_metadata(SCHEMA.metadata), path)
    return path


STEPS = [[0, 1, 1, 1, 1, 1]] * 3
BAD_COLUMNS = [
    (
        {"rate_hz": [10, math.nan, 10]},
        "not-finite",
        "row 1 (drive 'd0', scenario 's0', track 'b'): rate_hz must be",
    ),
    (
        {"t0_s": [math.nan] * 3},
        "not-finite",
        "row 0 (drive 'd0', scenario 's0', track 'a'): t0_s must be finite, got nan",
    ),
    (
        {"track": ["a", "c", "b"]},
        "shuffled-rows",
        "row 2 (drive 'd0', scenario 's0', track 'b'): rows must ascend by",
    ),
    (
        {"track": ["a", "a", "b"]},
        "duplicate-track",
        "row 1 (drive 'd0', scenario 's0', track 'a'): expected one row per",
    ),
    ({"track": ["a", None, "b"]}, "missing-value", "row 1: track is null, expected a value"),
    ({"frames": [6, 0, 6]}, "bad-frame-count", "frames must be 1 to 4096, got 0"),
    ({"frames": [6, 7, 6]}, "uneven-scenario", "frames must be 6 as in the scenario's first row, got 7"),
    ({"first_frame": [0, 0, 1]}, "frames-outside", "must lie inside the scenario's frames"),
    ({"first_frame": [-1, 0, 0]}, "frames-outside", "row 0"),
    ({"dx_cm": [[0, 1], *STEPS[1:]]}, "uneven-lists", "row 0"),
    ({"dx_cm": [[0, 1, None, 1, 1, 1], *STEPS[1:]]}, "nan-position", "must be null in the same frames"),
    ({"dx_cm": [[], [], []], "dy_cm": [[], [], []]}, "frames-outside", "row 0"),
    (
        {"dx_cm": [[None, 1, 1, 1, 1, 1]] * 3, "dy_cm": [[None, 1, 1, 1, 1, 1]] * 3},
        "nan-position",
        "must not be null",
    ),
    (
        {"dx_cm": [[2**31 - 1, 2**31 - 1, 0, 0, 0, 0]] * 3},
        "far-position",
        "track 'a' frame 0: a coordinate is beyond",
    ),
    ({"kind": ["AV", "AV", "AGENT"]}, "bad-kinds", "expected at most one AV track, got 2"),
    (
        {"dx_cm": pa.array([[math.nan] * 6] * 3)},
        "wrong-column-type",
        "column 'dx_cm' must be list<item: int32>, got",
    ),
]


@pytest.mark.parametrize(
    ("columns", "reason", "words"), BAD_COLUMNS, ids=[str(i) for i in range(len(BAD_COLUMNS))]
)
def test_a_bad_table_is_refused_with_file_and_row(
    tmp_path: Path, columns: dict[str, Any], reason: str, words: str
) -> None:
    path = damaged(tmp_path, **columns)
    # when
    with pytest.raises(ScenarioError) as caught:
        read_table(path)
    # then
    assert caught.value.reason == reason
    assert caught.value.detail.startswith(str(path))
    assert words in caught.value.detail


def test_files_that_are_no_scenario_table_are_refused(tmp_path: Path) -> None:
    absent, text, other, newer, narrow = (
        tmp_path / f"{n}.parquet" for n in ("absent", "text", "other", "new", "narrow")
    )
    text.write_text("x,y\n1,2\n")
    pq.write_table(pa.table({"x": [1.0]}), other)
    table = pa.table({"x": [1.0]})
    pq.write_table(table.replace_schema_metadata({b"fedfleet.scenarios": b'{"version":3}'}), newer)
    pq.write_table(table.replace_schema_metadata(SCHEMA.metadata), narrow)
    expected = {
        absent: f"no-such-file: {absent} does not exist",
        text: f"not-parquet: {text}: expected a whole Parquet file, got ",
        other: f"not-a-scenario-table: {other} is Parquet without metadata 'fedfleet.scenarios', expected",
        newer: f"unknown-version: {newer}: expected table version 1 or 2, got 3",
        narrow: f"missing-column: {narrow}: expected column 'scenario', got x",
    }
    for path, words in expected.items():
        with pytest.raises(ScenarioError) as caught:
            read_table(path)
        assert str(caught.value).startswith(words)


def test_a_table_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_table(path, [scenario()])
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(ScenarioError, match="not-parquet"):
            read_table(path)


def test_a_file_beyond_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.parquet"
    with path.open("wb") as file:
        file.truncate(5 * 2**30)
    with pytest.raises(
        ScenarioError, match=r"file-too-large: .*huge\.parquet is 5368\.7 MB, limit 4295\.0 MB"
    ):
        read_table(path)
