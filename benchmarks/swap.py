"""Hot swaps while frames come: what one costs in the background, and whether a frame is late for it.

`python benchmarks/swap.py --json [--swaps 1000] [--task motion_forecast --task camera_steering] [--shadow 2]`

The agent's own runtime, swapper, shadow and journal; frames at 20 Hz with a deadline of 50 ms. Every swap is another
file: weights patched into the graph, SHA-256, new session, canary, shadow beside the active model, one transaction of
the journal, switch. Windows with swaps and windows without take turns in random order, equally long. Keys, by task:
`patch_hash_ms`, `swap_ms` (the work of a swap; not the waiting for the frames of its shadow), `parts_ms`, `late_frames`
and `late_frames_idle` (past the deadline), `late_beyond_idle`, `lateness_ms`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from latency import ROWS, export, prepare

from fedfleet.models import layout, scoring
from fedfleet.models import task as tasks
from fedfleet.models.task import Floats, Task
from fedfleet.vehicle_agent.entries import Released
from fedfleet.vehicle_agent.journal import Journal
from fedfleet.vehicle_agent.runtime import Inference, Replay, Run
from fedfleet.vehicle_agent.shadow import ShadowSettings
from fedfleet.vehicle_agent.swap import Candidate, Sessions, Swapper, Tried

RATE_HZ = 20.0
CANARY_ROWS = 8
WINDOWS = 10
TURN_S = 0.05
PARTS = ("load", "shadow", "journal", "switch")


class Timed(Sessions):
    """Sessions whose loading, with the digest and the canary, is timed."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.took_s: list[float] = []

    def load(
        self,
        model: bytes,
        onnx_sha256: str,
        canary: tuple[Floats, Floats] | None = None,
        *,
        tolerance: float | None = None,
    ) -> Run:
        """Load a file and note how long it took."""
        start_s = time.perf_counter()
        try:
            return super().load(model, onnx_sha256, canary, tolerance=tolerance)
        finally:
            self.took_s.append(time.perf_counter() - start_s)


@dataclass
class Seen:
    """What was measured: milliseconds of each swap by part, and lateness of frames by kind of window."""

    patch_ms: list[float] = field(default_factory=list)
    parts_ms: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})
    late_ms: dict[bool, list[float]] = field(default_factory=lambda: {False: [], True: []})
    missed: dict[bool, int] = field(default_factory=lambda: {False: 0, True: 0})

    def told(self) -> dict[str, Any]:
        """Return the figures."""
        whole = np.sum([self.parts_ms[part] for part in PARTS], axis=0)
        return {
            "swaps": len(whole),
            "patch_hash_ms": spread(self.patch_ms),
            "swap_ms": spread(whole),
            "parts_ms": {part: spread(found) for part, found in self.parts_ms.items()},
            "frames": len(self.late_ms[True]),
            "frames_idle": len(self.late_ms[False]),
            "late_frames": self.missed[True],
            "late_frames_idle": self.missed[False],
            "late_beyond_idle": max(0, self.missed[True] - self.missed[False]),
            "lateness_ms": spread(self.late_ms[True]),
            "lateness_idle_ms": spread(self.late_ms[False]),
        }


def spread(found: Sequence[float] | Floats) -> dict[str, float]:
    """Return median, p99 and the most."""
    p50, p99 = np.percentile(found, (50, 99))
    return {"p50": round(float(p50), 3), "p99": round(float(p99), 3), "most": round(float(np.max(found)), 3)}


