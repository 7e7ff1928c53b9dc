"""Inference at the rate of the frames: every frame has a deadline, and what misses it is counted.

One thread serves all vehicles of the process, each with its own phase. Sessions are ONNX Runtime's; swapping one is
a single reference assignment between two frames, and so is going back to the one before. The latency guard sees
every frame (``watch``), a candidate some (``shadow``).
"""

import heapq
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np

from fedfleet.models.task import Floats, Frames, Samples, Task
from fedfleet.protocol.errors import PeerError
from fedfleet.vehicle_agent import scheduling
from fedfleet.vehicle_agent.shadow import Differ, differing
from fedfleet.vehicle_agent.watch import Watch

__all__ = ["Answer", "Figures", "Inference", "Replay", "Run", "See"]

RING = 600
STUCK_S = 1.0
"""So long may a frame keep a thread that goes before all others."""
See: TypeAlias = Callable[[Floats | None, Floats | None], None]
"""Takes inputs f32[N, *in] of a frame and the active model's outputs; None for a frame without a row."""


class Run(Protocol):
    """A loaded model: from inputs f32[N, *in] to outputs f32[N, *out]."""

    def __call__(self, inputs: Floats) -> Floats:
        """Return the outputs."""
        ...


@dataclass(frozen=True)
class Figures:
    """Counters since the start; latencies in milliseconds from a frame's time to its result, of the last frames.

    The guard's: frames ``late`` for it, ``pauses`` of the trainers and their time, of all vehicles of the process.
    """

    frames: int
    missed: int
    missed_in_swap: int
    swaps: int
    p50_ms: float
    p99_ms: float
    scores: dict[str, tuple[float, int]]
    late: int = 0
    pauses: int = 0
    paused_s: float = 0.0


@dataclass(frozen=True)
class Answer:
    """What the model said to a frame: outputs f32[N, *out] for these rows of the frames; None when it has no row."""

    frame: int
    rows: slice
    outputs: Floats | None
    latency_ms: float


