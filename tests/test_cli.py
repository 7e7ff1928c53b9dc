"""The command as a person uses it: as a process, with its exit codes and its one-line messages."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedfleet.fleet_server.store import open_store
from fedfleet.protocol.signing import SigningKey
from fedfleet.scenarios.records import Scenario
from fedfleet.scenarios.table import write_table

KEY = SigningKey(b"\x05" * 32).public.hex()


def fedfleet(*arguments: str, cwd: Path, timeout_s: float = 90.0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fedfleet.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=timeout_s, check=False)


def is_one_line(done: subprocess.CompletedProcess[str], words: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("fedfleet: ")
    assert words in done.stderr


def scenario(drive: str, number: int, region: str = "north") -> Scenario:
    frames = np.arange(50, dtype=np.float64)
    xy = np.stack(
        [np.stack([frames * speed, np.full(50, lane)], axis=1) for speed, lane in ((1.0, 0.0), (1.5, 4.0))]
    )
    return Scenario(
        scenario_id=f"{drive}-{number}",
        region=region,
        drive=drive,
        rate_hz=10.0,
        t0_s=float(number * 5),
        track_ids=("a", "b"),
        kinds=("AV", "AGENT"),
        xy=xy,
    )


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    folder = tmp_path / "recordings"
    folder.mkdir()
    write_table(folder / "north.parquet", [scenario(f"d{n}", k) for n in range(6) for k in range(2)])
    return folder


def test_without_a_command_it_explains_itself(tmp_path: Path) -> None:
    done = fedfleet(cwd=tmp_path)
    assert "Commands" in done.stdout + done.stderr


def test_scenarios_list_counts(tmp_path: Path, recordings: Path) -> None:
    done = fedfleet("scenarios", "list", "-s", str(recordings), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["regions"] == {"north": {"drives": 6, "recordings": 12, "seconds": 60.0}}


def test_scenarios_check_counts_samples(tmp_path: Path, recordings: Path) -> None:
    done = fedfleet("scenarios", "check", "-s", str(recordings), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["samples"] == 24


def test_an_empty_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    is_one_line(fedfleet("scenarios", "list", "-s", "empty", cwd=tmp_path), "an empty folder")


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    is_one_line(
        fedfleet("scenarios", "check", "-s", "nowhere", cwd=tmp_path),
        "nowhere: expected a folder of recordings",
    )


def test_a_malformed_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.parquet").write_bytes(b"PAR1 not really")
    is_one_line(fedfleet("scenarios", "check", "-s", "bad", cwd=tmp_path), "x.parquet")


def test_an_unknown_task_names_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "fedfleet.toml").write_text('task = "chess"\n')
    is_one_line(fedfleet("scenarios", "list", cwd=tmp_path), "motion_forecast")


def test_a_mistake_in_the_configuration_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "fedfleet.toml").write_text("[broker]\nport = 'x'\n")
    is_one_line(fedfleet("status", cwd=tmp_path), "fedfleet.toml: broker.port: expected")


@pytest.mark.parametrize("command", [("server",), ("agent", "v01"), ("fleet",)])
def test_a_broker_that_is_down_is_one_line(tmp_path: Path, free_port: int, command: tuple[str, ...]) -> None:
    (tmp_path / "fedfleet.toml").write_text(f"[broker]\nport = {free_port}\n")
    is_one_line(fedfleet(*command, cwd=tmp_path), f"127.0.0.1:{free_port}")


def test_a_vehicle_id_outside_the_alphabet_is_one_line(tmp_path: Path) -> None:
    is_one_line(
        fedfleet("agent", "V_01", cwd=tmp_path), "vehicle id 'V_01': expected 1 to 36 of a-z, 0-9 and '-'"
    )


def test_status_without_a_server_is_one_line(tmp_path: Path) -> None:
    is_one_line(fedfleet("status", cwd=tmp_path), "no fleet server")


def test_enrolment_by_hand(tmp_path: Path) -> None:
    shown = fedfleet("agent", "v01", "--show-key", cwd=tmp_path).stdout.strip()
    assert len(shown) == 64
    assert fedfleet("agent", "v01", "--show-key", cwd=tmp_path).stdout.strip() == shown
    # without a fleet there is nothing to enrol at, and nothing is made
    none = fedfleet("server", "enrol", "v01", "--region", "north", "--key", shown, cwd=tmp_path)
    is_one_line(none, "no fleet server has kept its store here")
    is_one_line(fedfleet("server", "deny", "v01", cwd=tmp_path), "no fleet server has kept its store here")
    assert not (tmp_path / "out" / "fleet" / "server").exists()
    open_store(tmp_path / "out" / "fleet" / "server", fleet="demo", task="motion_forecast").close()
    done = fedfleet("server", "enrol", "v01", "--region", "north", "--key", shown, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    again = fedfleet("server", "enrol", "v01", "--region", "north", "--key", KEY, cwd=tmp_path)
    is_one_line(again, "vehicle v01 is enrolled with another key")
    assert fedfleet("server", "deny", "v01", cwd=tmp_path).returncode == 0
    is_one_line(fedfleet("server", "deny", "v02", cwd=tmp_path), "v02 is not enrolled")


def test_a_key_that_is_none_is_one_line(tmp_path: Path) -> None:
    done = fedfleet("server", "enrol", "v01", "--region", "north", "--key", "abc", cwd=tmp_path)
    is_one_line(done, "--key: expected 64 hex digits or a file that holds them, got 'abc'")
