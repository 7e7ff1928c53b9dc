"""Scenario tables of version 2: types, row groups read and written one at a time, positions as offset arrays."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import traffic

from fedfleet.protocol.errors import UsageError
from fedfleet.scenarios import table, table_folder
from fedfleet.scenarios.reading import open_recordings, read, stream
from fedfleet.scenarios.records import TYPES, Scenario, ScenarioError
from fedfleet.scenarios.table import Table, TableWriter, read_table, table_sha256, write_table


def scenario(name: str = "s0", *, drive: str = "d0", seed: int = 0, region: str = "town") -> Scenario:
    """Eight tracks of all types, one of them with a gap and one late."""
    made = traffic.scenario(name, tracks=8, drive=drive, seed=seed, region=region)
    xy = np.rint(made.xy * 100) / 100
    xy[2, 10:20] = np.nan
    xy[3, :5] = np.nan
    return replace(made, xy=xy, types=TYPES)


def test_types_are_kept_in_version_2_and_lost_in_version_1(tmp_path: Path) -> None:
    write_table(tmp_path / "two.parquet", [scenario()])
    write_table(tmp_path / "one.parquet", [scenario()], version=1)
    assert read_table(tmp_path / "two.parquet")[0].types == TYPES
    assert read_table(tmp_path / "one.parquet")[0].types == ("unknown",) * 8
    assert "type" not in pq.read_schema(tmp_path / "one.parquet").names


def test_the_hash_of_version_2_is_as_documented() -> None:
    """A golden value: the canonical form must not drift. Types enter it; in version 1 they do not."""
    one = Scenario("s", "r", "d", 10.0, 1.5, ("a", "b"), ("AV", "AGENT"), np.arange(8.0).reshape(2, 2, 2))
    other = replace(one, types=("bus", "unknown"))
    assert table_sha256([one]) == "0476fc6116fd275435fcce262e8bc716774394cea88dab44bf1cde6d6e7ae73b"
    assert table_sha256([other]) != table_sha256([one])
    assert table_sha256([other], version=1) == table_sha256([one], version=1) != table_sha256([one])


def test_a_long_table_is_several_groups_of_whole_scenarios(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "GROUP_ROWS", 20)
    given = [scenario(f"s{i}", drive=f"d{i // 3}") for i in range(7)]
    path = tmp_path / "t.parquet"
    assert write_table(path, given) == table_sha256(given)
    opened = Table(path)
    assert opened.group_rows == (16, 16, 16, 8)
    for got, want in zip(read_table(path), given, strict=True):
        np.testing.assert_array_equal(got.xy, want.xy)
        assert (got.scenario_id, got.types, got.kinds) == (want.scenario_id, want.types, want.kinds)


def test_a_group_as_arrays_holds_every_position_once(tmp_path: Path) -> None:
    given = [scenario("s0"), scenario("s1")]
    write_table(tmp_path / "t.parquet", given)
    arrays = Table(tmp_path / "t.parquet").arrays(0)
    assert arrays.scenario_offsets.tolist() == [0, 8, 16]
    assert arrays.track_offsets[-1] == len(arrays.xy) == len(arrays.frame)
    for row in range(16):
        begin, end = arrays.track_offsets[row : row + 2]
        want = given[row // 8].xy[row % 8]
        np.testing.assert_array_equal(arrays.xy[begin:end], want[arrays.frame[begin:end]])


def test_drives_of_a_folder_are_read_group_by_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given drives over several groups and over two files, and a folder that counts as large
    monkeypatch.setattr(table, "GROUP_ROWS", 20)
    monkeypatch.setattr(table_folder, "LAZY_ROWS", 10)
    first = [scenario(f"s{i}", drive=f"d{i // 3}") for i in range(7)]
    second = [scenario(f"s{i}", drive="d1", seed=2) for i in (1, 9)]
    write_table(tmp_path / "a.parquet", first)
    write_table(tmp_path / "b.parquet", second)
    # when
    recordings = open_recordings(tmp_path)
    # then
    assert recordings.is_lazy
    counts = {key: (drive.recordings, drive.seconds) for key, drive in recordings.drives.items()}
    assert counts == {"town/d0": (3, 15.0), "town/d1": (5, 25.0), "town/d2": (1, 5.0)}
    assert [s.scenario_id for s in stream(tmp_path, ["town/d1"])] == ["s1", "s3", "s4", "s5", "s9"]
    assert len(read(tmp_path)) == 9


def test_a_writer_refuses_what_is_out_of_order_and_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(b"as it was")
    with pytest.raises(ScenarioError, match="shuffled-rows: town/d0/s0 after town/d0/s1, expected rising"):
        _write(path, [scenario("s1"), scenario("s0")])
    assert path.read_bytes() == b"as it was"
    assert list(tmp_path.iterdir()) == [path]


def _write(path: Path, scenarios: list[Scenario]) -> None:
    with TableWriter(path) as writer:
        for each in scenarios:
            writer.add(each)


def test_a_step_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    xy = np.array([[[-2e7, 0.0], [2e7, 0.0]]])
    far = Scenario("s", "r", "d", 10.0, 0.0, ("a",), ("AV",), xy)
    with pytest.raises(ScenarioError, match="far-position: a track goes 40000000 m in a step"):
        write_table(tmp_path / "t.parquet", [far])


def test_a_type_that_is_none_is_refused(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", [scenario()])
    rows = pq.read_table(tmp_path / "t.parquet")
    place = rows.schema.get_field_index("type")
    wrong = rows.set_column(place, "type", [["tank"] * rows.num_rows])
    pq.write_table(wrong, tmp_path / "t.parquet")
    with pytest.raises(
        UsageError, match=r"bad-type: .*t\.parquet row 0: scenario 's0': track 't0': type must be o"
    ):
        read(tmp_path)
