"""What a journal holds is what its digests say, or it is forgotten; what drives after a start was verified."""

import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import agent_world as aw
import numpy as np
import pytest

from fedfleet.link.inbox import Inbox
from fedfleet.link.memory import MemoryBroker
from fedfleet.link.port import Delivery, Event
from fedfleet.models import prepared
from fedfleet.models.task import Floats
from fedfleet.protocol import topics
from fedfleet.protocol.errors import PeerError
from fedfleet.vehicle_agent import events as ev
from fedfleet.vehicle_agent.downlink import Downlink, Limits
from fedfleet.vehicle_agent.entries import Graph, OutboxEntry, Released
from fedfleet.vehicle_agent.journal import Journal
from fedfleet.vehicle_agent.journal_file import JournalError
from fedfleet.vehicle_agent.runtime import Replay
from fedfleet.vehicle_agent.state import Base
from fedfleet.vehicle_agent.swap import Sessions, Swapper
from fedfleet.vehicle_agent.verify import forget_damaged


def digest(data: bytes) -> str:
    return sha256(data).hexdigest()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """A journal with an update, a base and two releases."""
    made = Journal(tmp_path / "v01", vehicle="v01", task=aw.TASK_ID, epoch=7, seed=b"k" * 32)
    file, places = aw.graph()
    graph = Graph("ab" * 32, places.to_json(), file)
    made.set_base(Base(1, digest(aw.file_of(1)), "north", step=True), aw.vector(1), graph, step=b"step")
    for sealed in (b"first", b"second"):
        made.commit_update(OutboxEntry(made.next_id, sealed, made.next_id.sequence, "north"), aw.vector(1))
    for number in (1, 2):
        model = aw.file_of(number)
        made.activate(Released(number, number, digest(model), model))
    yield made
    made.close()


def alter(journal: Journal, statement: str) -> None:
    journal._db.execute(statement)


def test_a_sound_journal_loses_nothing(journal: Journal) -> None:
    assert forget_damaged(journal) == ()
    assert [pending.sequence for pending in journal.outbox] == [1, 2]
    assert journal.base is not None


def test_an_update_with_a_changed_byte_is_neither_sent_nor_returned(journal: Journal) -> None:
    alter(journal, "UPDATE outbox SET sealed = CAST(x'00' || substr(sealed, 2) AS BLOB) WHERE sequence = 1")
    assert forget_damaged(journal) == ("outbox-damaged",)
    assert [pending.sequence for pending in journal.outbox] == [2]
    assert (journal.residual(aw.NETWORK_SIZE) == aw.vector(1)).all()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE base SET vector = CAST(x'00000000' || substr(vector, 5) AS BLOB)",
        "UPDATE base SET vector = x'0000'",
        "UPDATE graph SET onnx = substr(onnx, 2)",
        "UPDATE graph SET layout = x'7b'",
        "DELETE FROM graph",
    ],
)
def test_no_training_starts_from_a_damaged_base(journal: Journal, statement: str) -> None:
    alter(journal, statement)
    assert forget_damaged(journal) == ("base-damaged",)
    assert (journal.base, journal.base_vector, journal.base_step, journal.graph) == (None, None, None, None)
    assert forget_damaged(journal) == ()


def test_a_residual_that_is_no_number_counts_as_none(journal: Journal) -> None:
    broken = aw.vector(1)
    broken[3] = np.nan
    journal.commit_update(OutboxEntry(journal.next_id, b"third", 3, "north"), broken)
    assert not journal.residual(aw.NETWORK_SIZE).any()


def test_a_journal_that_cannot_be_read_any_more_says_so_in_one_line(journal: Journal) -> None:
    alter(journal, "DROP TABLE base")
    with pytest.raises(
        JournalError, match=r"^journal-failed: vehicle v01: journal .* cannot be read: no such"
    ):
        _ = journal.base


Drive = tuple[Downlink, Replay]


@pytest.fixture
def drive(journal: Journal, tmp_path: Path) -> Iterator[Callable[[], Drive]]:
    data, swapper = aw.prepare(tmp_path / "data"), Swapper(Sessions(aw.TASK), background=False)
    limits = Limits(1_000_000, 10.0)

    def make() -> Drive:
        replay = Replay(aw.TASK, prepared.open_frames(data), None, clock=time.monotonic)
        return Downlink(journal, replay, swapper, owner=0, task=aw.TASK, limits=limits), replay

    yield make
    swapper.close()


