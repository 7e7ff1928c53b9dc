"""Weak vehicles: what a budget of time, memory or layers does to a training, and how the kernel treats the trainer."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_task

from fedfleet.models import prepared
from fedfleet.models.frugal import bytes_of_a_sample, head_names
from fedfleet.models.settings import TrainSettings
from fedfleet.models.task import Samples
from fedfleet.models.training import FineTuning, fine_tune, network, vector
from fedfleet.protocol.errors import UsageError
from fedfleet.vehicle_agent.jobs import Job, Told
from fedfleet.vehicle_agent.scheduling import FIRST_TO_GO, Scheduling, apply, check
from fedfleet.vehicle_agent.trainer import perform

TASK = tiny_task.TASK


class Headed(tiny_task.TinyTask):
    """The tiny task with its first layer named as head."""

    head = ("0.*",)


@pytest.fixture
def samples(tmp_path: Path) -> Samples:
    tiny_task.generate(tmp_path / "drives")
    return TASK.samples(tmp_path / "drives", [drive.key for drive in TASK.index(tmp_path / "drives").drives])


# --- part of the model ---


@pytest.mark.parametrize("task", [TASK, Headed()])
def test_only_the_head_learns(task: tiny_task.TinyTask, samples: Samples) -> None:
    model = network(task, seed=1)
    base, names = vector(model), head_names(task, model)
    settings = TrainSettings(epochs=1, trainable="head")
    trained = fine_tune(task, base, samples, settings, seed=1)
    tensors = [(name, tensor.numel()) for name, tensor in model.state_dict().items()]
    is_head = np.concatenate([np.full(size, name in names) for name, size in tensors])
    # then the rest of the vector is what it was, to the bit
    assert not trained.delta[~is_head].any()
    assert trained.delta[is_head].any()
    assert np.array_equal(FineTuning(task, base, samples, settings, seed=1).learns, is_head)
    # the task says what its head is; without a word it is the last layer
    wanted = "0." if task is not TASK else [name for name, _ in tensors][-1].rpartition(".")[0] + "."
    assert all(name.startswith(wanted) for name in names)
    assert names


def test_all_learns_by_default(samples: Samples) -> None:
    base = vector(network(TASK, seed=1))
    tuning = FineTuning(TASK, base, samples, TrainSettings(epochs=1), seed=1)
    assert tuning.learns.all()


# --- memory ---


def test_batches_are_as_large_as_their_memory(samples: Samples) -> None:
    model = network(TASK, seed=1)
    tuning = FineTuning(TASK, vector(model), samples, TrainSettings(epochs=1, batch_size=64), seed=1)
    import torch

    each = bytes_of_a_sample(model, torch.from_numpy(np.array(samples.inputs[:1])))
    assert each >= 4 * (samples.inputs[0].size + samples.targets[0].size)
    count = len(samples)
    for room, batch in ((each * 10, 10), (each * 10 + each - 1, 10), (each * 1000, 64), (1, 1)):
        settings = TrainSettings(epochs=1, batch_size=64, batch_bytes=room)
        found = FineTuning(TASK, vector(model), samples, settings, seed=1)
        assert found.steps == -(-count // batch), room
    assert tuning.steps == -(-count // 64)


# --- time ---


def job(folder: Path, samples: Samples, **changes: object) -> Job:
    meta = prepared.Meta(
        task=TASK.name,
        task_version=TASK.version,
        drives=("north/d0",),
        parts=("train",),
        counts={"train_samples": len(samples), "train_judged": int(np.sum(samples.judged))},
        problems={},
    )
    prepared.write(folder / "data", meta, samples={"train": samples})
    np.save(folder / "base.npy", vector(network(TASK, seed=1)))
    told = {
        "id": "v1/1-1",
        "task": "tiny_task:TASK",
        "data_dir": str(folder / "data"),
        "base": str(folder / "base.npy"),
        "settings": {"epochs": 50, "batch_size": 8},
        "seed": 3,
        "out": str(folder / "delta.npy"),
    }
    return Job.model_validate(told | changes)


def seconds() -> Callable[[], float]:
    """A clock that goes on by a second whenever it is read."""
    now = [0.0]

    def read() -> float:
        now[0] += 1.0
        return now[0]

    return read


def test_when_its_time_is_over_the_steps_done_are_the_result(tmp_path: Path, samples: Samples) -> None:
    told = perform(job(tmp_path, samples, budget_s=10.0), lambda _: None, clock=seconds())
    assert told.kind == "done"
    assert 1 <= told.steps <= 10
    assert told.examples == min(len(samples), 8 * told.steps)
    # and they are the first steps of the same training without a budget
    settings = TrainSettings(epochs=50, batch_size=8)
    tuning = FineTuning(TASK, np.load(tmp_path / "base.npy"), samples, settings, seed=3)
    for _ in range(told.steps):
        tuning.advance()
    assert np.load(tmp_path / "delta.npy").tobytes() == tuning.result().delta.tobytes()


def test_an_interruption_does_not_renew_the_budget(tmp_path: Path, samples: Samples) -> None:
    given = job(tmp_path, samples, budget_s=30.0, checkpoint=str(tmp_path / "kept"), checkpoint_s=1.0)
    heard: list[Told] = []
    # given a training that is given up after some steps
    first = perform(given, heard.append, clock=seconds(), is_cancelled=lambda: len(heard) >= 5)
    assert first.reason == "cancelled"
    # when it goes on, then all of it is within the budget: the clock goes on twice a step at least
    second = perform(given, lambda _: None, clock=seconds())
    assert second.kind == "done"
    assert heard[-1].step < second.steps <= 30


def test_without_a_budget_all_steps_are_made(tmp_path: Path, samples: Samples) -> None:
    told = perform(
        job(tmp_path, samples, settings={"epochs": 1, "batch_size": 64}), lambda _: None, clock=seconds()
    )
    assert told.steps == -(-len(samples) // 64)


# --- the kernel ---


def test_a_trainer_runs_where_and_as_it_is_told() -> None:
    core = min(os.sched_getaffinity(0))
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
    ) as child:
        apply(child.pid, Scheduling("idle", 3, (core,)))
        assert os.sched_getaffinity(child.pid) == {core}
        assert os.sched_getscheduler(child.pid) == os.SCHED_IDLE
        assert os.getpriority(os.PRIO_PROCESS, child.pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 3)
        assert Path(f"/proc/{child.pid}/oom_score_adj").read_text().strip() == FIRST_TO_GO
    apply(child.pid, Scheduling("batch", 19))  # it is gone


def test_a_core_that_there_is_not_is_refused_at_the_start() -> None:
    check(Scheduling("other", 0, tuple(sorted(os.sched_getaffinity(0)))))
    with pytest.raises(UsageError, match=r"^trainer_cores: no core 4000 for this process, there are "):
        check(Scheduling("other", 0, (4000,)))
