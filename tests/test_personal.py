"""A head of the vehicle's own: when it may drive, what is recorded, and that any doubt ends with the release."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import agent_world as aw
import numpy as np
import pytest

from fedfleet.models import layout, scoring
from fedfleet.models.task import Floats, Frames, Metric, Samples, Sums
from fedfleet.protocol.errors import PeerError
from fedfleet.vehicle_agent import events as ev
from fedfleet.vehicle_agent.entries import Graph, Released
from fedfleet.vehicle_agent.jobs import Job, Told
from fedfleet.vehicle_agent.journal import Journal
from fedfleet.vehicle_agent.personal import Head, PersonalSettings, Record, judge
from fedfleet.vehicle_agent.personal_head import Own, Personal
from fedfleet.vehicle_agent.personal_training import split
from fedfleet.vehicle_agent.runtime import Replay
from fedfleet.vehicle_agent.state import Active, Base
from fedfleet.vehicle_agent.swap import Sessions, Swapper
from fedfleet.vehicle_agent.trainer import perform

LOWER, HIGHER = Metric("error", "1", "lower"), Metric("error", "1", "higher")
SETTINGS = PersonalSettings(enabled=True, least_judged=5, epochs=30, learning_rate=0.05)
BIAS = np.array([8, 9], dtype=np.int64)


# --- judging ---


@pytest.mark.parametrize(
    ("metric", "released", "personal", "reason"),
    [
        (LOWER, (10.0, 10), (9.9, 10), ""),
        (LOWER, (10.0, 10), (9.91, 10), "personal-no-better"),
        (LOWER, (10.0, 10), (10.0, 10), "personal-no-better"),
        (LOWER, (0.0, 10), (0.0, 10), "personal-no-better"),
        (HIGHER, (10.0, 10), (10.2, 10), ""),
        (HIGHER, (10.0, 10), (9.0, 10), "personal-no-better"),
        (LOWER, (10.0, 10), (1.0, 9), "personal-unjudged"),
        (LOWER, (10.0, 4), (1.0, 4), "personal-unjudged"),
        (LOWER, (10.0, 10), (float("nan"), 10), "personal-unjudged"),
        (LOWER, (float("inf"), 10), (1.0, 10), "personal-unjudged"),
    ],
)
def test_a_head_must_be_better_by_enough_on_enough_of_the_same_samples(
    metric: Metric, released: tuple[float, int], personal: tuple[float, int], reason: str
) -> None:
    sums: list[Sums] = [{"error": released}, {"error": personal}]
    assert judge(*sums, metrics=(metric,), settings=SETTINGS) == reason
    assert judge({}, {}, metrics=(metric,), settings=SETTINGS) == "personal-unjudged"


@pytest.mark.parametrize("places", [[], [10], [-1], [3, 3]])
def test_a_head_that_does_not_fit_is_refused(places: list[int]) -> None:
    head = Head(np.array(places, dtype=np.int64), np.zeros(len(places), dtype=np.float32))
    with pytest.raises(ValueError, match="does not fit a model of 10 parameters"):
        head.over(np.zeros(10, dtype=np.float32))


def test_the_last_samples_judge_and_none_beside_them_trains() -> None:
    samples = Samples(
        np.arange(100.0)[:, None].astype(np.float32), np.zeros((100, 1), np.float32), np.ones(100, bool)
    )
    train, judged_by = split(samples, 0.2)
    assert (len(train), len(judged_by)) == (78, 20)
    assert train.inputs.max() < judged_by.inputs.min() - 1


# --- tuning ---


def job(folder: Path, *, held: Head | None = None, **changes: Any) -> Job:
    aw.prepare(folder / "data")
    np.save(folder / "base.npy", aw.vector(1))
    (folder / "release.onnx").write_bytes(aw.file_of(1))
    (folder / "layout.json").write_bytes(aw.graph()[1].to_json())
    if held is not None:
        np.savez(folder / "held.npz", places=held.places, values=held.values)
    told = {
        "id": "v1/personal-1",
        "task": "agent_world:TASK",
        "data_dir": str(folder / "data"),
        "base": str(folder / "base.npy"),
        "settings": {"epochs": 30, "batch_size": 8, "learning_rate": 0.05, "trainable": "head"},
        "seed": 3,
        "out": str(folder / "head.npz"),
        "personal": {
            "model": str(folder / "release.onnx"),
            "layout": str(folder / "layout.json"),
            "validation_share": 0.25,
            "held": str(folder / "held.npz") if held is not None else "",
        },
    }
    return Job.model_validate(told | changes)


def test_the_trainer_tunes_on_some_samples_and_scores_on_others(tmp_path: Path) -> None:
    told = perform(job(tmp_path), lambda _: None)
    assert told.kind == "done", told
    # then only the first of the samples were trained on: 64 less the last quarter and the one between
    assert told.examples == 47
    before, after = (told.scores[name]["error"] for name in ("released", "personal"))
    assert after[0] < before[0]
    assert before[1] == after[1] == 16
    # and the file is the release with that head, and answers as the canary says
    with np.load(tmp_path / "head.npz") as found:
        head, inputs, outputs = Head(found["places"], found["values"]), found["inputs"], found["outputs"]
    file = layout.patch(*aw.graph(), head.over(aw.vector(1)))
    assert sha256(file).hexdigest() == told.onnx_sha256
    assert np.array_equal(scoring.infer(scoring.new_session(file), aw.TASK, inputs), outputs)


def test_a_head_held_before_stays_when_it_is_better(tmp_path: Path) -> None:
    first = perform(job(tmp_path), lambda _: None)
    with np.load(tmp_path / "head.npz") as found:
        held = Head(found["places"], found["values"])
    hardly = {"epochs": 1, "batch_size": 8, "learning_rate": 1e-6, "trainable": "head"}
    again = perform(job(tmp_path, held=held, settings=hardly), lambda _: None)
    assert again.onnx_sha256 == first.onnx_sha256
    assert again.scores["personal"] == first.scores["personal"]


def test_a_held_head_of_another_model_is_no_result(tmp_path: Path) -> None:
    held = Head(np.array([77], dtype=np.int64), np.zeros(1, dtype=np.float32))
    told = perform(job(tmp_path, held=held), lambda _: None)
    assert (told.kind, told.reason) == ("failed", "trainer-error")


# --- at work ---


@dataclass
class Hand:
    """A trainer that a test answers for."""

    jobs: list[Job] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)

    def submit(self, given: Job) -> None:
        self.jobs.append(given)

    def cancel(self, job_id: str) -> None:
        self.cancelled.append(job_id)

    def poll(self, now_s: float) -> list[Told]:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class World:
    """One vehicle's journal with release 1, its frames, and a head by hand."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.folder, self.hand, self.now_s = folder, Hand(), 0.0
        if not (folder / "data").exists():
            aw.prepare(folder / "data")
        self.journal = Journal(folder / "v1", vehicle="v1", task=aw.TASK_ID, epoch=7, seed=b"k" * 32)
        self.sessions = Sessions(aw.TASK)
        self.swapper = Swapper(self.sessions, background=False)
        self.replay = Replay(aw.TASK, frames(), None, clock=lambda: self.now_s)
        own = Own("agent_world:TASK", aw.TASK.metrics, folder / "data", folder / "v1" / "personal", "v1", 0)
        settings = SETTINGS.model_copy(update=changes)
        self.personal = Personal(self.journal, self.hand, self.replay, self.swapper, own, settings=settings)
        self.active: Active | None = self.journal.active
        if self.active is not None:
            self._drive()

    def release(self, version: int) -> None:
        file = aw.file_of(version)
        blank, told = aw.graph()
        base = Base(version, sha256(file).hexdigest(), aw.REGION, step=True)
        self.journal.set_base(base, aw.vector(version), Graph("g", told.to_json(), blank), step=b"")
        self.journal.activate(Released(version, version, sha256(file).hexdigest(), file))
        self.active = self.journal.active
        self._drive()

    def _drive(self) -> None:
        released = self.journal.released("active")
        assert released is not None
        self.replay.swap_ends(self.sessions.load(released.model, released.onnx_sha256))

    def tick(self, *, may_train: bool = True) -> list[str]:
        events = self.personal.tick(self.active, may_train=may_train)
        for tried in self.swapper.poll():
            events += self.personal.tried(tried)
        return [event.reason for event in events if isinstance(event, ev.MessageRefused)]

    def train(self, *, change: Callable[[Told], Told] = lambda told: told) -> list[str]:
        events = self.personal.told(change(perform(self.hand.jobs[-1], lambda _: None)))
        return [event.reason for event in events if isinstance(event, ev.MessageRefused)] + self.tick()

    def answers(self) -> Floats:
        """What drives says to the next frame."""
        found: list[Floats | None] = []
        self.replay.shadow(lambda _, outputs: found.append(outputs), frames=1)
        self.now_s = self.replay.due_s
        self.replay.run_due()
        (outputs,) = found
        assert outputs is not None
        return outputs

    def drives_release(self, version: int) -> bool:
        return bool(np.allclose(self.answers(), aw.vector(version)[8:], atol=1e-6))

    def close(self) -> None:
        self.journal.close()


