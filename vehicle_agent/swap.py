"""From a model file to a session that may drive: digest, new session, form, canary, shadow. In a thread of its own.

The weights are in the file's bytes; ``SessionOptions.add_initializer`` is never used (its outputs are silently wrong).
Vehicles of one process share a session per model digest.
"""

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import TypeAlias
from weakref import WeakValueDictionary

import numpy as np

from fedfleet.models import scoring
from fedfleet.models.task import Floats, Task
from fedfleet.protocol.errors import PeerError
from fedfleet.vehicle_agent.runtime import Replay, Run
from fedfleet.vehicle_agent.shadow import Shadow, ShadowSettings, compare, verdict

__all__ = ["CANARY_ATOL", "CANARY_RTOL", "Candidate", "Sessions", "Swapper", "Tried"]

CANARY_ATOL = 1e-4
CANARY_RTOL = 1e-4
Canary: TypeAlias = tuple[Floats, Floats]
NOTHING = Shadow()


@dataclass(frozen=True)
class Candidate:
    """A model file that wants to drive: for whom, which release, and what it must answer (flat rows, or None).

    ``beside`` is the replay whose active model it runs beside first, ``tolerance`` what its answers may be off; None:
    what differs between processors. ``is_personal``: it is the vehicle's own.
    """

    owner: int
    number: int
    onnx_sha256: str
    model: bytes
    canary: Canary | None
    beside: Replay | None = None
    tolerance: float | None = None
    is_personal: bool = False


@dataclass(frozen=True)
class Tried:
    """What became of a candidate: a session to drive with, or the reason against it; ``shadow`` counts."""

    candidate: Candidate
    run: Run | None
    reason: str = ""
    detail: str = ""
    shadow: Shadow = NOTHING


class Loaded:
    """A session of a verified file that fits the task. Two threads may call it."""

    def __init__(self, model: bytes, task: Task) -> None:
        self._session, self._task = scoring.new_session(model), task
        scoring.check(self._session, task)
        self(np.zeros((2, *task.specification.input_shape), dtype=np.float32))

    def __call__(self, inputs: Floats) -> Floats:
        """Return the outputs f32[N, *out]."""
        return scoring.infer(self._session, self._task, inputs)