class Bench:
    """One task: a model that drives, and others that follow it."""

    def __init__(self, task: Task, folder: Path, *, shadow: int) -> None:
        self.task, self.seen, self.kind, self.number = task, Seen(), False, 0
        self.base, _ = export(task, folder)
        self.layout = layout.read((folder / "graph" / "layout.json").read_bytes())
        self.graph = (folder / "graph" / "graph.onnx").read_bytes()
        frames, truth = prepare(task, folder / "data")
        self.canary = truth.inputs[:CANARY_ROWS]
        self.replay = Replay(task, frames, truth, clock=time.monotonic, rate_hz=RATE_HZ)
        self.replay.watch = self  # type: ignore[assignment] - it measures
        self.sessions = Timed(task)
        settings = ShadowSettings(frames=shadow, tolerance=1e6, most_of_frame=100)
        self.swapper = Swapper(self.sessions, shadow=settings, clock=time.perf_counter)
        self.journal = Journal(folder / "journal", vehicle="bench", task="bench", epoch=1, seed=b"b" * 32)
        self.chance = np.random.default_rng(1)
        self._take(self._try())

    def frame(self, late_s: float, now_s: float) -> None:
        """Take a frame's lateness."""
        del now_s
        self.seen.late_ms[self.kind].append(late_s * 1e3)

    def figures(self) -> dict[str, Any]:
        """Nothing: the benchmark has its own."""
        return {}

    def window(self, seconds: float, *, swaps: int) -> float:
        """Let frames come, for a while or for so many swaps; returns how long it took."""
        self.kind, before = swaps > 0, self.replay.figures().missed
        inference = Inference([self.replay], clock=time.monotonic)
        inference.start()
        start_s = time.monotonic()
        for _ in range(swaps):
            self._take(self._try())
        while time.monotonic() < start_s + seconds:
            time.sleep(TURN_S)
        took_s = time.monotonic() - start_s
        inference.stop()
        self.seen.missed[self.kind] += self.replay.figures().missed - before
        return took_s

    def _try(self) -> tuple[Tried, list[float]]:
        """Make the next file and have it tried; returns what came of it and the milliseconds of its parts."""
        weights = self.base + self.chance.normal(0, 1e-4, self.base.size).astype(np.float32)
        start_s = time.perf_counter()
        model = layout.patch(self.graph, self.layout, weights)
        digest = sha256(model).hexdigest()
        self.seen.patch_ms.append((time.perf_counter() - start_s) * 1e3)
        wanted = scoring.infer(scoring.new_session(model), self.task, self.canary)
        canary = (self.canary.reshape(len(self.canary), -1), wanted.reshape(len(wanted), -1))
        self.number += 1
        self.swapper.submit(Candidate(0, self.number, digest, model, canary, beside=self.replay))
        while not (tried := self.swapper.poll()):
            time.sleep(0.002)
        return tried[0], [1e3 * self.sessions.took_s[-1], 1e3 * sum(tried[0].shadow.times_s)]

    def _take(self, found: tuple[Tried, list[float]]) -> None:
        """Do what the agent does with what passed."""
        tried, parts = found
        if tried.run is None:
            raise SystemExit(f"swap {self.number} was refused: {tried.reason}: {tried.detail}")
        told, start_s = tried.candidate, time.perf_counter()
        self.journal.activate(Released(told.number, told.number, told.onnx_sha256, told.model))
        kept_s = time.perf_counter()
        self.replay.swap_ends(tried.run)
        parts += [1e3 * (kept_s - start_s), 1e3 * (time.perf_counter() - kept_s)]
        for part, took_ms in zip(PARTS, parts, strict=True):
            self.seen.parts_ms[part].append(took_ms)

    def close(self) -> None:
        """Let go of thread and journal."""
        self.swapper.close()
        self.journal.close()


def measure(task: Task, given: argparse.Namespace) -> dict[str, Any]:
    """Run windows with swaps and windows without, in random order."""
    chance, each = random.Random(given.seed), -(-given.swaps // WINDOWS)
    with tempfile.TemporaryDirectory(prefix="fedfleet-swap-") as folder:
        bench = Bench(task, Path(folder), shadow=given.shadow)
        bench.window(1.0, swaps=3)  # what the first ones cost is not a swap's
        bench.seen = Seen()
        took_s = each * (given.shadow + 1) / RATE_HZ
        for number in range(WINDOWS):
            for with_swaps in chance.sample((True, False), 2):
                spent_s = bench.window(0.0 if with_swaps else took_s, swaps=each if with_swaps else 0)
                took_s = spent_s if with_swaps else took_s
            print(f"{task.name}: {(number + 1) * each} swaps", file=sys.stderr)
        bench.close()
        return {"rows": ROWS.get(task.name, 1), "file_bytes": len(bench.graph), **bench.seen.told()}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--task", action="append", help="task(s) to measure")
    parser.add_argument("--swaps", type=int, default=1000, help="swaps for each task")
    parser.add_argument("--shadow", type=int, default=2, help="frames of each one's shadow")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(argv)
    names = given.task or ["motion_forecast", "camera_steering"]
    found = {name: measure(tasks.load(name), given) for name in names}
    if given.json:
        print(json.dumps(found))
    else:
        for name, told in found.items():
            print(name, *(f"  {key:18} {value}" for key, value in told.items()), sep="\n")


if __name__ == "__main__":
    main()