def frames() -> Frames:
    """Zeros, so that what drives answers its bias."""
    return Frames(np.zeros((40, 4), np.float32), np.arange(21, dtype=np.int64) * 2, np.full(40, -1), 10.0)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    made.release(1)
    yield made
    made.close()


def test_a_better_head_is_recorded_and_drives_until_the_next_release(world: World) -> None:
    assert world.tick() == []
    assert world.drives_release(1)
    assert world.train() == []
    # then the head answers, and the journal has its hash; the release is still what is active
    assert world.replay.is_overlaid
    assert not world.drives_release(1)
    record = world.journal.personal
    assert record is not None
    file = layout.patch(*aw.graph(), record.head.over(aw.vector(1)))
    assert sha256(file).hexdigest() == record.onnx_sha256
    assert world.journal.active == world.active
    scores = json.loads(record.scores)
    assert scores["personal"]["error"][0] < scores["released"]["error"][0]
    # and nothing of it is to be sent
    assert not world.journal.outbox
    assert not world.journal.residual(aw.NETWORK_SIZE).any()
    # when a new release comes, it drives, and the old head is given to the next training to be compared
    world.release(2)
    assert world.drives_release(2)
    assert world.tick() == []
    asked = world.hand.jobs[-1].personal
    assert asked is not None
    assert asked.held
    assert world.drives_release(2)


