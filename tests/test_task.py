"""The registry of tasks, and what every task must keep."""

from pathlib import Path

import numpy as np
import pytest
import tiny_task
import traffic

from fedfleet.models import task as tasks
from fedfleet.models.task import Samples, Task
from fedfleet.protocol.errors import UsageError


@pytest.fixture(params=["tiny_task:TASK", "motion_forecast"])
def task(request: pytest.FixtureRequest) -> Task:
    return tasks.load(request.param)


@pytest.fixture
def folder(task: Task, tmp_path: Path) -> Path:
    if task.name == "tiny":
        tiny_task.generate(tmp_path)
        return tmp_path
    return traffic.write_folder(tmp_path)


def test_an_installed_task_is_loaded_by_name() -> None:
    assert "motion_forecast" in tasks.names()
    assert tasks.load("motion_forecast").metrics[0].name == "ADE"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "steering",
            (
                "unknown task 'steering': expected an installed task (camera_steering, motion_forecast) or "
                "module:ATTRIBUTE"
            ),
        ),
        (
            "no_such_module:TASK",
            "cannot load 'no_such_module:TASK', expected module:ATTRIBUTE: No module named",
        ),
        ("tiny_task:ABSENT", "cannot load 'tiny_task:ABSENT', expected module:ATTRIBUTE"),
        ("tiny_task:generate", "tiny_task:generate is not a task: it has no "),
    ],
)
def test_a_task_that_cannot_be_loaded_is_named(name: str, text: str) -> None:
    with pytest.raises(UsageError) as error:
        tasks.load(name)
    assert text in str(error.value)


def test_samples_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2 inputs, 1 targets, 2 judged"):
        Samples(np.zeros((2, 4), "f4"), np.zeros((1, 1), "f4"), np.ones(2, bool))


def test_arrays_have_the_specified_shapes_and_types(task: Task, folder: Path) -> None:
    # given all drives
    drives = [drive.key for drive in task.index(folder).drives]
    # when
    samples, frames = task.samples(folder, drives), task.frames(folder, drives)
    # then
    assert samples.inputs.shape[1:] == frames.inputs.shape[1:] == task.specification.input_shape
    assert samples.targets.shape[1:] == task.specification.output_shape
    assert {a.dtype for a in (samples.inputs, samples.targets, frames.inputs)} == {np.dtype("f4")}
    assert samples.judged.dtype == bool
    assert 0 < samples.judged.sum() < len(samples)
    assert (frames.offsets[0], frames.offsets[-1]) == (0, len(frames.inputs))
    assert len(frames.sample) == len(frames.inputs)


def test_frames_point_at_the_sample_of_the_same_input(task: Task, folder: Path) -> None:
    drives = [drive.key for drive in task.index(folder).drives][2:5]
    samples, frames = task.samples(folder, drives), task.frames(folder, drives)
    told = frames.sample >= 0
    assert sorted(frames.sample[told]) == list(range(len(samples)))
    np.testing.assert_allclose(frames.inputs[told], samples.inputs[frames.sample[told]], atol=1e-4)


def test_the_order_of_the_named_drives_does_not_matter(task: Task, folder: Path) -> None:
    drives = [drive.key for drive in task.index(folder).drives]
    there, back = task.samples(folder, drives), task.samples(folder, drives[::-1])
    np.testing.assert_array_equal(there.inputs, back.inputs)


def test_scores_of_parts_add_up_and_judged_is_a_part_of_all(task: Task, folder: Path) -> None:
    samples = task.samples(folder, [drive.key for drive in task.index(folder).drives])
    outputs = task.baseline(samples.inputs)
    whole = task.score(outputs, samples)
    halves = [slice(0, 20), slice(20, None)]
    parts = [
        task.score(outputs[h], Samples(samples.inputs[h], samples.targets[h], samples.judged[h]))
        for h in halves
    ]
    for metric in task.metrics:
        total, count = whole[metric.name]
        assert count == samples.judged.sum()
        assert task.score_all(outputs, samples)[metric.name][1] == len(samples)
        assert total == pytest.approx(sum(part[metric.name][0] for part in parts))


def test_nothing_judged_scores_zero_of_zero(task: Task) -> None:
    shape = task.specification
    none = Samples(
        np.zeros((0, *shape.input_shape), "f4"), np.zeros((0, *shape.output_shape), "f4"), np.zeros(0, bool)
    )
    scores = task.score(task.baseline(none.inputs), none)
    assert set(scores.values()) == {(0.0, 0)}


def test_unknown_drives_and_empty_folders_are_refused(task: Task, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no drive nowhere/d99: expected one of"):
        task.samples(folder, ["nowhere/d99"])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UsageError, match="no recordings: "):
        task.index(empty)
