"""A release beside the active model: what it said is compared frame by frame, and only counts leave."""

import threading
from collections.abc import Callable, Iterator
from hashlib import sha256

import agent_world as aw
import numpy as np
import pytest
from numpy.typing import NDArray

from fedfleet.models import bundle
from fedfleet.models.task import Floats, Frames, Samples
from fedfleet.protocol.errors import PeerError
from fedfleet.vehicle_agent.runtime import Replay
from fedfleet.vehicle_agent.shadow import Shadow, ShadowSettings, compare, differing, verdict
from fedfleet.vehicle_agent.swap import Candidate, Sessions, Swapper, Tried

NAN, INF = float("nan"), float("inf")


def rows(*values: float) -> Floats:
    return np.array(values, dtype=np.float32).reshape(-1, 1)


@pytest.mark.parametrize(
    ("active", "candidate", "counted"),
    [
        (rows(0, 0, 0), rows(0.5, 1.0, 1.5), (1, 3, 1, 0)),
        (rows(0, 0), rows(NAN, INF), (1, 2, 2, 2)),
        (rows(NAN, 0), rows(0, 0), (1, 2, 1, 0)),
        (rows(), rows(), (1, 0, 0, 0)),
        (None, None, (1, 0, 0, 0)),
    ],
)
def test_answers_further_away_than_the_limit_disagree(
    active: Floats | None, candidate: Floats | None, counted: tuple[int, ...]
) -> None:
    seen = compare(Shadow(), active, candidate, took_s=0.001, differ=differing(aw.TASK, None, 1.0))
    assert (seen.frames, seen.answers, seen.disagreed, seen.not_finite) == counted


def test_the_distance_is_measured_by_the_size_of_the_truth() -> None:
    differ = differing(aw.TASK, rows(3, -3, 3), 2.0)
    assert differ(rows(0, 0), rows(5.9, 6.1)).tolist() == [False, True]
    assert differing(aw.TASK, rows(NAN), 2.0)(rows(0, 0), rows(1.9, 2.1)).tolist() == [False, True]


def test_a_task_may_say_itself_what_disagrees() -> None:
    class Signs(type(aw.TASK)):  # type: ignore[misc]
        def differ(self, active: Floats, candidate: Floats) -> NDArray[np.bool_]:
            opposite: NDArray[np.bool_] = (active[:, 0] > 0) != (candidate[:, 0] > 0)
            return opposite

    differ = differing(Signs(), None, 1e-6)
    seen = compare(Shadow(), rows(1, 1, -1), rows(99, -1, NAN), took_s=0.001, differ=differ)
    assert (seen.answers, seen.disagreed, seen.not_finite) == (3, 2, 1)


@pytest.mark.parametrize(
    ("shadow", "reason"),
    [
        (Shadow(10, 100, 10, 0, (0.02,) * 10), ""),
        (Shadow(10, 100, 11, 0, (0.02,) * 10), "disagreement"),
        (Shadow(10, 100, 0, 1, (0.02,) * 10), "not-finite"),
        (Shadow(10, 100, 0, 0, (0.06,) * 6 + (0.0,) * 4), "too-slow"),
        (Shadow(10, 100, 0, 0, (0.06,) * 4 + (0.0,) * 6), ""),
        (Shadow(10, 0, 0, 0, ()), ""),
    ],
)
def test_a_candidate_that_differs_too_often_or_takes_too_long_is_refused(shadow: Shadow, reason: str) -> None:
    assert verdict(shadow, ShadowSettings(), period_s=0.1)[0] == reason