class Replay:
    """One vehicle's drive: its frames again and again, each one batch through the active model.

    A frame is missed when its result comes after the next frame's time, or when it is skipped for lateness.
    ``scores`` are of the active model, over the judged predictions whose truth is known (``truth``: the samples that
    ``frames.sample`` points into), unless ``scored`` is False. Without a model no frame counts. With ``seen`` the
    drive is replayed once, and ``seen`` gets every answer, after its latency was taken.

    A model that fails on a frame, or whose answer is not finite, drives no more: the one before it takes the same
    frame, and ``failed`` says so, once. Without one before, a model that fails raises. A model that ``overlay`` lays
    over the active one answers in its place until another becomes active, or it fails (``overlay_failed``).
    """

    def __init__(
        self,
        task: Task,
        frames: Frames,
        truth: Samples | None,
        *,
        clock: Callable[[], float],
        rate_hz: float | None = None,
        seen: Callable[[Answer], None] | None = None,
    ) -> None:
        self._task, self._frames, self._truth, self._clock = task, frames, truth, clock
        self.period_s = 1.0 / (rate_hz or frames.rate_hz)
        self.due_s = 0.0
        self._seen = seen
        self._next = 0
        self._run: Run | None = None
        self._previous: Run | None = None
        self._failure = ""
        self._over: Run | None = None
        self._over_failure = ""
        self._shadow: tuple[See, int] | None = None
        self.watch: Watch | None = None
        self.scored = True
        self._swapping = False
        self._lock = threading.Lock()
        self._counts = {"frames": 0, "missed": 0, "missed_in_swap": 0, "swaps": 0}
        self._latencies = np.zeros(RING, dtype=np.float32)
        self._latency_count = 0
        self._scores: dict[str, tuple[float, int]] = {}

    @property
    def is_over(self) -> bool:
        """Whether a drive that is replayed once has come to its end."""
        return self._seen is not None and self._next >= len(self._frames)

    @property
    def drives(self) -> bool:
        """Whether there are frames, and a model that answers them."""
        return self._run is not None and len(self._frames) > 0

    def differ(self, tolerance: float) -> Differ:
        """Return how two answers of the task are told to disagree."""
        return differing(self._task, None if self._truth is None else self._truth.targets, tolerance)

    def shadow(self, see: See | None, *, frames: int = 0) -> None:
        """Let ``see`` have the next frames and their answers; None: nobody."""
        self._shadow = None if see is None or frames <= 0 else (see, frames)

    def failed(self) -> str:
        """Return why the active model was left for the one before since the last call, or nothing."""
        failure, self._failure = self._failure, ""
        return failure

    def begin(self, run: Run, *, before: Run | None = None) -> None:
        """Drive with ``run`` from the first frame on, with the model ``before`` it at hand."""
        self._run, self._previous, self._over = run, before, None

    def overlay(self, run: Run | None) -> None:
        """Let ``run`` answer in the place of the active model, from the next frame on; None: no other one."""
        with self._lock:
            self._over, self._scores = run, {}

    @property
    def is_overlaid(self) -> bool:
        """Whether another one answers in the place of the active model."""
        return self._over is not None

    def overlay_failed(self) -> str:
        """Return why what was laid over the active model was left since the last call, or nothing."""
        failure, self._over_failure = self._over_failure, ""
        return failure

    def swap_begins(self) -> None:
        """From now on missed frames also count as missed in a swap."""
        self._swapping = True

    def swap_ends(self, run: Run | None) -> None:
        """Drive with ``run`` from the next frame on; None keeps the model."""
        with self._lock:
            if run is not None:
                self._counts["swaps"] += self._run is not None
                self._previous, self._run, self._over = self._run, run, None
                self._scores = {}
        self._swapping = False

    def run_due(self) -> None:
        """Run the frame that is due, and skip those whose time has passed altogether."""
        now_s, run = self._clock(), self._run
        late = max(0, int((now_s - self.due_s) / self.period_s))
        if self._seen is not None and self._next + late >= len(self._frames):
            left = len(self._frames) - self._next
            self._next += left
            self._count(left, left, run)
            return
        due_s = self.due_s + late * self.period_s
        index = (self._next + late) % max(1, len(self._frames))
        self.due_s, self._next = due_s + self.period_s, index + 1
        if run is None or len(self._frames) == 0:
            return
        rows = slice(int(self._frames.offsets[index]), int(self._frames.offsets[index + 1]))
        inputs = np.ascontiguousarray(self._frames.inputs[rows], dtype=np.float32)
        outputs, run = self._answer(run, inputs) if len(inputs) else (None, run)
        end_s = self._clock()
        if self.watch is not None:
            self.watch.frame(end_s - due_s + late * self.period_s, end_s)
        self._count(1 + late, late + (end_s > due_s + self.period_s), run)
        with self._lock:
            self._latencies[self._latency_count % RING] = (end_s - due_s) * 1e3
            self._latency_count += 1
        if self._shadow is not None:
            see, left = self._shadow
            self._shadow = (see, left - 1) if left > 1 else None
            see(None if outputs is None else inputs, outputs)
        if outputs is not None and self._truth is not None and self.scored:
            self._score(outputs, rows, run)
        if self._seen is not None:
            self._seen(Answer(index, rows, outputs, max(0.0, (end_s - due_s) * 1e3)))

    def figures(self) -> Figures:
        """Return the counters as they are now."""
        with self._lock:
            known = self._latencies[: min(RING, self._latency_count)].copy()
            counts, scores = dict(self._counts), dict(self._scores)
        p50, p99 = np.percentile(known, (50, 99)) if len(known) else (0.0, 0.0)
        guard = self.watch.figures() if self.watch is not None else {}
        return Figures(
            **counts, p50_ms=max(0.0, float(p50)), p99_ms=max(0.0, float(p99)), scores=scores, **guard
        )

    def _answer(self, run: Run, inputs: Floats) -> tuple[Floats, Run]:
        """Return the answer and who gave it: the one before, when the active model cannot."""
        if (over := self._over) is not None and (found := self._overlaid(over, inputs)) is not None:
            return found, over
        before = self._previous
        try:
            outputs = run(inputs)
        except PeerError:
            if before is None:
                raise
            return self._return(run, before, "active-failed")(inputs), before
        if before is not None and not np.isfinite(outputs).all():
            return self._return(run, before, "active-not-finite")(inputs), before
        return outputs, run

    def _overlaid(self, over: Run, inputs: Floats) -> Floats | None:
        """Return the answer of what is laid over the active model; None when it has none, and is left."""
        reason = "not-finite"
        try:
            outputs = over(inputs)
            if np.isfinite(outputs).all():
                return outputs
        except PeerError:
            reason = "failed"
        with self._lock:
            if self._over is over:
                self._over, self._scores, self._over_failure = None, {}, reason
        return None

    def _return(self, run: Run, before: Run, reason: str) -> Run:
        with self._lock:
            if self._run is run:
                self._run, self._previous, self._scores, self._failure = before, None, {}, reason
        return before

    def _count(self, frames: int, missed: int, run: Run | None) -> None:
        if run is None:
            return
        with self._lock:
            self._counts["frames"] += frames
            self._counts["missed"] += missed
            self._counts["missed_in_swap"] += missed if self._swapping else 0

    def _score(self, outputs: Floats, rows: slice, run: Run) -> None:
        sample = np.asarray(self._frames.sample[rows])
        known = np.flatnonzero(sample >= 0)
        if self._truth is None or not len(known):
            return
        at = sample[known]
        truth = self._truth
        sums = self._task.score(
            outputs[known], Samples(truth.inputs[at], truth.targets[at], np.asarray(truth.judged[at]))
        )
        with self._lock:
            if run is not (self._over or self._run):
                return
            for name, (value, count) in sums.items():
                old = self._scores.get(name, (0.0, 0))
                self._scores[name] = (old[0] + float(value), old[1] + int(count))