class Sessions:
    """Sessions of verified files, one for each digest as long as someone drives with it."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._held: WeakValueDictionary[str, Loaded] = WeakValueDictionary()
        self._lock = threading.Lock()

    def load(
        self,
        model: bytes,
        onnx_sha256: str,
        canary: Canary | None = None,
        *,
        tolerance: float | None = None,
    ) -> Run:
        """Return a session of the file, tried with the canary.

        Raises PeerError: digest-mismatch, unloadable-model, model-mismatch, canary-mismatch.
        """
        found = sha256(model).hexdigest()
        if found != onnx_sha256:
            raise PeerError(
                "digest-mismatch", f"model file has SHA-256 {found[:12]}…, expected {onnx_sha256[:12]}…"
            )
        with self._lock:
            loaded = self._held.get(onnx_sha256)
            if loaded is None:
                loaded = Loaded(model, self._task)
                self._held[onnx_sha256] = loaded
        if canary is not None:
            self._try(loaded, canary, tolerance)
        return loaded

    def _try(self, run: Run, canary: Canary, tolerance: float | None) -> None:
        inputs, wanted = canary
        shape = self._task.specification
        if inputs.shape[1] != np.prod(shape.input_shape) or wanted.shape[1] != np.prod(shape.output_shape):
            raise PeerError("canary-mismatch", f"canary rows are {inputs.shape[1]} -> {wanted.shape[1]} wide")
        outputs = run(inputs.reshape(-1, *shape.input_shape)).reshape(wanted.shape)
        atol, rtol = (CANARY_ATOL, CANARY_RTOL) if tolerance is None else (tolerance, 0.0)
        if not np.allclose(outputs, wanted, atol=atol, rtol=rtol):
            worst = float(np.max(np.abs(outputs - wanted)))
            raise PeerError("canary-mismatch", f"an output differs by {worst:.3g} from the release's own")


class _Trial:
    """A candidate that runs beside the active model of a replay. ``seen`` comes in the thread of the frames."""

    def __init__(self, candidate: Candidate, run: Run, hand_over: "Callable[[_Frame], None]") -> None:
        self.candidate, self.run, self.shadow = candidate, run, Shadow()
        self._hand_over = hand_over

    def seen(self, inputs: Floats | None, outputs: Floats | None) -> None:
        self._hand_over(_Frame(self, inputs, outputs))


@dataclass(frozen=True, eq=False)
class _Frame:
    """A frame for a trial: what came, and what the active model said."""

    trial: _Trial
    inputs: Floats | None
    outputs: Floats | None


class Swapper:
    """Tries candidates one after the other in a background thread, so that no frame waits for it.

    What passes its canary runs beside the active model for some frames, many candidates at a time.
    Not in the ``background`` a candidate is tried when it is submitted, without a shadow: where no frame waits, and
    the order counts.
    """

    def __init__(
        self,
        sessions: Sessions,
        *,
        wake: Callable[[], None] = lambda: None,
        background: bool = True,
        shadow: ShadowSettings | None = None,
        clock: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._sessions, self._wake, self._background = sessions, wake, background
        self._settings, self._clock = shadow or ShadowSettings(frames=0), clock
        self._wanted: queue.SimpleQueue[Candidate | _Frame | None] = queue.SimpleQueue()
        self._tried: queue.SimpleQueue[Tried] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name="swap", daemon=True)
        if background:
            self._thread.start()

    def submit(self, candidate: Candidate) -> None:
        """Try this one when its turn comes."""
        if self._background:
            self._wanted.put(candidate)
        else:
            self._try(candidate)

    def poll(self) -> list[Tried]:
        """Return what was tried since the last call, without waiting."""
        tried = []
        while not self._tried.empty():
            tried.append(self._tried.get())
        return tried

    def close(self) -> None:
        """End the thread after the candidate it is at."""
        if self._background:
            self._wanted.put(None)
            self._thread.join()

    def _loop(self) -> None:
        while (item := self._wanted.get()) is not None:
            if isinstance(item, _Frame):
                self._see(item)
            else:
                self._try(item)

    def _try(self, candidate: Candidate) -> None:
        try:
            wanted, tolerance = candidate.canary, candidate.tolerance
            run = self._sessions.load(candidate.model, candidate.onnx_sha256, wanted, tolerance=tolerance)
        except Exception as error:  # noqa: BLE001 - whatever it is, this one does not drive, and the next is tried
            self._say(Tried(candidate, None, *_refusal(error)))
            return
        beside, frames = candidate.beside, self._settings.frames
        if not (self._background and beside is not None and frames and beside.drives):
            self._say(Tried(candidate, run))
            return
        beside.shadow(_Trial(candidate, run, self._wanted.put).seen, frames=frames)

    def _see(self, frame: _Frame) -> None:
        trial, beside = frame.trial, frame.trial.candidate.beside
        if beside is None or trial.shadow.frames >= self._settings.frames:
            return
        start_s = self._clock()
        try:
            outputs = None if frame.inputs is None else trial.run(frame.inputs)
        except Exception as error:  # noqa: BLE001 - as above
            beside.shadow(None)
            self._say(Tried(trial.candidate, None, *_refusal(error), trial.shadow))
            trial.shadow = Shadow(frames=self._settings.frames)  # nothing of it counts any more
            return
        took_s, differ = self._clock() - start_s, beside.differ(self._settings.tolerance)
        trial.shadow = compare(trial.shadow, frame.outputs, outputs, took_s=took_s, differ=differ)
        if trial.shadow.frames < self._settings.frames:
            return
        reason, detail = verdict(trial.shadow, self._settings, period_s=beside.period_s)
        self._say(Tried(trial.candidate, None if reason else trial.run, reason, detail, trial.shadow))

    def _say(self, tried: Tried) -> None:
        self._tried.put(tried)
        self._wake()


def _refusal(error: Exception) -> tuple[str, str]:
    """Return reason and detail."""
    return (error.reason, error.detail) if isinstance(error, PeerError) else ("swap-error", str(error)[:300])
