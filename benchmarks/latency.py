"""Inference beside training: how late frames are with the machine idle, with a trainer, and with the guard.

`python benchmarks/latency.py --json [--task motion_forecast --task camera_steering] [--modes]`

The agent's own runtime, guard and trainer, one inference thread, frames at 20 Hz with a deadline of 50 ms. Windows of
every kind come in random order, `--repeats` times; inference has the priority that the agent gives it. *Lateness* is
from a frame's time to its result; `begun` to its begin, which is the scheduler's part. "No core free": one busy
process besides. With --modes the trainer's scheduling is searched, without the guard, at 200 Hz, at least 10,000 frames
a mode in windows that take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedfleet.models import layout, prepared, scoring
from fedfleet.models import task as tasks
from fedfleet.models.task import Floats, Frames, Samples, Task
from fedfleet.vehicle_agent.guard import GuardSettings
from fedfleet.vehicle_agent.jobs import Job
from fedfleet.vehicle_agent.runtime import Inference, Replay
from fedfleet.vehicle_agent.scheduling import Scheduling, apply
from fedfleet.vehicle_agent.trainer_port import TrainerPool, Watched, trainer_command
from fedfleet.vehicle_agent.watch import Watch

RATE_HZ, MODES_RATE_HZ, MODES_FRAMES = 20.0, 200.0, 10_000
ROWS = {"motion_forecast": 25, "camera_steering": 1}
SAMPLES = {"motion_forecast": 4000, "camera_steering": 500}
SETTLE_S = 1.0
MODES = {
    "other, nice 0": Scheduling("other", 0),
    "other, nice 10": Scheduling("other", 10),
    "other, nice 19": Scheduling("other", 19),
    "batch, nice 19": Scheduling("batch", 19),
    "idle": Scheduling("idle", 10),
    "other, nice 10, other core": Scheduling("other", 10, (1,)),
}
WINDOWS = {
    "idle": (False, False, False),
    "unguarded": (True, False, False),
    "guarded": (True, True, False),
    "idle_no_core_free": (False, False, True),
    "unguarded_no_core_free": (True, False, True),
    "guarded_no_core_free": (True, True, True),
}
"""Kind of window: is there training, is there the guard, is there a busy process."""


@dataclass
class Seen:
    """What happened to the frames of one kind: lateness in milliseconds, one list a repeat."""

    late_ms: list[list[float]] = field(default_factory=list)
    begun_ms: list[list[float]] = field(default_factory=list)
    missed: int = 0
    pauses: int = 0
    paused_s: float = 0.0
    seconds: float = 0.0
    trained_s: float = 0.0

    def told(self) -> dict[str, Any]:
        """Return the figures, pooled and by repeat."""
        late, begun = np.concatenate(self.late_ms), np.concatenate(self.begun_ms)
        p50, p99, p999 = np.percentile(late, (50, 99, 99.9))
        return {
            "frames": len(late),
            "p50_ms": round(float(p50), 3),
            "p99_ms": round(float(p99), 3),
            "p999_ms": round(float(p999), 3),
            "most_ms": round(float(late.max()), 2),
            "begun_p99_ms": round(float(np.percentile(begun, 99)), 3),
            "p99_ms_by_repeat": [round(float(np.percentile(some, 99)), 3) for some in self.late_ms],
            "missed": self.missed,
            "pauses": self.pauses,
            "paused_share": round(self.paused_s / self.seconds, 3) if self.seconds else 0.0,
            "trainer_cpu_share": round(self.trained_s / self.seconds, 3) if self.seconds else 0.0,
        }


class Bench:
    """One task: its model driving made-up frames, and a trainer that trains it without end."""

    def __init__(self, task: Task, folder: Path, *, rate_hz: float, first: bool) -> None:
        self.task, self.folder, self.rate_hz, self.first = task, folder, rate_hz, first
        self.clock = time.monotonic
        base, model = export(task, folder)
        frames, truth = prepare(task, folder / "data")
        self.session = scoring.new_session(model)
        self.replay = Replay(task, frames, truth, clock=self.clock, rate_hz=rate_hz)
        self.replay.swap_ends(self.run)
        self.late_ms: list[float] = []
        self.begun_ms: list[float] = []
        self.guard: Watch | None = None
        self.replay.watch = self  # type: ignore[assignment] - it measures, and hands on
        self.pool = TrainerPool(
            trainer_command(), max_trainers=1, idle_s=1e9, watched=Watched(hang_s=1e9, memory_bytes=8 << 30)
        )
        np.save(folder / "base.npy", base)
        self.job = 0

    def run(self, inputs: Floats) -> Floats:
        """Answer a frame, and note when it was begun."""
        self.begun_ms.append((self.clock() - self.replay.due_s + self.replay.period_s) * 1e3)
        return scoring.infer(self.session, self.task, inputs)

    def frame(self, late_s: float, now_s: float) -> None:
        """Take a frame's lateness."""
        self.late_ms.append(late_s * 1e3)
        if self.guard is not None:
            self.guard.frame(late_s, now_s)

    def figures(self) -> dict[str, Any]:
        """Nothing: the benchmark has its own."""
        return {}

    def train(self) -> None:
        """Have a trainer at work, and wait until it is."""
        self.pool.resume()
        while True:
            told = self.pool.poll(self.clock())
            if any(one.kind == "failed" for one in told):
                raise SystemExit(f"the trainer failed: {told}")
            if any(one.kind == "progress" for one in told):
                return
            if not self.pool.is_busy and not self.pool._waiting:  # noqa: SLF001 - nothing asked of it yet
                self.job += 1
                self.pool.submit(self._endless())
            time.sleep(0.02)

    def window(self, kind: str, seconds: float, guard: GuardSettings, seen: Seen) -> None:
        """Run frames for a while and note what became of them."""
        training, guarded, busy = WINDOWS[kind]
        if training:
            self.train()
        else:
            self.pool.pause()
        with busy_process() if busy else nothing():
            self.guard = Watch(guard, self.pool) if guarded else None
            self._drive(SETTLE_S)
            self.late_ms.clear()
            self.begun_ms.clear()
            before, start_s = self.replay.figures(), self.clock()
            (paused_s, pauses), trained_s = self._paused(), cpu_s(self.pool.pids[0])
            self._drive(seconds)
            after = self.replay.figures()
            spent_s = self.clock() - start_s
        seen.late_ms.append(list(self.late_ms))
        seen.begun_ms.append(list(self.begun_ms))
        seen.missed += after.missed - before.missed
        seen.seconds += spent_s
        seen.trained_s += cpu_s(self.pool.pids[0]) - trained_s
        now_s, now = self._paused()
        seen.paused_s += now_s - paused_s
        seen.pauses += now - pauses
        self.guard = None
        self.pool.resume()

    def _paused(self) -> tuple[float, int]:
        if self.guard is None:
            return 0.0, 0
        state = self.guard.state
        return state.paused_s + (self.clock() - state.since_s if state.paused else 0.0), state.pauses

    def _drive(self, seconds: float) -> None:
        """Do what the agent's main thread does."""
        inference = Inference([self.replay], clock=self.clock, realtime=self.first)
        inference.start()
        end_s = self.clock() + seconds
        while self.clock() < end_s:
            time.sleep(0.05)
            if self.guard is not None:
                self.guard.tick(self.clock())
            self.pool.poll(self.clock())
        trouble = inference.look()
        inference.stop()
        if trouble:
            raise SystemExit(f"{trouble}: measure with --priority normal")

    def _endless(self) -> Job:
        return Job(
            id=f"bench/{self.job}",
            task=self.task.name,
            data_dir=str(self.folder / "data"),
            base=str(self.folder / "base.npy"),
            settings={"epochs": 1000, "batch_size": 64 if self.task.name != "camera_steering" else 16},
            seed=1,
            out=str(self.folder / "delta.npy"),
        )


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def nothing() -> Iterator[None]:
    """Do nothing beside."""
    yield


