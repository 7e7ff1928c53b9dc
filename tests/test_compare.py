"""`fedfleet compare` on a tiny task, end to end, and what it says when something is wrong."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_task
import traffic
from child_processes import Processes

from fedfleet.fleet_server import store_rounds
from fedfleet.fleet_server.store import open_reader
from fedfleet.scenarios.table import write_table

ARMS = ("constant_velocity", "centralised", "on_site", "federated")
HERE = Path(__file__).parent
SMALL = ("--rounds", "3", "--epochs", "6", "--vehicles-per-region", "2")
TINY = ("--task", "tiny_task:TASK", *SMALL)


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "fedfleet.cli.main", "compare", *map(str, words)]


def compare(*words: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(HERE), "COLUMNS": "200"}
    return subprocess.run(
        command(*words), capture_output=True, text=True, timeout=170, check=False, env=environment
    )


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def refused(*words: object) -> str:
    """Run a comparison that must not begin; return what it said, without the progress before."""
    done = compare(*words)
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("fedfleet: ")]
    return line


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    tiny_task.generate(folder, drives=8)
    return folder


@pytest.fixture(scope="module")
def done(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """One comparison of the tiny task: its folder, and what it printed."""
    out = tmp_path_factory.mktemp("compare")
    ended = compare("--scenarios", recordings, "--out", out, *TINY)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return out, ended.stdout


def figures(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """What must be the same in two runs: everything but the seconds."""
    return {name: value for name, value in found.items() if name != "seconds"}


def test_every_arm_has_the_task_s_metrics_overall_and_by_region(done: tuple[Path, str]) -> None:
    found = read(done[0] / "compare.json")
    for arm in ARMS:
        assert sorted(found[arm]["regions"]) == ["north", "south"]
        for part in (found[arm]["overall"], *found[arm]["regions"].values()):
            assert {"mae", "close"} <= part.keys()
            assert {"mae", "close"} <= part["all_tracks"].keys()
            assert part["tracks"] < part["all_tracks"]["tracks"]
    assert found["rounds"] == 3
    assert found["bytes_up"] > 3 * 4 * 49  # more than nothing: each of four vehicles sent three updates
    assert found["bytes_down"] > found["bytes_up"]
    assert found["seconds"] > 0


def test_overall_counts_every_sample_the_same(done: tuple[Path, str]) -> None:
    for arm in ARMS:
        told = read(done[0] / "compare.json")[arm]
        parts = told["regions"].values()
        weighted = sum(part["mae"] * part["tracks"] for part in parts) / sum(part["tracks"] for part in parts)
        assert told["overall"]["mae"] == pytest.approx(weighted)


def test_what_learns_beats_the_trivial_answer(done: tuple[Path, str]) -> None:
    found = read(done[0] / "compare.json")
    trivial = found["constant_velocity"]["overall"]["mae"]
    assert all(found[arm]["overall"]["mae"] < trivial for arm in ARMS[1:])


def test_someone_can_repeat_it(done: tuple[Path, str]) -> None:
    found = read(done[0] / "compare.json")
    assert found["seed"] == 1
    assert len(found["data"]["sha256"]) == len(found["model_sha256"]) == 64
    assert set(found["data"]["vehicles"].values()) == {"north", "south"}
    assert (found["settings"]["epochs"], found["settings"]["local_epochs"]) == (6, 2)
    assert "torch" in found["versions"]
    for arm in ("centralised", "on_site"):
        assert [point["epochs"] for point in found[arm]["curve"]] == list(range(7))
    assert found["federated"]["curve"][0]["epochs"] == 0


def test_every_arm_is_told_by_slice_and_where_the_federated_one_differs(done: tuple[Path, str]) -> None:
    found = read(done[0] / "compare.json")
    for arm in ARMS:
        assert list(found[arm]["slices"]) == ["all", "region=north", "region=south"]
        assert found[arm]["slices"]["all"]["mae"]["value"] == pytest.approx(found[arm]["overall"]["mae"])
        for region in ("north", "south"):
            own = found[arm]["slices"][f"region={region}"]
            assert own["mae"]["value"] == pytest.approx(found[arm]["regions"][region]["mae"])
            assert own["samples"] == found[arm]["regions"][region]["tracks"]
    worst = max(("north", "south"), key=lambda name: found["federated"]["regions"][name]["mae"])
    assert found["worst_slice"] == f"region={worst}"
    assert set(found["differences"]) == set(ARMS) - {"federated"}
    gain = found["differences"]["constant_velocity"]["all"]
    trivial, ours = (found[arm]["overall"]["mae"] for arm in ("constant_velocity", "federated"))
    assert gain["difference"] == pytest.approx(ours - trivial)
    # then: this task does not tell its samples' drives, so there are two regions to draw, too few to be sure
    assert gain["federated_is"] == "no-difference-shown"
    assert f"worst slice of federated: region={worst}" in done[1]


def test_the_page_says_what_it_was_made_from(done: tuple[Path, str]) -> None:
    page, found = (done[0] / "report.html").read_text(encoding="utf-8"), read(done[0] / "compare.json")
    for words in (found["data"]["sha256"], found["model_sha256"], "fedfleet compare --scenarios", "torch "):
        assert words in page


def test_the_table_the_pictures_and_the_page_are_there(done: tuple[Path, str]) -> None:
    out, printed = done
    assert "federated" in printed
    assert "vs central-" in printed
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 3 + 1 + 3  # and bars by region, and the federated arm against three others
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", "")
    for name in ("curves", "regions", "learning_by_region"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_again_gives_the_same_figures_and_bytes(
    done: tuple[Path, str], recordings: Path, tmp_path: Path
) -> None:
    again = compare(
        "--scenarios", recordings, "--out", tmp_path, "--json", tmp_path / "here" / "x.json", *TINY
    )
    assert again.returncode == 0, again.stderr
    assert figures(read(tmp_path / "here" / "x.json")) == figures(read(done[0] / "compare.json"))


def test_over_a_real_broker_the_model_is_the_same_byte_for_byte(
    done: tuple[Path, str], recordings: Path, tmp_path: Path, mosquitto_binary: Path
) -> None:
    del mosquitto_binary
    ended = compare("--scenarios", recordings, "--out", tmp_path, "--broker", *TINY)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    here, there = read(tmp_path / "compare.json"), read(done[0] / "compare.json")
    assert here["link"] == "broker"
    assert here["model_sha256"] == there["model_sha256"]
    assert here["final_model_sha256"] == there["final_model_sha256"]
    assert {arm: here[arm] for arm in ARMS} == {arm: there[arm] for arm in ARMS}


def test_rounds_of_some_batches_end_with_the_budget_of_all_samples_together(
    recordings: Path, tmp_path: Path
) -> None:
    short = ("--task", "tiny_task:SHORT", "--epochs", "1", "--vehicles-per-region", "2")
    ended = compare("--scenarios", recordings, "--out", tmp_path, *short)
    assert ended.returncode == 0, ended.stderr
    found = read(tmp_path / "compare.json")
    sizes = found["data"]["training_samples"].values()
    # then all vehicles together learn from no more samples than there are
    assert found["rounds"] == sum(sizes) // (2 * 16 * len(sizes)) > 1
    assert found["federated"]["curve"][-1]["epochs"] == pytest.approx(
        found["rounds"] * 2 * 16 * len(sizes) / sum(sizes)
    )
    assert found["federated"]["curve"][-1]["epochs"] <= 1
    # and more rounds than that are refused before anything is trained
    told = refused("--scenarios", recordings, "--out", tmp_path, *short, "--rounds", "7")
    assert f"7 rounds: expected at most {found['rounds']} in 1 passes over {sum(sizes)} samples" in told


def test_other_recordings_are_all_test_and_unknown_regions_keep_their_names(
    recordings: Path, tmp_path: Path
) -> None:
    # given a folder with a region that trained and one that did not
    other = tmp_path / "other"
    tiny_task.generate(other, regions=("south", "east"), drives=3, seed=5)
    ended = compare("--scenarios", recordings, "--test", other, "--out", tmp_path / "out", *TINY)
    assert ended.returncode == 0, ended.stderr
    found = read(tmp_path / "out" / "compare.json")
    # then all of it is judged, under its own names, and the reader is told
    assert found["data"]["test_samples"] == {"east": 3 * 64, "south": 3 * 64}
    assert sorted(found["on_site"]["regions"]) == ["east", "south"]
    assert "no vehicle trained in east: on-site there is the mean over all vehicles" in found["notes"]
    # and no drive is kept back from training: one of eight validates each region
    assert sum(found["data"]["training_samples"].values()) == 2 * 7 * 64


def test_too_few_drives_are_one_line(tmp_path: Path) -> None:
    tiny_task.generate(tmp_path / "one", regions=("north",), drives=1)
    assert refused("--scenarios", tmp_path / "one", "--out", tmp_path / "out", *TINY) == (
        "fedfleet: region north has 1 drives, too few for 2 vehicles, 1 drives for validation and 1 for test"
    )


def test_a_region_without_a_drive_for_validation_is_one_line(recordings: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scenarios"
    folder.mkdir()
    for file in recordings.glob("*.npy"):
        (folder / file.name).write_bytes(file.read_bytes())
    np.save(folder / "west--drive-00.npy", np.zeros((64, 5), dtype=np.float32))
    line = refused("--scenarios", folder, "--out", tmp_path / "out", *TINY)
    assert line.startswith("fedfleet: region west has 1 drives, too few for 2 vehicles")


def emptied(recordings: Path, folder: Path, *names: str) -> Path:
    """Copy recordings; the drives whose names begin so have nothing in them."""
    folder.mkdir()
    for file in recordings.glob("*.npy"):
        table = np.load(file)
        np.save(folder / file.name, table[:0] if file.name.startswith(names) else table)
    return folder


def test_a_region_that_cannot_feed_its_vehicles_gets_fewer_or_is_left_out_in_one_line(
    recordings: Path, tmp_path: Path
) -> None:
    # given three regions, by default of three vehicles each: one has nothing, one has four usable drives of eight
    folder = emptied(recordings, tmp_path / "scenarios", *(f"south--drive-0{number}" for number in range(4)))
    for number in range(8):
        np.save(folder / f"west--drive-{number:02d}.npy", np.zeros((0, 5), dtype=np.float32))
    ended = compare(
        "--scenarios", folder, "--out", tmp_path / "out", "--task", "tiny_task:TASK", "--epochs", 2
    )
    assert ended.returncode == 0, ended.stderr
    found = read(tmp_path / "out" / "compare.json")
    # then all of what can be used is, and the reader is told
    homes = list(found["data"]["vehicles"].values())
    assert (homes.count("north"), homes.count("south"), homes.count("west")) == (3, 2, 0)
    assert all(count > 1 for count in found["data"]["training_samples"].values())
    south, west = sorted(note for note in found["notes"] if note.startswith("region "))
    assert south == "region south: 2 instead of 3 vehicles, as it has usable drives to train on: 2"
    assert west.startswith("region west has 8 drives, 0 of them usable, too few for 1 vehicles")
    assert west.endswith("the region is left out")
    assert f"note: {south}" in ended.stderr


def test_where_no_region_has_anything_to_learn_from_there_is_one_line(
    recordings: Path, tmp_path: Path
) -> None:
    folder = emptied(recordings, tmp_path / "scenarios", "north", "south")
    line = refused("--scenarios", folder, "--out", tmp_path / "out", *TINY)
    assert line.startswith("fedfleet: region north has 8 drives, 0 of them usable, too few for 1 vehicles")


def test_the_models_that_were_judged_lie_beside_the_report(done: tuple[Path, str], recordings: Path) -> None:
    out, found = done[0], read(done[0] / "compare.json")
    assert sorted(found["models"]) == [
        "centralised.onnx",
        "federated.onnx",
        *(f"on_site/v0{number}.onnx" for number in range(1, 5)),
    ]
    for name, digest in found["models"].items():
        assert sha256((out / name).read_bytes()).hexdigest() == digest
    assert found["models"]["federated.onnx"] == found["model_sha256"]
    assert str(out / "federated.onnx") in done[1]
    # and `replay` takes each of them
    for name in ("federated.onnx", "on_site/v01.onnx"):
        environment = {**os.environ, "PYTHONPATH": str(HERE), "COLUMNS": "200"}
        words = (
            "--model",
            out / name,
            "--scenarios",
            recordings,
            "--task",
            "tiny_task:TASK",
            "--speed",
            "max",
        )
        replayed = subprocess.run(
            [sys.executable, "-m", "fedfleet.cli.main", "replay", *map(str, words), "--no-report"],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
            env=environment,
        )
        assert replayed.returncode == 0, replayed.stderr


def test_it_is_said_whether_the_model_is_better_than_the_trivial_answer(done: tuple[Path, str]) -> None:
    found = read(done[0] / "compare.json")
    said = found["against_baseline"]
    assert (said["is_worse_overall"], said["worse_in"], said["slices"]) == (False, [], 2)
    (line,) = said["said"]
    assert (
        line
        == "federated is (perhaps by chance) better than trivial answer overall; it is worse in none of 2 slices"
    )
    assert line in done[1]
    assert line in (done[0] / "report.html").read_text(encoding="utf-8")
    # and + is better in the table, whose head says so
    assert "(+ better)" in done[1]
    gain = 100 * (1 - found["federated"]["overall"]["mae"] / found["constant_velocity"]["overall"]["mae"])
    assert f"{gain:+.1f} %" in done[1]
    differences = found["differences"]["constant_velocity"]
    assert all(one["gain"] == -one["difference"] for one in differences.values())


def test_a_run_in_which_nothing_was_published_is_an_error_that_says_so(
    recordings: Path, tmp_path: Path
) -> None:
    # given a gate that takes no step
    config = tmp_path / "fleet.toml"
    config.write_text("[server.gate]\nstep_norm = 1e-9\n")
    line = refused("--scenarios", recordings, "--out", tmp_path / "out", "-c", config, *TINY)
    assert line.startswith(
        "fedfleet: the federated arm published no version in 3 rounds, so there is nothing to compare; "
        "the last was refused: step: its length is"
    )
    # then there is no result that could pass for one
    assert not list((tmp_path / "out").glob("*.json"))
    assert not list((tmp_path / "out").glob("*.onnx"))


def test_a_share_of_the_vehicles_can_be_asked_and_the_budget_stays(recordings: Path, tmp_path: Path) -> None:
    words = ("--task", "tiny_task:TASK", "--epochs", "2", "--vehicles-per-region", "4")
    folder = ("--scenarios", recordings, "--out", tmp_path)
    ended = compare(*folder, *words, "--participation", "0.25")
    assert ended.returncode == 0, ended.stderr
    found = read(tmp_path / "compare.json")
    # then two of eight are asked, four times as often
    assert found["rounds"] == 8
    assert "2 of 8 vehicles were asked in each round, as many of each region" in found["notes"]
    store = open_reader(tmp_path / "work" / "server")
    try:
        with store.read() as connection:
            rounds = store_rounds.rounds(connection)
    finally:
        store.close()
    asked = {(one.plan.round, one.plan.region): one.contributors for one in rounds}
    assert all(one is not None and len(one) == 1 for one in asked.values())
    assert len({one for (_, region), one in asked.items() if region == "north"}) > 1
    # and the configured number is taken as well
    config = tmp_path / "fleet.toml"
    config.write_text("[server.rounds]\nshare_wanted = 3\nquorum = 2\ndeadline_s = 5\nlease_s = 5\n")
    ended = compare(*folder, *words, "-c", config, "--rounds", "2")
    assert ended.returncode == 0, ended.stderr
    found = read(tmp_path / "compare.json")
    assert found["rounds"] == 2
    assert "6 of 8 vehicles were asked in each round, as many of each region" in found["notes"]
    told = "server.rounds.quorum, server.rounds.deadline_s, server.rounds.lease_s had no effect: every round waits"
    assert any(note.startswith(told) for note in found["notes"])
    assert f"note: {told}" in ended.stderr


def test_mistakes_are_one_line_and_leave_no_result(recordings: Path, tmp_path: Path) -> None:
    old = tmp_path / "compare.json"
    old.write_text("{}")
    scenarios = ("--scenarios", recordings, "--out", tmp_path)
    assert "unknown task 'no_such'" in refused(*scenarios, "--task", "no_such")
    assert not old.exists()
    assert refused(*scenarios, "--rounds", 9, "--epochs", 8) == (
        "fedfleet: --rounds 9: expected at most --epochs 8: a round takes one pass or more"
    )
    assert "expected a folder of recordings" in refused("--scenarios", tmp_path / "no", "--out", tmp_path)


def test_a_test_folder_at_another_sampling_rate_is_one_line(tmp_path: Path) -> None:
    # given the shipped pack, and a folder recorded at 5 Hz
    (tmp_path / "slow").mkdir()
    write_table(tmp_path / "slow" / "town.parquet", [replace(traffic.scenario(), rate_hz=5.0)])
    line = refused("--test", tmp_path / "slow", "--out", tmp_path / "out", *SMALL)
    assert line.endswith("tracks are at another sampling rate than motion_forecast needs")
    assert str(tmp_path / "slow") in line


def test_a_folder_that_is_not_ours_is_not_removed(recordings: Path, tmp_path: Path) -> None:
    kept = tmp_path / "work" / "mine.txt"
    kept.parent.mkdir()
    kept.write_text("x")
    line = refused("--scenarios", recordings, "--out", tmp_path, *TINY)
    assert line.endswith("not a folder of an earlier comparison, so it is not removed")
    assert kept.exists()


def test_ctrl_c_leaves_no_result(
    recordings: Path, tmp_path: Path, processes: Processes, wait_until: Callable[..., None]
) -> None:
    words = ("--task", "tiny_task:TASK", "--epochs", 2000, "--vehicles-per-region", 2)
    popen = processes.start(
        command("--scenarios", recordings, "--out", tmp_path, *words), env={"PYTHONPATH": str(HERE)}
    )
    wait_until(lambda: "centralised: 5/" in processes.log(popen), "training", timeout_s=90)
    popen.send_signal(signal.SIGINT)
    assert popen.wait(60) == 130
    assert not list(tmp_path.glob("*.json"))
    assert not list(tmp_path.glob("*.html"))
