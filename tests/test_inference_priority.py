"""Inference before all other work of its core: where the system allows it, and not for ever."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import agent_world as aw
import numpy as np
import pytest

from fedfleet.models.task import Floats, Frames
from fedfleet.vehicle_agent import scheduling
from fedfleet.vehicle_agent.runtime import STUCK_S, Inference, Replay


class Clock:
    """A clock that can be set ahead."""

    ahead_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead_s


class Model:
    """Notes on which thread it runs and in which class; takes as long as it is told."""

    def __init__(self) -> None:
        self.classes: list[int] = []
        self.thread = 0
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.hangs = threading.Event()

    def __call__(self, inputs: Floats) -> Floats:
        self.thread = threading.get_native_id()
        self.classes.append(os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK)
        if not self.goes_on.is_set():
            self.hangs.set()
            self.goes_on.wait(20.0)
        return np.ones((len(inputs), 2), dtype=np.float32)


@contextmanager
def driving(model: Model, clock: Callable[[], float], *, realtime: bool) -> Iterator[Inference]:
    """A thread with one replay at 100 Hz."""
    frames = Frames(np.ones((1, 4), np.float32), np.array([0, 1]), np.array([-1]), 100.0)
    drive = Replay(aw.TASK, frames, None, clock=time.monotonic)
    drive.swap_ends(model)
    inference = Inference([drive], clock=clock, realtime=realtime)
    inference.start()
    try:
        yield inference
    finally:
        model.goes_on.set()
        inference.stop()


@pytest.fixture
def allowed() -> None:
    """Skip where the system gives nobody a real-time class."""
    told: list[str] = []
    thread = threading.Thread(target=lambda: told.append(scheduling.to_front()))
    thread.start()
    thread.join()
    if told[0]:
        pytest.skip(f"no real-time class here: {told[0]}")


@pytest.mark.usefixtures("allowed")
def test_it_goes_first_and_what_it_starts_does_not(wait_until: Callable[..., None]) -> None:
    model, started = Model(), list[int]()
    with driving(model, time.monotonic, realtime=True) as inference:
        wait_until(lambda: len(model.classes) > 2, "frames")
        assert inference.look() == ""
    assert set(model.classes) == {os.SCHED_RR}
    assert os.sched_getscheduler(0) == os.SCHED_OTHER  # no other thread does

    def start_another() -> None:
        scheduling.to_front()
        other = threading.Thread(target=lambda: started.append(os.sched_getscheduler(0)))
        other.start()
        other.join()

    thread = threading.Thread(target=start_another)
    thread.start()
    thread.join()
    assert [each & ~os.SCHED_RESET_ON_FORK for each in started] == [os.SCHED_OTHER]


def test_normal_priority_when_nothing_else_is_wanted(wait_until: Callable[..., None]) -> None:
    model = Model()
    with driving(model, time.monotonic, realtime=False) as inference:
        wait_until(lambda: len(model.classes) > 2, "frames")
        assert inference.look() == ""
    assert set(model.classes) == {os.SCHED_OTHER}


def test_a_refusal_is_told_once_and_frames_come_all_the_same(
    monkeypatch: pytest.MonkeyPatch, wait_until: Callable[..., None]
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(scheduling.os, "sched_setscheduler", refuse)
    model = Model()
    with driving(model, time.monotonic, realtime=True) as inference:
        wait_until(lambda: len(model.classes) > 2, "frames")
        assert inference.look() == (
            "inference runs at normal priority: real-time refused (Operation not permitted)"
        )
        assert inference.look() == ""


@pytest.mark.usefixtures("allowed")
def test_a_model_that_hangs_loses_its_priority(wait_until: Callable[..., None]) -> None:
    model, clock = Model(), Clock()
    with driving(model, clock, realtime=True) as inference:
        wait_until(lambda: model.classes, "a frame")
        model.goes_on.clear()
        wait_until(model.hangs.is_set, "a frame that hangs")
        clock.ahead_s = STUCK_S / 2
        assert inference.look() == ""
        assert os.sched_getscheduler(model.thread) & ~os.SCHED_RESET_ON_FORK == os.SCHED_RR
        clock.ahead_s = 2 * STUCK_S
        assert inference.look().startswith(
            "a frame takes more than 1 s; inference goes on at normal priority"
        )
        assert os.sched_getscheduler(model.thread) & ~os.SCHED_RESET_ON_FORK == os.SCHED_OTHER
        assert inference.look() == ""
