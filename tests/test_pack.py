"""The shipped pack holds what it promises, and the generator makes it again."""

from __future__ import annotations

import gzip
import importlib.metadata
import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedfleet.protocol.errors import UsageError
from fedfleet.scenarios.generate import drives, generate
from fedfleet.scenarios.pack import check_pack, read_manifest, read_pack, sumo_pack, tables
from fedfleet.scenarios.records import Scenario, ScenarioError
from fedfleet.scenarios.sumo_nets import build
from fedfleet.scenarios.sumo_plan import find_tool
from fedfleet.scenarios.sumo_traffic import REGIONS
from fedfleet.scenarios.table import table_sha256, write_table

NAMES = ("motorway", "grid-city", "roundabouts-rural", "left-hand")


@pytest.fixture(scope="module")
def pack() -> dict[str, list[Scenario]]:
    scenarios = read_pack(sumo_pack())
    return {name: [s for s in scenarios if s.region == name] for name in NAMES}


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    return read_manifest(sumo_pack())


def travelled_m(scenario: Scenario) -> np.ndarray:
    """Metres that each track moves, looked at every 0.5 s so that noise does not add up."""
    return np.nansum(np.linalg.norm(np.diff(scenario.xy[:, ::5], axis=1), axis=-1), axis=1)


def test_the_pack_is_at_most_8_mb() -> None:
    assert sum(file.stat().st_size for file in sumo_pack().rglob("*") if file.is_file()) <= 8_000_000


def test_the_pack_is_what_its_manifest_says(
    pack: dict[str, list[Scenario]], manifest: dict[str, Any]
) -> None:
    assert check_pack(sumo_pack()) == manifest["table_sha256"]
    assert set(manifest["regions"]) == set(pack) == set(REGIONS)
    for name, scenarios in pack.items():
        said = manifest["regions"][name]
        assert said["scenarios"] == len(scenarios)
        assert said["tracks"] == sum(len(s.track_ids) for s in scenarios)
        assert said["agents"] == sum(s.kinds.count("AGENT") for s in scenarios)
        assert said["table_sha256"] == table_sha256(scenarios, version=1)
        assert set(said["drive_sha256"]) == {s.drive for s in scenarios}


def test_the_pack_has_400_scenarios_of_5_s_at_10_hz(pack: dict[str, list[Scenario]]) -> None:
    scenarios = [s for part in pack.values() for s in part]
    assert len(scenarios) >= 400
    assert {(s.frames, s.rate_hz, s.seconds) for s in scenarios} == {(50, 10.0, 5.0)}
    assert len({s.scenario_id for s in scenarios}) == len(scenarios)


@pytest.mark.parametrize("name", NAMES)
def test_each_region_has_drives_agents_and_dense_traffic(pack: dict[str, list[Scenario]], name: str) -> None:
    scenarios = pack[name]
    agents = [s.kinds.count("AGENT") for s in scenarios]
    moving = [int((travelled_m(s) > 2.0).sum()) for s in scenarios]
    assert len({s.drive for s in scenarios}) >= 12
    assert all(s.kinds.count("AV") == 1 for s in scenarios)
    assert np.median(agents) >= 3
    assert max(agents) <= 4
    assert np.median(moving) >= 20


