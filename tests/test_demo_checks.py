"""The demo checks what can be checked before it starts anything, and forges for a task of any name."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_task

from fedfleet.cli import demo_intruder, preflight
from fedfleet.protocol import topics
from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.signing import SigningKey

EARLIER = "out/demo/work/logs/earlier.log"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Recordings of two regions, and the results of an earlier demo."""
    tiny_task.generate(tmp_path / "recordings", regions=("east", "west"))
    (tmp_path / EARLIER).parent.mkdir(parents=True)
    (tmp_path / EARLIER).write_text("an earlier demo", encoding="utf-8")
    return tmp_path


def refused(folder: Path, *words: str, config: str = "") -> str:
    """The one line with which the demo refuses; within seconds, and with the earlier demo untouched."""
    (folder / "fedfleet.toml").write_text(config, encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": str(Path(tiny_task.__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-m", "fedfleet.cli.main", "demo", *words],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "listens" not in done.stdout
    assert (folder / EARLIER).is_file()
    return done.stderr


TINY = ("--task", "tiny_task:TASK", "-s", "recordings")


def test_a_task_that_is_not_there_is_refused_at_once(folder: Path) -> None:
    line = refused(folder, "--task", "nowhere:TASK", "-s", "recordings")
    assert "cannot load 'nowhere:TASK'" in line
    assert "put its folder on PYTHONPATH (the current folder is not searched)" in line
    assert "has no attribute 'TUSK'" in refused(folder, "--task", "tiny_task:TUSK", "-s", "recordings")
    assert "did you mean motion_forecast?" in refused(folder, "--task", "motion-forcast")


def test_a_folder_without_recordings_is_refused_at_once(folder: Path) -> None:
    (folder / "empty").mkdir()
    assert "no recordings" in refused(folder, "--task", "tiny_task:TASK", "-s", "empty")


def test_too_few_rounds_for_the_faults_are_refused_at_once(folder: Path) -> None:
    assert "--rounds 2: the faults take 3 rounds or more" in refused(folder, *TINY, "--rounds", "2")


def test_too_few_vehicles_for_the_faults_are_refused_at_once(folder: Path) -> None:
    line = refused(folder, *TINY, config="[data]\nvehicles_per_region = 1\n")
    assert "no region has more than 1 vehicles" in line
    assert "--no-faults" in line


def test_a_broker_elsewhere_is_refused_at_once(folder: Path) -> None:
    line = refused(folder, *TINY, config='[broker]\nembedded = "none"\n')
    assert "broker.embedded is 'none': the demo starts a broker of its own" in line


def test_a_port_that_is_taken_is_refused_at_once(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = refused(folder, *TINY, config=f"[server.metrics]\nport = {port}\n")
    assert f"server.metrics: cannot listen on 127.0.0.1:{port}" in line


def test_results_that_cannot_be_written_are_refused_at_once(folder: Path) -> None:
    (folder / "file").write_text("x", encoding="utf-8")
    assert "is a file, expected a folder" in refused(folder, *TINY, "--out", "file/demo")


def test_a_full_disk_is_refused_at_once(tmp_path: Path) -> None:
    preflight.has_space(tmp_path / "new" / "folder")
    with pytest.raises(UsageError, match="MB are free on its disk, expected 1000000000 MB or more"):
        preflight.has_space(tmp_path / "new" / "folder", size_bytes=10**15)


def test_a_fleet_without_test_drives_is_refused_at_once(folder: Path) -> None:
    line = refused(folder, *TINY, config="[data]\ntest = 0.0\n")
    assert "region east: no drive is kept for the test at the end" in line
    assert "data.test" in line


def test_what_is_forged_is_for_the_name_that_the_task_has(monkeypatch: pytest.MonkeyPatch) -> None:
    # given the snapshot of a fleet whose task was named as module:ATTRIBUTE
    monkeypatch.syspath_prepend(str(Path(tiny_task.__file__).parent))
    snapshot = {"task": "tiny_task:TASK", "version": 3, "parameters": 49}
    # when
    target = demo_intruder.target("demo", {"region": "east", "round": 4}, snapshot)
    name, sealed = demo_intruder.sealed_update("saboteur", SigningKey(b"\x01" * 32), target)
    # then it names the task as vehicles do, so that it can be sent
    assert target.task == "tiny"
    assert topics.update(target.fleet, name.vehicle, target.task, round_=4, number=0)
    assert len(demo_intruder.corrupt(sealed)) == len(sealed)
