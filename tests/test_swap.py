from collections.abc import Callable
from hashlib import sha256

import agent_world as aw
import numpy as np
import pytest

from fedfleet.models import bundle
from fedfleet.models.task import Floats, Frames, Samples
from fedfleet.protocol.errors import PeerError
from fedfleet.vehicle_agent.runtime import Inference, Replay
from fedfleet.vehicle_agent.swap import Candidate, Sessions, Swapper


def digest(data: bytes) -> str:
    return sha256(data).hexdigest()


def canary(version: int) -> tuple[Floats, Floats]:
    return bundle.unpack_canary(aw.canary_of(version), limit_bytes=10_000)


def test_a_model_that_gives_its_canary_s_answers_drives_and_is_shared() -> None:
    sessions, file = Sessions(aw.TASK), aw.file_of(2)
    run = sessions.load(file, digest(file), canary(2))
    x = aw.vector(2)
    inputs = np.eye(4, dtype=np.float32)
    assert np.allclose(run(inputs), inputs @ x[:8].reshape(2, 4).T + x[8:])
    assert sessions.load(file, digest(file)) is run


@pytest.mark.parametrize(
    ("model", "told", "wanted", "reason"),
    [
        (aw.file_of(1), aw.file_of(2), canary(1), "digest-mismatch"),
        (aw.file_of(1), aw.file_of(1), canary(2), "canary-mismatch"),
        (aw.file_of(1), aw.file_of(1), (canary(1)[0][:, :3], canary(1)[1]), "canary-mismatch"),
        (b"no model", b"no model", canary(1), "unloadable-model"),
    ],
)
def test_any_other_model_is_refused(
    model: bytes, told: bytes, wanted: tuple[Floats, Floats], reason: str
) -> None:
    with pytest.raises(PeerError) as caught:
        Sessions(aw.TASK).load(model, digest(told), wanted)
    assert caught.value.reason == reason


def test_a_canary_that_is_not_a_number_does_not_match() -> None:
    inputs, outputs = canary(1)
    with pytest.raises(PeerError, match="canary-mismatch"):
        Sessions(aw.TASK).load(aw.file_of(1), digest(aw.file_of(1)), (inputs, outputs * np.float32("nan")))


def test_a_model_of_another_form_is_refused() -> None:
    class Other(aw.WeightedSum):
        specification = aw.Specification("signal", (4,), "answer", (3,))

    with pytest.raises(PeerError, match="model-mismatch"):
        Sessions(Other(specification=Other.specification)).load(aw.file_of(1), digest(aw.file_of(1)))


def test_the_swapper_tries_in_the_background(wait_until: Callable[..., None]) -> None:
    swapper = Swapper(Sessions(aw.TASK))
    good, bad = aw.file_of(1), aw.file_of(2)
    swapper.submit(Candidate(0, 1, digest(good), good, canary(1)))
    swapper.submit(Candidate(1, 2, digest(bad), bad, canary(1)))
    tried = []
    wait_until(lambda: tried.extend(swapper.poll()) or len(tried) == 2, "both tried")
    swapper.close()
    assert [(each.candidate.owner, each.run is not None, each.reason) for each in tried] == [
        (0, True, ""),
        (1, False, "canary-mismatch"),
    ]


class Watch:
    """A clock that a test sets, and that a model can let run."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def replay(watch: Watch) -> Replay:
    inputs = np.arange(40, dtype=np.float32).reshape(10, 4)
    samples = Samples(inputs, np.zeros((10, 2), dtype=np.float32), np.arange(10) % 2 == 0)
    frames = Frames(inputs, np.arange(6, dtype=np.int64) * 2, np.arange(10, dtype=np.int64), 10.0)
    return Replay(aw.TASK, frames, samples, clock=watch)


def slow(watch: Watch, seconds: float) -> Callable[[Floats], Floats]:
    def run(inputs: Floats) -> Floats:
        watch.now_s += seconds
        return np.ones((len(inputs), 2), dtype=np.float32)

    return run


def test_frames_in_time_are_counted_with_latency_and_score() -> None:
    watch = Watch()
    drive = replay(watch)
    drive.run_due()
    assert drive.figures().frames == 0, "no model, no frame"
    drive.swap_ends(slow(watch, 0.02))
    for _ in range(5):
        watch.now_s = drive.due_s
        drive.run_due()
    figures = drive.figures()
    assert (figures.frames, figures.missed, figures.swaps) == (5, 0, 0)
    assert figures.p50_ms == pytest.approx(20, abs=0.01)
    assert figures.scores["error"] == (5.0, 5)


def test_a_frame_after_its_time_is_missed_and_skipped_ones_are_too() -> None:
    watch = Watch()
    drive = replay(watch)
    drive.swap_ends(slow(watch, 0.15))
    drive.run_due()
    assert (drive.figures().frames, drive.figures().missed) == (1, 1)
    # when the next is looked at three periods late, in a swap, and is itself in time
    drive.swap_begins()
    drive._run = slow(watch, 0.001)
    watch.now_s = drive.due_s + 0.31
    drive.run_due()
    figures = drive.figures()
    assert (figures.frames, figures.missed, figures.missed_in_swap) == (5, 4, 3)
    drive.swap_ends(slow(watch, 0.0))
    assert drive.figures().swaps == 1
    assert drive.figures().scores == {}


def test_a_model_that_cannot_take_the_input_leaves_the_very_frame_to_the_one_before() -> None:
    watch = Watch()
    drive = replay(watch)
    seen: list[Floats | None] = []

    def narrow(inputs: Floats) -> Floats:
        raise PeerError("model-mismatch", f"input is {inputs.shape[1]} wide, expected 3")

    drive.begin(slow(watch, 0.001))
    drive.swap_ends(narrow)
    drive.shadow(lambda _, outputs: seen.append(outputs), frames=2)
    for _ in range(2):
        watch.now_s = drive.due_s
        drive.run_due()
    # both frames were answered, in time, and the failure is told once
    assert [outputs is not None and bool((outputs == 1).all()) for outputs in seen] == [True, True]
    assert (drive.figures().frames, drive.figures().missed) == (2, 0)
    assert (drive.failed(), drive.failed()) == ("active-failed", "")


def test_inference_interleaves_vehicles_and_hands_errors_on(wait_until: Callable[..., None]) -> None:
    import time

    drives = [replay(time.monotonic) for _ in range(3)]  # type: ignore[arg-type]
    for drive in drives:
        drive.swap_ends(lambda inputs: np.ones((len(inputs), 2), dtype=np.float32))
    inference = Inference(drives, clock=time.monotonic)
    inference.start()
    phases = sorted(drive.due_s for drive in drives)
    assert phases[2] - phases[0] >= 0.03
    wait_until(lambda: all(drive.figures().frames >= 3 for drive in drives), "three frames each")

    def fail(inputs: Floats) -> Floats:
        raise PeerError("model-mismatch", f"{len(inputs)} rows")

    # when a model fails, and there is none before it that could go on
    drives[0].swap_ends(fail)
    drives[0].swap_ends(fail)
    wait_until(lambda: isinstance(inference.error, PeerError), "the error")
    inference.stop()