class Inference:
    """The thread that runs every replay's frames when they are due; their phases are spread over one period.

    With ``realtime`` it goes before all other work of its core, where the system allows it, until a frame takes
    longer than ``STUCK_S``: then a model hangs, and the rest of the vehicle must not stand still for it.
    """

    def __init__(
        self, replays: Sequence[Replay], *, clock: Callable[[], float], realtime: bool = False
    ) -> None:
        self._replays, self._clock, self._realtime = replays, clock, realtime
        self._stop = threading.Event()
        self._begun_s: float | None = None
        self._trouble = ""
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._guarded, name="inference", daemon=True)

    def start(self) -> None:
        """Start the first frames now."""
        start_s = self._clock()
        for index, replay in enumerate(self._replays):
            replay.due_s = start_s + replay.period_s * index / len(self._replays)
        self._thread.start()

    def look(self) -> str:
        """Take the thread's priority from it if it hangs; return what there is to tell of it, once. Of any thread."""
        begun_s, thread = self._begun_s, self._thread.native_id
        if self._realtime and thread and begun_s is not None and self._clock() - begun_s > STUCK_S:
            self._realtime = False
            scheduling.to_back(thread)
            self._trouble = f"a frame takes more than {STUCK_S:g} s; inference goes on at normal priority"
        told, self._trouble = self._trouble, ""
        return told

    def stop(self) -> None:
        """End the thread after the frame it is in."""
        self._stop.set()
        self._thread.join()

    def _guarded(self) -> None:
        if self._realtime and self._replays and (why := scheduling.to_front()):
            self._realtime = False
            self._trouble = f"inference runs at normal priority: real-time refused ({why})"
        try:
            self._loop()
        except BaseException as error:  # noqa: BLE001 - handed to the main thread, which ends the process with it
            self.error = error

    def _loop(self) -> None:
        queue = [(replay.due_s, index) for index, replay in enumerate(self._replays)]
        heapq.heapify(queue)
        while queue and not self._stop.is_set():
            due_s, index = queue[0]
            if self._stop.wait(max(0.0, due_s - self._clock())):
                return
            self._begun_s = self._clock()
            self._replays[index].run_due()
            self._begun_s = None
            heapq.heapreplace(queue, (self._replays[index].due_s, index))
