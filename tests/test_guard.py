"""The latency guard: frames in, orders out."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from fedfleet.vehicle_agent.guard import GuardSettings, GuardState, silent, step
from fedfleet.vehicle_agent.trainer_handle import Signals
from fedfleet.vehicle_agent.watch import Watch

SETTINGS = GuardSettings(late_ms=2.0, resume_frames=3, backoff=2.0, most_frames=8, calm_frames=6)
GOOD, LATE = 0.001, 0.0021


def run(
    late_s: Sequence[float], state: GuardState | None = None, *, settings: GuardSettings = SETTINGS
) -> tuple[GuardState, str]:
    """Feed frames at 10 Hz; the orders as a word: P pause, R resume, . none."""
    state, word = state or GuardState(), ""
    for frame in late_s:
        state, order = step(state, frame, state.seen_s + 0.1, settings=settings)
        word += {"pause": "P", "resume": "R", "none": "."}[order]
    return state, word


def test_the_first_late_frame_pauses_and_enough_good_ones_resume() -> None:
    state, word = run([GOOD, LATE, GOOD, GOOD, GOOD, GOOD])
    assert word == ".P..R."
    assert (state.paused, state.pauses, state.late) == (False, 1, 1)
    assert state.paused_s == pytest.approx(0.3)


def test_the_limit_itself_is_in_time_and_what_is_no_number_is_late() -> None:
    assert run([0.002])[1] == "."
    assert run([float("nan")])[1] == "P"
    assert run([float("inf")])[1] == "P"
    assert run([-1.0])[1] == "."


def test_a_late_frame_in_a_pause_begins_the_wait_anew() -> None:
    assert run([LATE, GOOD, GOOD, LATE, GOOD, GOOD, GOOD])[1] == "P.....R"


def test_it_waits_longer_each_time_up_to_a_limit_and_calm_ends_that() -> None:
    state, word = run([LATE, *[GOOD] * 3])
    waits = []
    for _ in range(3):
        state, word = run(
            [LATE, *[GOOD] * 20], state, settings=SETTINGS.model_copy(update={"calm_frames": 99})
        )
        waits.append(word.index("R"))
    assert waits == [6, 8, 8]
    # when frames beside the trainer were in time for long enough
    state, _ = run([GOOD] * 6, state)
    assert run([LATE, *[GOOD] * 3], state)[1] == "P..R"


def test_what_a_pause_does_not_mend_is_not_the_trainer_s_fault() -> None:
    # given frames that are late whether it runs or not
    state, word = run([LATE] * 100)
    # then it runs at least half of the time
    assert word[:33] == "P" + "." * 15 + "R" + "." * 15 + "P"
    assert 40 <= sum(1 for _ in filter(None, _running(word))) <= 60
    assert state.late == 100


def _running(word: str) -> list[bool]:
    running, found = True, []
    for letter in word:
        running = {"P": False, "R": True, ".": running}[letter]
        found.append(running)
    return found


def test_silence_ends_a_pause_and_so_does_a_clock_that_was_set_back() -> None:
    state, _ = run([LATE])
    assert silent(state, state.seen_s + 1.9, settings=SETTINGS)[1] == "none"
    after, order = silent(state, state.seen_s + 2.1, settings=SETTINGS)
    assert (order, after.paused, after.paused_s) == ("resume", False, pytest.approx(2.1))
    assert silent(state, state.seen_s - 9, settings=SETTINGS)[1] == "resume"
    assert silent(GuardState(), 1e9, settings=SETTINGS) == (GuardState(), "none")


class Told:
    """Trainers that note what they are told."""

    def __init__(self) -> None:
        self.is_busy, self.orders = False, list[str]()

    def pause(self) -> None:
        self.orders.append("pause")

    def resume(self) -> None:
        self.orders.append("resume")


def test_only_trainers_at_work_are_paused_but_every_late_frame_counts() -> None:
    trainers = Told()
    watch = Watch(SETTINGS, trainers)
    watch.frame(LATE, 1.0)
    assert (trainers.orders, watch.figures()) == ([], {"late": 1, "pauses": 0, "paused_s": 0.0})
    # when one is at work
    trainers.is_busy = True
    watch.frame(LATE, 2.0)
    watch.tick(3.0)
    assert trainers.orders == ["pause"]
    watch.tick(5.5)
    assert trainers.orders == ["pause", "resume"]
    assert watch.figures() == {"late": 2, "pauses": 1, "paused_s": 3.5}


def test_a_guard_that_is_off_does_nothing() -> None:
    trainers = Told()
    trainers.is_busy = True
    watch = Watch(GuardSettings(enabled=False), trainers)
    watch.frame(9.0, 1.0)
    assert trainers.orders == []


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_whole_group_is_stopped_and_a_process_that_was_waited_for_is_left_alone(
    wait_until: Callable[..., None],
) -> None:
    signals = Signals()
    command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, process_group=0) as child:
        signals.add(child.pid)
        signals.set(stopped=True)
        wait_until(lambda: state_of(child.pid) == "T", "stopped")
        # then one that starts in a pause is stopped too
        with subprocess.Popen(command, stdin=subprocess.PIPE, process_group=0) as second:
            signals.add(second.pid)
            wait_until(lambda: state_of(second.pid) == "T", "the second stopped")
            signals.set(stopped=False)
            wait_until(lambda: "T" not in {state_of(child.pid), state_of(second.pid)}, "both go on")
            signals.remove(second.pid)
            signals.set(stopped=True)
            wait_until(lambda: state_of(child.pid) == "T", "the first stopped again")
            assert state_of(second.pid) != "T"
        signals.remove(child.pid)
        os.kill(child.pid, signal.SIGKILL)
    signals.set(stopped=True)