@contextmanager
def busy_process() -> Iterator[None]:
    """Keep a core busy at normal priority."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


def export(task: Task, folder: Path) -> tuple[Floats, bytes]:
    """Return the initial weights and the model file."""
    command = [sys.executable, "-P", "-m", "fedfleet.fleet_server.export", "--task", task.name, "--seed", "1"]
    subprocess.run([*command, "--out", str(folder / "graph")], check=True, stdout=subprocess.DEVNULL)
    told = layout.read((folder / "graph" / "layout.json").read_bytes())
    base = np.load(folder / "graph" / "initial.npy")
    return base, layout.patch((folder / "graph" / "graph.onnx").read_bytes(), told, base)


def prepare(task: Task, folder: Path) -> tuple[Frames, Samples]:
    """Make up samples and frames of the task's shape; their content does not matter here."""
    shape, chance = task.specification, np.random.default_rng(1)
    count, rows = SAMPLES.get(task.name, 1000), ROWS.get(task.name, 1)
    inputs = chance.normal(0, 1, (count, *shape.input_shape)).astype(np.float32)
    targets = chance.normal(0, 1, (count, *shape.output_shape)).astype(np.float32) * np.float32(0.1)
    samples = Samples(inputs, targets, np.ones(count, dtype=np.bool_))
    offsets = np.arange(0, 100 * rows + 1, rows, dtype=np.int64)
    frames = Frames(inputs[: 100 * rows], offsets, np.arange(100 * rows, dtype=np.int64), RATE_HZ)
    counts = {"train_samples": count, "train_judged": count, "frames": 100, "frames_inputs": 100 * rows}
    meta = prepared.Meta(
        task=task.name,
        task_version=task.version,
        drives=("made/up",),
        parts=("train", "frames"),
        counts=counts,
        problems={},
        rate_hz=RATE_HZ,
    )
    prepared.write(folder, meta, samples={"train": samples}, frames=frames)
    return frames, samples


