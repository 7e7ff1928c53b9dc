"""Prepared data: what is written is what is read, whole or not at all, and quick for many folders at once."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_task
import traffic

from fedfleet.models import prepared
from fedfleet.models.motion_forecast import TASK as MOTION
from fedfleet.models.task import load
from fedfleet.protocol.errors import UsageError
from fedfleet.scenarios import prepare as preparing
from fedfleet.scenarios.prepare import Job, prepare


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return traffic.write_folder(tmp_path / "recordings")


@pytest.fixture
def ready(folder: Path, tmp_path: Path) -> Path:
    out = tmp_path / "deep" / "v01"
    prepare(MOTION, folder, [Job(out=out, drives=("town/d01", "town/d02"), parts=("frames", "train"))])
    return out


# --- there and back ---


def test_what_is_written_is_what_is_read(folder: Path, ready: Path) -> None:
    wanted = MOTION.samples(folder, ["town/d01", "town/d02"])
    found = prepared.open(ready, "train")
    for name in ("inputs", "targets", "judged"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
        assert isinstance(getattr(found, name), np.memmap)
    frames, told = MOTION.frames(folder, ["town/d01", "town/d02"]), prepared.open_frames(ready)
    for name in ("inputs", "offsets", "sample"):
        np.testing.assert_array_equal(getattr(told, name), getattr(frames, name))
    assert told.rate_hz == 10.0


def test_the_folder_tells_what_it_holds(ready: Path) -> None:
    meta = prepared.open_meta(ready)
    prepared.check(meta, MOTION)
    assert (meta.task, meta.drives, meta.parts) == (
        "motion_forecast",
        ("town/d01", "town/d02"),
        ("train", "frames"),
    )
    assert meta.counts == {"train_samples": 24, "train_judged": 12, "frames": 124, "frames_inputs": 744}
    assert {path.name for path in ready.parent.iterdir()} == {"v01"}


def test_one_call_prepares_many_folders(folder: Path, tmp_path: Path) -> None:
    drives = [drive.key for drive in MOTION.index(folder).drives]
    jobs = [Job(out=tmp_path / f"v{i}", drives=(drive,), parts=("test",)) for i, drive in enumerate(drives)]
    metas = prepare(MOTION, folder, jobs)
    assert [meta.counts["test_samples"] for meta in metas] == [12] * 12
    np.testing.assert_array_equal(
        np.concatenate([prepared.open(job.out, "test").inputs for job in jobs]),
        MOTION.samples(folder, drives).inputs,
    )


def test_no_drives_named_means_all_of_them(folder: Path, tmp_path: Path) -> None:
    (meta,) = prepare(MOTION, folder, [Job(out=tmp_path / "all", parts=("validation",))])
    assert len(meta.drives) == 12


def test_what_was_left_out_is_counted(folder: Path, tmp_path: Path) -> None:
    traffic.write_table(folder / "short.parquet", [traffic.scenario(region="short", frames=30, tracks=4)])
    (meta,) = prepare(MOTION, folder, [Job(out=tmp_path / "out", parts=("train",))])
    assert meta.problems == {"too-short": 4}


def test_a_part_without_samples_is_still_a_part(folder: Path, tmp_path: Path) -> None:
    traffic.write_table(folder / "short.parquet", [traffic.scenario(region="short", frames=10, tracks=4)])
    prepare(MOTION, folder, [Job(out=tmp_path / "out", drives=("short/d00",), parts=("train", "frames"))])
    assert len(prepared.open(tmp_path / "out", "train")) == 0
    assert len(prepared.open_frames(tmp_path / "out")) == 0


def test_an_older_folder_is_replaced_and_left_overs_go(folder: Path, ready: Path) -> None:
    # given what a process that was killed leaves behind
    (ready.parent / ".v01.new").mkdir()
    (ready.parent / ".v01.new" / "train_inputs.npy").write_bytes(b"half")
    # when
    prepare(MOTION, folder, [Job(out=ready, drives=("town/d03",), parts=("validation",))])
    # then
    assert prepared.open_meta(ready).drives == ("town/d03",)
    names = {path.stem for path in ready.parent.rglob("*.npy")}
    assert {name for name in names if "_trait_" not in name} == {
        f"validation_{name}" for name in ("inputs", "judged", "targets")
    }
    assert all(name.startswith("validation_") for name in names)


def test_held_out_parts_keep_what_slices_need_and_training_does_not(folder: Path, tmp_path: Path) -> None:
    # when
    jobs = [Job(out=tmp_path / part, drives=("town/d01",), parts=(part,)) for part in ("train", "test")]
    prepare(MOTION, folder, jobs)
    # then
    wanted = MOTION.samples(folder, ["town/d01"]).traits
    found = prepared.open(tmp_path / "test", "test").traits
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values)
    assert not prepared.open(tmp_path / "train", "train").traits


def test_a_failed_preparation_leaves_the_older_folder(folder: Path, ready: Path) -> None:
    with pytest.raises(UsageError, match="no drive town/d99"):
        prepare(MOTION, folder, [Job(out=ready, drives=("town/d99",), parts=("train",))])
    assert prepared.open_meta(ready).drives == ("town/d01", "town/d02")


# --- reading what is wrong ---


def test_another_task_is_refused(ready: Path) -> None:
    with pytest.raises(UsageError, match="expected task tiny version 3, got motion_forecast version 1"):
        prepared.check(prepared.open_meta(ready), tiny_task.TASK)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("train_inputs.npy", None, "train_inputs.npy: cannot be read: No such file"),
        ("train_inputs.npy", b"no array", "train_inputs.npy: not a .npy file"),
        (
            "train_inputs.npy",
            np.zeros((24, 20, 2)),
            "train_inputs.npy: expected float32 or uint8, got float64[24, 20, 2]",
        ),
        (
            "train_judged.npy",
            np.ones(3, bool),
            "part train: samples of different lengths: 24 inputs, 24 targets, 3",
        ),
        ("frames_offsets.npy", np.array([0, 9, 5]), "offsets do not run from 0 to 744"),
        ("frames_sample.npy", np.zeros(3, int), "part frames: 744 inputs, 3 samples, 10.0 Hz"),
        ("meta.json", b"{", "meta.json: malformed"),
        ("meta.json", None, "v01: not a folder of prepared data: meta.json: No such file"),
    ],
)
def test_a_damaged_folder_is_named(
    ready: Path, name: str, content: bytes | np.ndarray | None, text: str
) -> None:
    (ready / name).unlink()
    if isinstance(content, bytes):
        (ready / name).write_bytes(content)
    elif content is not None:
        np.save(ready / name, content)
    with pytest.raises(UsageError) as error:
        prepared.open(ready, "train"), prepared.open_frames(ready)
    assert text in str(error.value)


# --- the command ---


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fedfleet.scenarios.prepare", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={"PYTHONPATH": str(Path(tiny_task.__file__).parent)},
    )


def test_the_command_prepares_a_plugged_in_task(tmp_path: Path) -> None:
    tiny_task.generate(tmp_path / "numbers")
    rows = [
        {"out": str(tmp_path / "a"), "drives": ["north/drive-00"], "parts": ["train", "frames"]},
        {"out": str(tmp_path / "b"), "drives": ["south/drive-01"], "parts": ["validation"]},
    ]
    (tmp_path / "jobs.json").write_text(json.dumps(rows))
    done = run(
        "--task", "tiny_task:TASK", "--scenarios", tmp_path / "numbers", "--jobs", tmp_path / "jobs.json"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["folders"][str(tmp_path / "b")] == {
        "validation_samples": 64,
        "validation_judged": 48,
    }
    prepared.check(prepared.open_meta(tmp_path / "a"), load("tiny_task:TASK"))
    assert len(prepared.open_frames(tmp_path / "a")) == 64


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--task", "steering", "--out", "o", "--parts", "train"], "unknown task 'steering'"),
        (["--task", "motion_forecast", "--out", "o", "--parts", "train"], "no recordings: an empty folder"),
        (
            ["--task", "motion_forecast", "--out", "o", "--parts", "drain"],
            "no part 'drain', expected of train,",
        ),
        (["--task", "motion_forecast", "--parts", "train"], "expected --out and --parts, or --jobs"),
        (["--task", "motion_forecast", "--jobs", "no.json"], "no.json: cannot be read: No such file"),
        (["--task", "motion_forecast", "--jobs", "no.json", "--out", "o"], "--jobs stands alone"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(
    arguments: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = preparing.main(["--scenarios", str(tmp_path), *arguments])
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("prepare: ")
    assert text in err


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([{"out": "a", "parts": ["drain"]}], "job 0.parts.0: Input should be 'train'"),
        ([{"out": "a", "parts": []}], "job 0.parts: Tuple should have at least 1 item"),
        ([{"out": "a", "parts": ["train"], "drives": []}], "job 0.drives: Tuple should have at least 1 item"),
        ([{"out": "a", "parts": ["train"], "drive": []}], "job 0.drive: Extra inputs are not permitted"),
        ({}, "job file: Input should be a valid array"),
    ],
)
def test_malformed_jobs_are_named(tmp_path: Path, rows: object, text: str) -> None:
    (tmp_path / "jobs.json").write_text(json.dumps(rows))
    with pytest.raises(UsageError) as error:
        preparing.read_jobs(tmp_path / "jobs.json")
    assert text in str(error.value)