def test_it_only_trains_when_it_may_and_goes_on_later(world: World) -> None:
    world.tick(may_train=False)
    assert not world.hand.jobs
    world.tick()
    world.tick(may_train=False)
    assert world.hand.cancelled == ["v1/personal-1"]
    assert world.personal.told(Told(kind="failed", id="v1/personal-1", reason="cancelled")) == []
    world.tick()
    assert [each.checkpoint for each in world.hand.jobs] == [world.hand.jobs[0].checkpoint] * 2
    assert world.train() == []
    assert world.replay.is_overlaid


def test_a_variant_and_a_switched_off_head_train_nothing(world: World, tmp_path: Path) -> None:
    assert world.active is not None
    world.active = replace(world.active, variant="int8")
    world.tick()
    off = World(tmp_path / "off", enabled=False)
    off.release(1)
    off.tick()
    off.close()
    assert not world.hand.jobs
    assert not off.hand.jobs


def no_better(told: Told) -> Told:
    return told.model_copy(update={"scores": {**told.scores, "personal": told.scores["released"]}})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (no_better, "personal-no-better"),
        (lambda told: told.model_copy(update={"scores": {}}), "personal-unjudged"),
        (lambda told: told.model_copy(update={"onnx_sha256": "0" * 64}), "personal-damaged"),
    ],
)
def test_any_doubt_leaves_the_release(world: World, change: Callable[[Told], Told], reason: str) -> None:
    world.tick()
    assert world.train(change=change) == [reason]
    assert world.drives_release(1)
    assert world.journal.personal is None
    # and it is not tried again for this release
    world.tick()
    assert len(world.hand.jobs) == 1