def measure(bench: Bench, given: argparse.Namespace, guard: GuardSettings) -> dict[str, Any]:
    """Run all kinds of windows in random order, again and again."""
    chance, seen = random.Random(given.seed), {kind: Seen() for kind in WINDOWS}
    bench.train()
    apply(bench.pool.pids[0], MODES[given.mode])
    for repeat in range(given.repeats):
        for kind in chance.sample(list(WINDOWS), len(WINDOWS)):
            bench.window(kind, given.seconds, guard, seen[kind])
            print(f"{bench.task.name}: repeat {repeat + 1} of {given.repeats}: {kind}", file=sys.stderr)
    told = {kind: one.told() for kind, one in seen.items()}
    idle = told["idle"]["p99_ms"]
    ratio = {kind: round(one["p99_ms"] / idle, 2) for kind, one in told.items()}
    begun = told["idle"]["begun_p99_ms"]
    beyond = {k: told[k]["missed"] - told["idle"]["missed"] for k in ("guarded", "guarded_no_core_free")}
    return {
        "idle_p99_ms": idle,
        "unguarded_p99_ratio": ratio["unguarded"],
        "guarded_p99_ratio": ratio["guarded"],
        "unguarded_p99_ratio_no_core_free": ratio["unguarded_no_core_free"],
        "guarded_p99_ratio_no_core_free": ratio["guarded_no_core_free"],
        "idle_p99_ratio_no_core_free": ratio["idle_no_core_free"],
        "begun_p99_ratios": {kind: round(one["begun_p99_ms"] / begun, 2) for kind, one in told.items()},
        "missed_deadlines": max(0, *beyond.values()),
        "windows": told,
    }


def search(bench: Bench, given: argparse.Namespace) -> dict[str, Any]:
    """Compare the trainer's scheduling modes, without the guard, with one core free and with none."""
    chance, seconds = random.Random(given.seed), MODES_FRAMES / MODES_RATE_HZ / given.repeats
    kinds = [("idle", "idle"), ("idle", "idle_no_core_free")]
    kinds += [(mode, kind) for mode in MODES for kind in ("unguarded", "unguarded_no_core_free")]
    seen = {key: Seen() for key in kinds}
    bench.train()
    for repeat in range(given.repeats):
        for mode, kind in chance.sample(kinds, len(kinds)):
            os.sched_setaffinity(bench.pool.pids[0], os.sched_getaffinity(0))
            apply(bench.pool.pids[0], MODES[mode])
            bench.window(kind, seconds, GuardSettings(enabled=False), seen[mode, kind])
            print(f"repeat {repeat + 1} of {given.repeats}: {mode}, {kind}", file=sys.stderr)
    told = {key: one.told() for key, one in seen.items()}
    free, none = told["idle", "idle"]["p99_ms"], told["idle", "idle_no_core_free"]["p99_ms"]
    return {
        "rate_hz": MODES_RATE_HZ,
        "idle_p99_ms": free,
        "idle_p99_ms_no_core_free": none,
        "modes": {mode: _mode(told, mode, free) for mode in MODES},
    }


def _mode(told: Mapping[tuple[str, str], dict[str, Any]], mode: str, idle: float) -> dict[str, Any]:
    free, none = told[mode, "unguarded"], told[mode, "unguarded_no_core_free"]
    return {
        "p99_ratio": round(free["p99_ms"] / idle, 2),
        "p99_ratio_no_core_free": round(none["p99_ms"] / idle, 2),
        "p999_ms": (free["p999_ms"], none["p999_ms"]),
        "missed": (free["missed"], none["missed"]),
        "frames": (free["frames"], none["frames"]),
        "p99_ms_by_repeat": (free["p99_ms_by_repeat"], none["p99_ms_by_repeat"]),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--task", action="append", help="task(s) to measure")
    parser.add_argument("--modes", action="store_true", help="search the scheduling mode instead")
    parser.add_argument(
        "--mode", default="batch, nice 19", choices=list(MODES), help="scheduling mode of the trainer"
    )
    parser.add_argument(
        "--priority", default="realtime", choices=("realtime", "normal"), help="priority of inference"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=12.0, help="length of a window")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--late-ms", type=float, default=GuardSettings().late_ms, help="the guard's limit")
    given = parser.parse_args(argv)
    names = given.task or (["motion_forecast"] if given.modes else ["motion_forecast", "camera_steering"])
    guard = GuardSettings(late_ms=given.late_ms)
    found: dict[str, Any] = {}
    for name in names:
        rate_hz = MODES_RATE_HZ if given.modes else RATE_HZ
        with tempfile.TemporaryDirectory() as folder:
            first = given.priority == "realtime"
            bench = Bench(tasks.load(name), Path(folder), rate_hz=rate_hz, first=first)
            try:
                found[name] = search(bench, given) if given.modes else measure(bench, given, guard)
            finally:
                bench.pool.close()
    told = {
        **found[names[0]],
        "mode": given.mode,
        "priority": given.priority,
        "late_ms": given.late_ms,
        "tasks": found,
    }
    print(json.dumps(told if given.json else {k: v for k, v in told.items() if k != "tasks"}, indent=2))


if __name__ == "__main__":
    main()
