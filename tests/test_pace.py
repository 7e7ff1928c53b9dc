import agent_world as aw
import numpy as np
import pytest

from fedfleet.models.task import Floats, Frames
from fedfleet.vehicle_agent.pace import Jumping, Pace, Wall, run_once
from fedfleet.vehicle_agent.runtime import Answer, Figures, Replay


class Watch:
    """A clock that sleeping and computing move."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def drive(watch: Watch, pace: Pace, *, takes_s: float, rate_hz: float = 10.0) -> tuple[Figures, list[Answer]]:
    """Five frames of two rows each, but the second has none."""
    inputs = np.arange(32, dtype=np.float32).reshape(8, 4)
    offsets = np.array([0, 2, 2, 4, 6, 8])
    answers: list[Answer] = []

    def run(rows: Floats) -> Floats:
        watch.sleep(takes_s)
        return rows[:, :2]

    frames = Frames(inputs, offsets, np.full(8, -1), rate_hz)
    replay = Replay(aw.TASK, frames, None, clock=pace.now_s, rate_hz=rate_hz, seen=answers.append)
    replay.swap_ends(run)
    run_once(replay, pace)
    assert replay.is_over
    return replay.figures(), answers


def test_in_real_time_every_frame_waits_for_its_time() -> None:
    watch = Watch()
    figures, answers = drive(watch, Wall(watch, watch.sleep), takes_s=0.01)
    assert [answer.frame for answer in answers] == [0, 1, 2, 3, 4]
    assert (figures.frames, figures.missed) == (5, 0)
    assert watch.now_s == pytest.approx(100.0 + 4 * 0.1 + 0.01)
    assert [answer.latency_ms for answer in answers] == pytest.approx([10, 0, 10, 10, 10], abs=1e-6)
    assert answers[1].outputs is None
    assert answers[4].rows == slice(6, 8)


def test_twice_as_fast_is_half_the_time() -> None:
    watch = Watch()
    drive(watch, Wall(watch, watch.sleep), takes_s=0.01, rate_hz=20.0)
    assert watch.now_s == pytest.approx(100.0 + 4 * 0.05 + 0.01)


def test_a_slow_model_skips_frames_in_real_time_and_the_drive_ends() -> None:
    watch = Watch()
    figures, answers = drive(watch, Wall(watch, watch.sleep), takes_s=0.26)
    assert [answer.frame for answer in answers] == [0, 2]
    assert (figures.frames, figures.missed) == (5, 5), "skipped ones count, and nothing begins again"


def test_as_fast_as_possible_waits_for_nobody_and_skips_nothing() -> None:
    watch = Watch()
    figures, answers = drive(watch, Jumping(watch), takes_s=0.01)
    assert (figures.frames, figures.missed) == (5, 0)
    assert watch.now_s == pytest.approx(100.0 + 4 * 0.01)
    # when the model is slower than the frames come
    figures, answers = drive(watch, Jumping(watch), takes_s=0.26)
    assert [answer.frame for answer in answers] == [0, 1, 2, 3, 4]
    assert (figures.frames, figures.missed) == (5, 4), "the frame without a track took no time"
    assert answers[2].latency_ms == pytest.approx(260)


def test_a_drive_without_a_frame_is_over_at_once() -> None:
    watch = Watch()
    frames = Frames(
        np.empty((0, 4), dtype=np.float32), np.zeros(1, dtype=np.int64), np.empty(0, dtype=np.int64), 10.0
    )
    replay = Replay(aw.TASK, frames, None, clock=watch, seen=lambda _: None)
    run_once(replay, Jumping(watch))
    assert replay.figures().frames == 0