def test_answers_that_are_not_its_own_are_refused(world: World) -> None:
    world.tick()
    given = world.hand.jobs[-1]
    told = perform(given, lambda _: None)
    with np.load(given.out) as found:
        parts: Mapping[str, Any] = {name: found[name] for name in found.files}
    np.savez(given.out, **{**parts, "outputs": parts["outputs"] + 1})
    world.personal.told(told)
    assert world.tick() == ["personal-canary-mismatch"]
    assert world.drives_release(1)


def test_a_result_that_cannot_be_read_is_refused(world: World) -> None:
    world.tick()
    told = perform(world.hand.jobs[-1], lambda _: None)
    Path(world.hand.jobs[-1].out).write_bytes(b"nothing")
    assert [getattr(event, "reason", "") for event in world.personal.told(told)] == ["personal-damaged"]


def test_trainings_that_fail_end_after_a_few(world: World) -> None:
    for number in (1, 2):
        world.tick()
        told = Told(kind="failed", id=f"v1/personal-{number}", reason="trainer-died")
        assert [e.reason for e in world.personal.told(told) if isinstance(e, ev.MessageRefused)] == [
            "personal-trainer-died"
        ]
    world.tick()
    assert len(world.hand.jobs) == 2


def test_a_head_that_fails_on_a_frame_gives_the_same_frame_to_the_release(world: World) -> None:
    world.tick()
    world.train()

    def fails(inputs: Floats) -> Floats:
        raise PeerError("model-mismatch", f"{len(inputs)} rows")

    for wrong, reason in (
        (fails, "failed"),
        (lambda inputs: np.full((len(inputs), 2), np.nan, np.float32), "not-finite"),
    ):
        world.replay.overlay(wrong)
        assert world.drives_release(1)
        assert not world.replay.is_overlaid
        assert world.tick() == [f"personal-{reason}"]
    assert world.replay.failed() == ""
    assert world.journal.personal is None


def test_after_a_start_the_recorded_head_drives_again_and_only_as_it_was_recorded(tmp_path: Path) -> None:
    first = World(tmp_path)
    first.release(1)
    first.tick()
    first.train()
    head = first.answers()
    record = first.journal.personal
    assert record is not None
    first.close()
    # when the vehicle starts again, the release drives until the head was tried
    again = World(tmp_path)
    assert again.drives_release(1)
    assert again.tick() == []
    assert np.allclose(again.answers(), head)
    assert not again.hand.jobs
    # when what is recorded is not what it was
    again.journal.keep_personal(replace(record, head=Head(record.head.places, record.head.values + 1)))
    again.close()
    third = World(tmp_path)
    assert third.tick() == ["personal-damaged"]
    assert third.drives_release(1)
    assert third.journal.personal is None
    assert third.hand.jobs, "a new one is tuned"
    third.close()


def test_other_samples_ask_for_another_judgement(tmp_path: Path) -> None:
    first = World(tmp_path)
    first.release(1)
    first.tick()
    first.train()
    first.close()
    aw.prepare(tmp_path / "data", seed=2)
    again = World(tmp_path)
    again.tick()
    assert again.drives_release(1)
    assert again.hand.jobs
    again.close()


def test_a_head_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.journal.keep_personal(Record("r", "o", Head(BIAS, np.ones(2, np.float32)), b"c", "d", "{}"))
    assert world.journal.personal is not None
    db = world.journal._db
    db.execute("UPDATE personal SET head = x'00'")
    assert world.journal.personal is None
    world.close()
