"""Training labels that a teacher is far from: left out of the training part only, counted, frames pointing right."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_task

from fedfleet.fleet_server.export import export
from fedfleet.models import prepared
from fedfleet.models.layout import patch
from fedfleet.protocol.errors import UsageError
from fedfleet.scenarios.labels_teacher import Teacher
from fedfleet.scenarios.prepare import Job, open_teacher, prepare

TASK = tiny_task.TASK
LIMIT = 0.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("recordings")
    tiny_task.generate(place, drives=3)
    return place


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that always answers 0, so that what it is far from are the large targets."""
    made = export(TASK, seed=0)
    file = tmp_path_factory.mktemp("model") / "teacher.onnx"
    file.write_bytes(patch(made.onnx, made.layout, np.zeros_like(made.initial)))
    return file


def test_far_labels_are_left_out_and_counted(folder: Path, model: Path, tmp_path: Path) -> None:
    drives = ("north/drive-00", "south/drive-01")
    everything = TASK.samples(folder, drives)
    near = np.abs(everything.targets[:, 0]) <= LIMIT
    assert 0 < near.sum() < len(near)
    job = Job(out=tmp_path / "out", drives=drives, parts=("train", "frames"))
    (meta,) = prepare(TASK, folder, [job], teacher=Teacher(model.read_bytes(), LIMIT))
    assert meta.problems == {"odd": 0, "teacher-disagrees": int((~near).sum())}
    assert meta.counts["train_samples"] == int(near.sum())
    train, frames = prepared.open(job.out, "train"), prepared.open_frames(job.out)
    assert np.array_equal(train.inputs, everything.inputs[near])
    # every frame is still seen, and points to its own sample, where that is left
    assert len(frames) == len(near)
    known = frames.sample >= 0
    assert np.array_equal(known, near)
    assert np.array_equal(frames.inputs[known], train.inputs[frames.sample[known]])


def test_what_is_judged_on_is_never_chosen_by_a_teacher(folder: Path, model: Path, tmp_path: Path) -> None:
    teacher = Teacher(model.read_bytes(), LIMIT)
    one = Job(out=tmp_path / "v", drives=("north/drive-00",), parts=("validation",))
    (meta,) = prepare(TASK, folder, [one], teacher=teacher)
    assert meta.counts["validation_samples"] == 64
    assert "teacher-disagrees" not in meta.problems
    both = Job(out=tmp_path / "b", drives=("north/drive-00",), parts=("train", "test"))
    with pytest.raises(UsageError, match="never what to be judged on"):
        prepare(TASK, folder, [both], teacher=teacher)


def test_a_teacher_that_is_none_is_refused(folder: Path, tmp_path: Path) -> None:
    job = Job(out=tmp_path / "out", drives=("north/drive-00",), parts=("train",))
    with pytest.raises(UsageError, match="teacher: "):
        prepare(TASK, folder, [job], teacher=Teacher(b"no model", LIMIT))
    assert not job.out.exists()
    with pytest.raises(UsageError, match="together"):
        open_teacher(None, 0.5)
    with pytest.raises(UsageError, match="cannot be read"):
        open_teacher(tmp_path / "absent.onnx", 0.5)


def test_the_process_takes_a_teacher(folder: Path, model: Path, tmp_path: Path) -> None:
    words = ("--task", "tiny_task:TASK", "--scenarios", folder, "--out", tmp_path / "out", "--parts", "train")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "fedfleet.scenarios.prepare",
            *map(str, (*words, "--teacher", model, "--teacher-limit", 0.5)),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )
    assert done.returncode == 0, done.stderr
    assert prepared.open_meta(tmp_path / "out").problems["teacher-disagrees"] > 0