class Clock:
    """A clock that a model lets run."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Given(Sessions):
    """Models by digest that a test made up."""

    def __init__(self, runs: dict[str, Callable[[Floats], Floats]]) -> None:
        super().__init__(aw.TASK)
        self._runs = runs

    def load(
        self,
        model: bytes,
        onnx_sha256: str,
        canary: tuple[Floats, Floats] | None = None,
        *,
        tolerance: float | None = None,
    ) -> Callable[[Floats], Floats]:
        del model, canary, tolerance
        if onnx_sha256 not in self._runs:
            raise RuntimeError("no memory left")
        return self._runs[onnx_sha256]


def answer(inputs: Floats) -> Floats:
    return np.ones((len(inputs), 2), dtype=np.float32)


class Road:
    """A vehicle that drives by hand, and candidates beside its model."""

    def __init__(self) -> None:
        self.clock, self.lock = Clock(), threading.Event()
        inputs = np.arange(40, dtype=np.float32).reshape(10, 4)
        truth = Samples(inputs, np.full((10, 2), 2.0, dtype=np.float32), np.ones(10, dtype=np.bool_))
        offsets = np.array([0, 2, 2, 4, 6, 8, 10], dtype=np.int64)  # the second frame has no row
        frames = Frames(inputs, offsets, np.arange(10, dtype=np.int64), 10.0)
        self.drive = Replay(aw.TASK, frames, truth, clock=self.clock)
        self.drive.begin(answer)
        self.runs = {
            "same": answer,
            "other": lambda inputs: answer(inputs) * 8,
            "nan": lambda inputs: answer(inputs) * np.float32(NAN),
            "slow": self.slow,
            "fails": self.fail,
        }
        settings = ShadowSettings(frames=4)
        self.swapper = Swapper(Given(self.runs), shadow=settings, clock=self.clock)
        self.tried: list[Tried] = []

    def slow(self, inputs: Floats) -> Floats:
        self.clock.now_s += 0.06
        return answer(inputs)

    def fail(self, inputs: Floats) -> Floats:
        raise PeerError("model-mismatch", f"{len(inputs)} rows")

    def trial(self, name: str, wait_until: Callable[..., None]) -> Tried:
        """Submit a candidate and drive until there is a verdict."""
        self.swapper.submit(Candidate(0, 1, name, b"", None, beside=self.drive))

        def judged() -> list[Tried]:
            self.clock.now_s = self.drive.due_s
            self.drive.run_due()
            self.tried += self.swapper.poll()
            return self.tried

        wait_until(judged, "a verdict")
        return self.tried.pop()


@pytest.fixture
def road() -> Iterator[Road]:
    made = Road()
    yield made
    made.swapper.close()


@pytest.mark.parametrize(
    ("name", "reason", "disagreed"),
    [("same", "", 0), ("other", "disagreement", 6), ("nan", "not-finite", 6), ("slow", "too-slow", 0)],
)
def test_the_next_frames_decide(
    road: Road, wait_until: Callable[..., None], name: str, reason: str, disagreed: int
) -> None:
    tried = road.trial(name, wait_until)
    assert tried.reason == reason
    assert tried.run is (None if reason else road.runs[name])
    assert tried.shadow.frames == 4
    assert tried.shadow.disagreed in {disagreed, 8 if disagreed else 0}  # with or without the frame of no row
    # and the active model drove all the while
    assert road.drive._run is answer
    assert road.drive.figures().missed == 0


@pytest.mark.parametrize(("name", "reason"), [("fails", "model-mismatch"), ("unheard-of", "swap-error")])
def test_what_fails_while_it_is_tried_is_refused_and_the_next_one_is_tried(
    road: Road, wait_until: Callable[..., None], name: str, reason: str
) -> None:
    assert road.trial(name, wait_until).reason == reason
    assert road.trial("same", wait_until).reason == ""


def test_without_a_model_that_drives_there_is_nothing_to_compare_with(
    wait_until: Callable[..., None],
) -> None:
    frames = Frames(np.zeros((2, 4), np.float32), np.array([0, 2]), np.array([-1, -1]), 10.0)
    swapper = Swapper(Sessions(aw.TASK), shadow=ShadowSettings(frames=4))
    file, canary = aw.file_of(1), bundle.unpack_canary(aw.canary_of(1), limit_bytes=10_000)
    beside = Replay(aw.TASK, frames, None, clock=Clock())
    swapper.submit(Candidate(0, 1, sha256(file).hexdigest(), file, canary, beside=beside))
    tried: list[Tried] = []
    wait_until(lambda: tried.extend(swapper.poll()) or tried, "a verdict")
    swapper.close()
    assert (tried[0].reason, tried[0].run is not None, tried[0].shadow) == ("", True, Shadow())
