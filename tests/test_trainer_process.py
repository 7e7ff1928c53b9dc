import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import agent_world as aw
import numpy as np
import pytest

from fedfleet.vehicle_agent.config import AgentSettings
from fedfleet.vehicle_agent.jobs import Job, Told
from fedfleet.vehicle_agent.main import TURN_S
from fedfleet.vehicle_agent.scheduling import Scheduling
from fedfleet.vehicle_agent.trainer_port import TrainerPool, Watched, trainer_command

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
    wait_until(lambda: told.extend(pool.poll(now_s + Watched().cancel_s + 0.01)) or told, "the failure")
    assert told[0].reason == "trainer-died"
    pool.close()


def test_a_condition_that_ends_stops_the_trainer_within_two_seconds() -> None:
    # from the signal to the order, to the trainer's answer or its end, to the turn that sees it
    longest_s = AgentSettings().tick_s + Watched().cancel_s + 2 * TURN_S
    assert longest_s < 2.0


def test_a_trainer_in_a_pause_is_killed_when_its_job_is_given_up(
    tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    pool = TrainerPool((*STAND_IN, "hang"), max_trainers=1, idle_s=1000)
    bench = Bench(tmp_path, pool)
    pool.submit(bench.job("stuck"))
    now_s = time.monotonic()
    wait_until(lambda: pool.poll(now_s) or pool.pids, "started")
    pool.pause()
    pool.cancel("stuck")
    told: list[Told] = []
    wait_until(lambda: told.extend(t for t in pool.poll(now_s) if t.kind == "failed") or told, "the failure")
    assert told[0].reason == "trainer-died"
    pool.close()


@pytest.mark.parametrize(
    ("manner", "watched", "reason"),
    [
        ("hang", Watched(hang_s=30.0), "trainer-hung"),
        ("eat", Watched(memory_bytes=150 << 20), "trainer-memory"),
        ("crash", Watched(), "trainer-died"),
    ],
)
def test_a_trainer_that_hangs_or_eats_memory_is_killed_for_a_reason_and_the_next_one_works(
    tmp_path: Path, wait_until: Callable[..., None], manner: str, watched: Watched, reason: str
) -> None:
    pool = TrainerPool((*STAND_IN, manner), max_trainers=1, idle_s=1000, watched=watched)
    bench = Bench(tmp_path, pool)
    pool.submit(bench.job("bad"))
    pool.submit(bench.job("waits"))
    clock = [0.0]
    told: list[Told] = []

    def failed() -> bool:
        clock[0] += 0.3  # half a minute passes while a hundred times is looked
        told.extend(each for each in pool.poll(clock[0]) if each.kind == "failed")
        return bool(told)

    wait_until(failed, "the failure", timeout_s=60)
    assert [(each.id, each.reason) for each in told] == [("bad", reason)]
    # then the job that waited is given to another process, after a pause
    before = clock[0]
    wait_until(lambda: failed() and pool.pids, "the next trainer", timeout_s=60)
    assert clock[0] - before >= 0.5
    pool.close()


def test_a_training_goes_on_from_its_checkpoint_whatever_ended_it_and_gives_the_same_bytes(
    bench: Bench, wait_until: Callable[..., None]
) -> None:
    # given what an undisturbed training gives
    bench.pool.submit(bench.job("whole", epochs=400))
    wait_until(lambda: bench.heard("done", "whole"), "undisturbed", timeout_s=120)
    kept = str(bench.folder / "round.checkpoint")

    def piece(name: str) -> Job:
        job = bench.job(name, epochs=400)
        return job.model_copy(update={"checkpoint": kept, "checkpoint_s": 0.02})

    # when another is given up in its middle
    bench.pool.submit(piece("first"))
    wait_until(lambda: bench.heard("progress", "first"), "progress", timeout_s=60)
    bench.pool.cancel("first")
    wait_until(lambda: bench.heard("failed", "first") or bench.heard("done", "first"), "given up")
    assert bench.last("first").reason == "cancelled"
    # and the next one's process is killed
    bench.pool.submit(piece("second"))
    wait_until(lambda: bench.heard("progress", "second"), "progress", timeout_s=60)
    (pid,) = bench.pool.pids
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: bench.heard("failed", "second"), "the death")
    bench.pool.submit(piece("third"))
    wait_until(lambda: bench.heard("done", "third"), "the rest", timeout_s=120)
    # then each went on where the one before was, and the result is that of the undisturbed one
    firsts = [
        next(t.step for t in bench.told if (t.kind, t.id) == ("progress", n)) for n in ("second", "third")
    ]
    last = max(told.step for told in bench.told if told.id == "first")
    assert last <= firsts[0] <= firsts[1]
    assert firsts[1] > 1
    assert bench.last("third").steps == bench.last("whole").steps
    assert (bench.folder / "third.npy").read_bytes() == (bench.folder / "whole.npy").read_bytes()


@pytest.mark.parametrize("damage", ["other", "noise", "cut"])
def test_a_checkpoint_of_another_job_or_a_damaged_one_counts_as_none(
    bench: Bench, wait_until: Callable[..., None], damage: str
) -> None:
    path = bench.folder / "round.checkpoint"

    def job(name: str, **settings: float) -> Job:
        return bench.job(name, **settings).model_copy(update={"checkpoint": str(path), "checkpoint_s": 1e-6})

    bench.pool.submit(job("first", **({"learning_rate": 0.001} if damage == "other" else {})))
    wait_until(lambda: bench.heard("done", "first"), "a checkpoint", timeout_s=60)
    data = path.read_bytes()
    if damage == "noise":
        path.write_bytes(data[:50] + bytes(20) + data[70:])
    elif damage == "cut":
        path.write_bytes(data[:-1])
    bench.pool.submit(job("second"))
    bench.pool.submit(bench.job("plain"))
    wait_until(lambda: bench.heard("done", "plain"), "both", timeout_s=60)
    assert bench.last("second").steps == bench.last("plain").steps
    assert (bench.folder / "second.npy").read_bytes() == (bench.folder / "plain.npy").read_bytes()


def test_a_trainer_can_be_warm_before_its_first_job(bench: Bench, wait_until: Callable[..., None]) -> None:
    bench.pool.warm(3, time.monotonic())  # one at most
    (pid,) = bench.pool.pids
    assert not bench.pool.is_warm
    wait_until(lambda: bench.pool.poll(time.monotonic()) == [] and bench.pool.is_warm, "warm", timeout_s=60)
    assert "libtorch" in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
    bench.pool.submit(bench.job("a"))
    wait_until(lambda: bench.heard("done", "a"), "the job", timeout_s=60)
    assert bench.pool.pids == (pid,)