def test_a_base_that_is_lost_while_the_next_comes_is_told_and_asked_for_again(
    journal: Journal, drive: Callable[[], Drive]
) -> None:
    # given a download of the delta from version 1 to 2
    broker, inbox = MemoryBroker(1), Inbox[Event](100)
    downlink, _ = drive()
    downlink.attach(broker.connect("v01", inbox.put), aw.FLEET, lambda: 0.5)
    file, places = aw.graph()
    graph = Graph(digest(aw.blobs_of(1)[0]), places.to_json(), file)
    journal.set_base(Base(1, digest(aw.file_of(1)), "north", step=True), aw.vector(1), graph, step=b"step")
    told = aw.pointer(2)
    pointer = told.model_copy(update={"full": told.full.model_copy(update={"size_bytes": 10_000})})
    assert downlink.fetch(pointer, None, 0.0) == []
    # when the base is lost before the delta is there
    alter(journal, "DELETE FROM base")
    server = broker.connect("fleet-server", lambda _: None)
    for blob in aw.blobs_of(2):
        server.publish(topics.blob(aw.FLEET, digest(blob), 0), blob, retain=True)
    said: list[ev.Event] = []
    for _ in range(5):
        broker.pump()
        for event in inbox.drain(100, 0.0):
            if isinstance(event, Delivery):
                said += downlink.deliver(topics.parse(event.topic), event.payload, 1.0)
    # then it is no crash and no end: the next try takes the full model
    assert said == [ev.FetchFailed("base", 2, "base-lost", lasting=False)]


class Refusing(Sessions):
    """A runtime that cannot load a file."""

    def __init__(self, refused: str) -> None:
        super().__init__(aw.TASK)
        self._refused = refused

    def load(
        self,
        model: bytes,
        onnx_sha256: str,
        canary: tuple[Floats, Floats] | None = None,
        *,
        tolerance: float | None = None,
    ) -> Callable[[Floats], Floats]:
        if onnx_sha256 == self._refused:
            raise PeerError("unloadable-model", "no such operator")
        return super().load(model, onnx_sha256, canary, tolerance=tolerance)


def answers(replay: Replay, version: int) -> bool:
    inputs = np.eye(4, dtype=np.float32)
    assert replay._run is not None
    return np.allclose(
        replay._run(inputs), inputs @ aw.vector(version)[:8].reshape(2, 4).T + aw.vector(version)[8:]
    )


def test_after_a_start_the_active_model_drives_and_the_one_before_is_at_hand(
    journal: Journal, drive: Callable[[], Drive]
) -> None:
    downlink, replay = drive()
    assert downlink.resume(Sessions(aw.TASK)) == []
    assert answers(replay, 2)
    assert replay.figures().swaps == 0
    # when it fails on its first frame
    replay._run = lambda inputs: np.full((len(inputs), 2), np.nan, dtype=np.float32)
    replay.run_due()
    # then the one before answers, and the journal keeps to it
    assert answers(replay, 1)
    one, two = (digest(aw.file_of(version)) for version in (1, 2))
    assert downlink.fall_back() == [
        ev.Activated(1, 1, one),
        ev.ActivationRefused(2, "active-not-finite", two),
    ]
    assert (journal.released("active"), journal.released("previous")) == (
        Released(1, 1, one, aw.file_of(1)),
        None,
    )


@pytest.mark.parametrize("damage", ["bytes", "runtime"])
def test_an_active_model_that_cannot_be_used_leaves_the_one_before(
    journal: Journal, drive: Callable[[], Drive], damage: str
) -> None:
    downlink, replay = drive()
    sessions = Refusing(digest(aw.file_of(2)) if damage == "runtime" else "")
    if damage == "bytes":
        alter(
            journal,
            "UPDATE release SET model = CAST(x'00' || substr(model, 2) AS BLOB) WHERE slot = 'active'",
        )
    events = downlink.resume(sessions)
    assert answers(replay, 1)
    assert ev.Activated(1, 1, digest(aw.file_of(1))) in events
    assert (ev.MessageRefused("active-unloadable-model") in events) == (damage == "runtime")
    assert journal.active is not None
    assert (journal.active.number, journal.released("previous")) == (1, None)
