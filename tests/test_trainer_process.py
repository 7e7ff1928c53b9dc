import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import agent_world as aw
import numpy as np
import pytest

from fedfleet.vehicle_agent.jobs import Job, Told
from fedfleet.vehicle_agent.scheduling import Scheduling
from fedfleet.vehicle_agent.trainer_port import TrainerPool, trainer_command

NICE = Scheduling("batch", 5)
STAND_IN = (sys.executable, str(Path(__file__).with_name("agent_trainer.py")))


class Bench:
    """A pool, what it told, and jobs for it."""

    def __init__(self, folder: Path, pool: TrainerPool) -> None:
        self.folder, self.pool = folder, pool
        self.told: list[Told] = []
        np.save(folder / "base.npy", np.zeros(aw.NETWORK_SIZE, dtype=np.float32))
        aw.prepare(folder / "data")

    def job(self, name: str, *, seed: int = 3, **settings: float) -> Job:
        return Job(
            id=name,
            task="agent_world:TASK",
            data_dir=str(self.folder / "data"),
            base=str(self.folder / "base.npy"),
            settings={"epochs": 2, "batch_size": 8, **settings},
            seed=seed,
            out=str(self.folder / f"{name}.npy"),
        )

    def heard(self, kind: str, name: str) -> bool:
        self.told += self.pool.poll(time.monotonic())
        return any((told.kind, told.id) == (kind, name) for told in self.told)

    def last(self, name: str) -> Told:
        return next(told for told in reversed(self.told) if told.id == name)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    made = Bench(tmp_path, TrainerPool(trainer_command(), max_trainers=1, idle_s=1000, scheduling=NICE))
    yield made
    made.pool.close()


def test_a_warm_trainer_trains_the_same_way_twice_and_can_be_stopped(
    bench: Bench, wait_until: Callable[..., None]
) -> None:
    bench.pool.submit(bench.job("a"))
    wait_until(lambda: bench.heard("done", "a"), "first job", timeout_s=60)
    (pid,) = bench.pool.pids
    assert os.getpriority(os.PRIO_PROCESS, pid) == os.getpriority(os.PRIO_PROCESS, 0) + 5
    assert os.sched_getscheduler(pid) == os.SCHED_BATCH
    assert (os.getpgid(pid), os.getsid(pid)) == (pid, os.getsid(0))
    # when the same job comes again, and one that would take very long
    bench.pool.submit(bench.job("b"))
    bench.pool.submit(bench.job("long", epochs=1000))
    bench.pool.submit(bench.job("never"))
    wait_until(lambda: bench.heard("progress", "long"), "progress", timeout_s=60)
    bench.pool.cancel("never")
    bench.pool.cancel("long")
    wait_until(lambda: bench.heard("failed", "long"), "the long one is given up")
    # then the results are equal to the byte, from the same process
    assert (bench.folder / "a.npy").read_bytes() == (bench.folder / "b.npy").read_bytes()
    assert np.abs(np.load(bench.folder / "a.npy")).max() > 0
    assert (bench.last("a").steps, bench.last("a").examples) == (16, 64)
    assert bench.last("a").loss_after < bench.last("a").loss_before
    assert bench.last("long").reason == "cancelled"
    assert not any(told.id == "never" for told in bench.told)
    assert bench.pool.pids == (pid,)


def test_a_bad_job_fails_with_a_reason_and_the_next_one_works(
    bench: Bench, wait_until: Callable[..., None]
) -> None:
    bench.pool.submit(bench.job("no-such-setting", warp=9))
    bench.pool.submit(bench.job("too-fast", learning_rate=10.0, epochs=1000))
    bench.pool.submit(bench.job("good"))
    wait_until(lambda: bench.heard("done", "good"), "the good one", timeout_s=60)
    assert bench.last("no-such-setting").reason == "bad-job"
    assert "warp" in bench.last("no-such-setting").detail


def test_a_killed_trainer_fails_its_job_and_another_one_starts(
    bench: Bench, wait_until: Callable[..., None]
) -> None:
    bench.pool.submit(bench.job("long", epochs=1000))
    wait_until(lambda: bench.heard("progress", "long"), "progress", timeout_s=60)
    (pid,) = bench.pool.pids
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: bench.heard("failed", "long"), "failure")
    assert bench.last("long").reason == "trainer-died"
    bench.pool.submit(bench.job("again"))
    wait_until(lambda: bench.heard("done", "again"), "the next job", timeout_s=60)
    assert bench.pool.pids != (pid,)


def test_two_trainers_at_most_serve_a_queue(tmp_path: Path, wait_until: Callable[..., None]) -> None:
    bench = Bench(tmp_path, TrainerPool(STAND_IN, max_trainers=2, idle_s=1000))
    for number in range(7):
        bench.pool.submit(bench.job(f"j{number}", seed=number))
    most = 0

    def all_done() -> bool:
        nonlocal most
        most = max(most, len(bench.pool.pids))
        return all(bench.heard("done", f"j{number}") for number in range(7))

    wait_until(all_done, "seven jobs")
    bench.pool.close()
    assert most == 2
    assert bench.pool.pids == ()


def test_a_trainer_without_work_ends(tmp_path: Path, wait_until: Callable[..., None]) -> None:
    bench = Bench(tmp_path, TrainerPool(STAND_IN, max_trainers=2, idle_s=0.2))
    bench.pool.submit(bench.job("only"))
    wait_until(lambda: bench.heard("done", "only"), "the job")
    wait_until(lambda: bench.heard("done", "only") and not bench.pool.pids, "the end of the training window")
    bench.pool.close()


def test_a_trainer_that_does_not_stop_is_killed(tmp_path: Path, wait_until: Callable[..., None]) -> None:
    pool = TrainerPool((*STAND_IN, "hang"), max_trainers=1, idle_s=1000)
    bench = Bench(tmp_path, pool)
    pool.submit(bench.job("stuck"))
    now_s = time.monotonic()
    wait_until(lambda: pool.poll(now_s) or pool.pids, "started")
    pool.cancel("stuck")
    # when more than the patience for a cancelled job has passed
    pool.poll(now_s)
    told: list[Told] = []
    wait_until(lambda: told.extend(pool.poll(now_s + 11)) or told, "the failure")
    assert told[0].reason == "trainer-died"
    pool.close()