@pytest.mark.parametrize("name", NAMES)
def test_scenarios_of_a_drive_follow_one_ego_without_overlap(
    pack: dict[str, list[Scenario]], name: str
) -> None:
    by_drive: dict[str, list[Scenario]] = {}
    for s in pack[name]:
        by_drive.setdefault(s.drive, []).append(s)
    for members in by_drive.values():
        assert len({s.track_ids[s.kinds.index("AV")] for s in members}) == 1
        np.testing.assert_allclose(np.diff([s.t0_s for s in members]), 5.0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_judged_tracks_are_seen_throughout_and_move(pack: dict[str, list[Scenario]], name: str) -> None:
    for s in pack[name]:
        for track, kind in zip(s.xy, s.kinds, strict=True):
            if kind == "AGENT":
                assert not np.isnan(track).any()
                assert np.linalg.norm(track[-1] - track[0]) > 3.5


@pytest.mark.parametrize("name", NAMES)
def test_positions_are_plausible_metres(pack: dict[str, list[Scenario]], name: str) -> None:
    top = {"motorway": 50.0, "grid-city": 25.0, "roundabouts-rural": 35.0, "left-hand": 30.0}[name]
    speeds = np.concatenate(
        [(np.linalg.norm(s.xy[:, 5:] - s.xy[:, :-5], axis=-1) * 2.0).ravel() for s in pack[name]]
    )
    fast = speeds[~np.isnan(speeds)]
    assert fast.max() < top < 60.0
    assert np.percentile(fast, 95) > {"motorway": 24.0}.get(name, 9.0)


def test_traffic_keeps_to_its_side(pack: dict[str, list[Scenario]]) -> None:
    """Oncoming traffic on parallel courses passes on the left where one drives on the right, and the reverse."""
    assert oncoming_on_the_left(pack["grid-city"]) > 0.9
    assert oncoming_on_the_left(pack["motorway"]) > 0.9
    assert oncoming_on_the_left(pack["left-hand"]) < 0.1


def oncoming_on_the_left(scenarios: list[Scenario]) -> float:
    left = []
    for s in scenarios:
        ego = s.kinds.index("AV")
        way, at = s.xy[:, 30] - s.xy[:, 20], s.xy[:, 25]
        length = np.linalg.norm(way, axis=1)
        unit = way / np.maximum(length, 1e-9)[:, None]
        gap = at - at[ego]
        aside = unit[ego, 0] * gap[:, 1] - unit[ego, 1] * gap[:, 0]
        along = np.abs(gap @ unit[ego])
        facing = (unit @ unit[ego] < -0.99) & (length > 3.0) & (along < 30.0) & (np.abs(aside) < 14.0)
        left += list(aside[facing] > 0.0) if length[ego] > 3.0 else []
    assert len(left) > 50
    return float(np.mean(left))


def test_judged_tracks_are_not_all_trivial(manifest: dict[str, Any]) -> None:
    for name, region in manifest["regions"].items():
        counts = Counter(region["agent_manoeuvres"])
        assert counts.total() == region["agents"], name
        assert counts["straight"] < 0.8 * counts.total(), name
    assert manifest["regions"]["motorway"]["agent_manoeuvres"]["lane-change"] >= 50
    assert manifest["regions"]["roundabouts-rural"]["agent_manoeuvres"]["turn"] >= 200


def test_a_changed_table_is_noticed(tmp_path: Path) -> None:
    # given a pack whose one table lost a scenario
    scenarios = [
        Scenario(f"s{i}", "r", "d", 10.0, 5.0 * i, ("a",), ("AV",), np.zeros((1, 2, 2))) for i in range(2)
    ]
    write_table(tmp_path / "r.parquet", scenarios[:1])
    (tmp_path / "pack.json").write_text(json.dumps({"table_sha256": table_sha256(scenarios, version=1)}))
    # then
    with pytest.raises(
        ScenarioError,
        match=f"table-hash: {tmp_path}: expected table hash {table_sha256(scenarios, version=1)}",
    ):
        check_pack(tmp_path)


def test_folders_that_are_no_pack_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"no-such-folder: .*absent is not a folder, expected one with"):
        tables(tmp_path / "absent")
    with pytest.raises(
        ScenarioError, match=r"no-scenarios: .* holds no \*\.parquet file, expected at least one"
    ):
        tables(tmp_path)
    with pytest.raises(ScenarioError, match=r"no-manifest: .*pack\.json does not exist"):
        read_manifest(tmp_path)
    (tmp_path / "pack.json").write_text("[]")
    with pytest.raises(
        ScenarioError, match=r"bad-manifest: .*pack\.json: expected an object with table_sha256"
    ):
        read_manifest(tmp_path)


def test_one_drive_in_two_files_is_refused(tmp_path: Path) -> None:
    for file in ("a", "b"):
        one = Scenario(file, "r", "d", 10.0, 0.0, ("t",), ("AV",), np.zeros((1, 2, 2)))
        write_table(tmp_path / f"{file}.parquet", [one])
    with pytest.raises(
        ScenarioError, match=r"duplicate-drive: drive 'd' of region 'r' is in .*a\.parquet and again in"
    ):
        read_pack(tmp_path)


def test_generating_without_libsumo_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "libsumo", None)
    with pytest.raises(UsageError) as caught:
        generate(tmp_path / "out")
    assert (
        str(caught.value)
        == "scenario generation needs libsumo, which is not installed: pip install 'fedfleet[sumo]'"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", NAMES)
def test_a_drive_is_made_again_with_the_same_hash(manifest: dict[str, Any], name: str) -> None:
    if importlib.util.find_spec("libsumo") is None:
        pytest.skip("libsumo is not installed (extra [sumo])")
    for tool, version in manifest["made_with"].items():
        if importlib.metadata.version(tool) != version:
            pytest.skip(
                f"the pack was made with {tool} {version}, here is {importlib.metadata.version(tool)}"
            )
    # when
    drive = next(drives(REGIONS[name], 0, seed=manifest["seed"], count=1))
    # then
    assert table_sha256(drive.scenarios, version=1) == manifest["regions"][name]["drive_sha256"][drive.name]
    assert drive.name == f"{name}-00"


@pytest.mark.slow
def test_the_road_networks_are_made_again(tmp_path: Path) -> None:
    if find_tool("netconvert") is None or find_tool("netgenerate") is None:
        pytest.skip("netconvert and netgenerate are not installed (pip install eclipse-sumo)")
    for file in build(tmp_path):
        kept = sumo_pack() / "networks" / file.name
        assert gzip.decompress(file.read_bytes()) == gzip.decompress(kept.read_bytes()), file.name
