"""`fedfleet scenarios stats` and `plot`: figures against what the traffic was made of; pictures that are pictures."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tubs
from PIL import Image
from traffic import write_folder

from fedfleet.cli.main import main
from fedfleet.scenarios.records import Scenario
from fedfleet.scenarios.stats import BINS, Histogram, tally
from fedfleet.scenarios.table import write_table

TIME_S = np.arange(50) * 0.1


def traffic(*tracks: np.ndarray, name: str = "s0", region: str = "town") -> Scenario:
    ids = tuple(f"t{i}" for i in range(len(tracks)))
    types = tuple("truck" if i == 0 else "vehicle" for i in range(len(tracks)))
    return Scenario(name, region, "d0", 10.0, 0.0, ids, ("OTHERS",) * len(tracks), np.stack(tracks), types)


def along(speed_mps: float, *, y_m: float = 0.0, x_m: float = 0.0, change_mps2: float = 0.0) -> np.ndarray:
    x = x_m + speed_mps * TIME_S + change_mps2 * TIME_S**2 / 2
    return np.stack([x, np.full(50, y_m)], axis=-1)


def test_speeds_accelerations_and_lengths_are_those_of_the_tracks() -> None:
    # given a car at 10 m/s, one that brakes from 20 m/s by 2 m/s², and one that stands
    found = tally([traffic(along(10.25), along(20.0, y_m=100, change_mps2=-2.1), along(0.0, y_m=200))])[
        "town"
    ]
    # then
    speed = found.histograms["speed_mps"]
    assert speed.quantile(0.5) == pytest.approx(10.25, abs=0.5)
    assert speed.mean == pytest.approx((10.25 + 20 - 2.1 * 2.45 + 0) / 3, rel=0.05)
    assert found.histograms["acceleration_mps2"].quantile(0.01) == pytest.approx(-2.1, abs=0.25)
    assert (found.tracks, found.standing, found.scenarios, found.seconds) == (3, 1, 1, 5.0)
    assert found.types == {"truck": 1, "vehicle": 2}
    metres = found.histograms["track_m"]
    assert metres.total == pytest.approx(10.25 * 4.9 + 20 * 4.9 - 2.1 * 4.9**2 / 2, rel=0.01)


def test_a_track_that_is_seen_for_a_while_counts_for_that_while() -> None:
    part = along(10.0)
    part[:30] = np.nan
    found = tally([traffic(along(10.0, y_m=50), part)])["town"].histograms
    assert found["track_s"].total == pytest.approx(5.0 + 2.0)
    assert found["speed_mps"].count == 45 + 15


def test_pairs_that_pass_close_and_pairs_that_would_collide_are_counted_once() -> None:
    # given two cars side by side, 5 m apart; two on one lane towards each other; and one far away
    side = [along(10.0), along(10.0, y_m=5.0)]
    head_on = [along(10.0, y_m=300.0), along(-10.0, y_m=300.0, x_m=55.0)]
    found = tally([traffic(*side, *head_on, along(10.0, y_m=900.0))])["town"]
    # then
    assert found.close == 2  # side by side, and those that meet
    assert found.conflicts == 1


def test_cars_that_stand_beside_each_other_do_not_meet() -> None:
    assert tally([traffic(along(0.0), along(0.0, y_m=3.0))])["town"].close == 0


def test_what_is_beyond_the_last_edge_counts_to_the_last_bin() -> None:
    found = Histogram(BINS["speed_mps"])
    found.add(np.array([500.0, np.nan, 1.0]))
    assert found.count == 2
    assert found.counts[-1] == 1
    assert Histogram(BINS["speed_mps"]).quantile(0.5) is None


@pytest.fixture
def scenarios(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedfleet", "scenarios", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        return (ended.value.code, *capfd.readouterr())

    return call


def test_the_command_tells_regions_and_writes_page_and_pictures(scenarios: Any, tmp_path: Path) -> None:
    # given
    write_folder(tmp_path / "pack", drives=2)
    # when
    code, printed, _ = scenarios("stats", "--scenarios", "pack", "--out", "stats", "--json")
    # then
    assert code in {0, None}
    found = json.loads(printed)["regions"]
    assert sorted(found) == ["coast", "town"]
    assert (found["town"]["scenarios"], found["town"]["tracks"], found["town"]["drives"]) == (4, 24, 2)
    assert 3 <= found["town"]["speed_mps"]["p50"] <= 15
    page = (tmp_path / "stats" / "stats.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 5
    assert (tmp_path / "stats" / "speed_mps.png").read_bytes().startswith(b"\x89PNG")
    # and for people
    code, printed, _ = scenarios("stats", "--scenarios", "pack")
    assert "conflicts" in printed
    assert "town" in printed


def test_a_scenario_is_drawn_from_above_and_moves(scenarios: Any, tmp_path: Path) -> None:
    # given
    write_table(tmp_path / "pack.parquet", [traffic(along(10.0), along(5.0, y_m=8.0))])
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack.parquet").rename(tmp_path / "pack" / "town.parquet")
    # when
    code, printed, err = scenarios("plot", "--scenarios", "pack", "--gif", "--out", "pics")
    # then
    assert code in {0, None}, err
    assert printed.split() == ["pics/town-d0-s0.png", "pics/town-d0-s0.gif"]
    with Image.open(tmp_path / "pics" / "town-d0-s0.gif") as moving:
        assert moving.n_frames == 50  # type: ignore[attr-defined]
        assert moving.info["duration"] == 100
    first = (tmp_path / "pics" / "town-d0-s0.png").read_bytes()
    scenarios("plot", "--scenarios", "pack", "--out", "again")
    assert (tmp_path / "again" / "town-d0-s0.png").read_bytes() == first


def test_mp4_is_what_ffmpeg_makes_of_the_pictures(
    scenarios: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a program of that name, which writes down what it gets
    write_folder(tmp_path / "pack", drives=1, regions=("town",))
    tools = tmp_path / "tools"
    tools.mkdir()
    program = tools / "ffmpeg"
    program.write_text('#!/bin/sh\nfor last; do :; done\necho "$@" > "$last"\nwc -c >> "$last"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    # when
    code, _, err = scenarios("plot", "--scenarios", "pack", "--scenario", "s1", "--mp4", "--out", "pics")
    # then
    assert code in {0, None}, err
    arguments, count = (tmp_path / "pics" / "town-d00-s1.mp4").read_text().splitlines()
    columns, rows = (int(side) for side in arguments.split(" -s ")[1].split()[0].split("x"))
    assert columns % 2 == rows % 2 == 0
    assert int(count) == 50 * columns * rows * 3
    # when it fails
    program.write_text("#!/bin/sh\ncat > /dev/null\necho 'no such codec' >&2\nexit 1\n")
    code, _, err = scenarios("plot", "--scenarios", "pack", "--mp4", "--out", "pics")
    assert code == 2
    assert err == "fedfleet: --mp4: ffmpeg failed on town-d00-s0.mp4: no such codec\n"


def test_what_is_not_there_is_one_line(
    scenarios: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "pack", drives=1, regions=("town",))
    (tmp_path / "file").write_text("mine")
    for words, text in (
        (("plot", "--scenario", "s9"), "pack: no scenario s9 in any drive"),
        (("plot", "--drives", "town/d77"), "pack: no drive town/d77: expected one of town/d00"),
        (("plot", "--out", "file"), "--out file: expected a folder, got a file"),
        (("stats", "--out", "file"), "--out file: expected a folder, got a file"),
    ):
        code, _, err = scenarios(*words, "--scenarios", "pack")
        assert (code, err) == (2, f"fedfleet: {text}\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, err = scenarios("plot", "--scenarios", "pack", "--mp4")
    assert (code, err) == (2, "fedfleet: --mp4: ffmpeg is not installed; --gif needs nothing more\n")


def test_stats_of_a_task_of_images_are_of_its_samples(scenarios: Any, tmp_path: Path) -> None:
    """`scenarios stats --task`: what the driver did, by place; and what was left out."""
    # given two cars
    made = tubs.files(240)
    for name in ("hall-red", "yard-blue"):
        tubs.write_zip(tmp_path / "cars" / f"{name}.zip", made)
    given = ["stats", "--task", "camera_steering", "--scenarios", tmp_path / "cars"]
    # when
    code, out, _ = scenarios(*given, "--json")
    # then
    told = json.loads(out)
    assert (code, told["task"], set(told["regions"])) == (0, "camera_steering", {"hall", "yard"})
    hall = told["regions"]["hall"]
    assert hall["samples"] == sum(hall["slices"]["steering"].values()) > 50
    assert hall["targets"]["p5"] <= hall["targets"]["p50"] <= hall["targets"]["p95"]
    assert hall["left_out"]["between-blocks"] > 0
    code, out, _ = scenarios(*given, "--out", tmp_path / "out")
    assert code == 0
    assert "hall: steering: " in out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"stats.html", "targets.png"}
