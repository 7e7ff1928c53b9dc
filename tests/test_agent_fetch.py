"""Blobs over a link, and models from blobs."""

from hashlib import sha256
from typing import Any

import agent_world as aw
import pytest

from fedfleet.link.inbox import Inbox
from fedfleet.link.memory import MemoryBroker
from fedfleet.link.port import Delivery, Event, Link
from fedfleet.models import layout
from fedfleet.protocol import chunks, topics
from fedfleet.protocol import messages as msg
from fedfleet.protocol.errors import PeerError
from fedfleet.vehicle_agent.assemble import Held, build, route
from fedfleet.vehicle_agent.entries import Graph
from fedfleet.vehicle_agent.fetch import PARALLEL, Fetch

BIG = bytes(range(256)) * 7000  # 1.8 MB, 7 chunks


class Taking:
    """A fetch over a broker in memory that is pumped with time."""

    def __init__(self, *blobs: bytes, lie: bytes | None = None) -> None:
        self.broker = MemoryBroker(1)
        self.inbox: Inbox[Event] = Inbox(1000)
        self.link: Link = self.broker.connect("v01", self.inbox.put)
        self.server = self.broker.connect("fleet-server", lambda _: None)
        self.most = self.now_s = 0
        for blob in blobs:
            self.put(blob, lie or blob)
        refs = [aw.blob_of(blob) for blob in blobs]
        self.fetch = Fetch(self.link, aw.FLEET, refs, timeout_s=10.0, jitter=lambda: 0.5)
        self.fetch.start(0.0)

    def put(self, blob: bytes, content: bytes) -> None:
        digest = sha256(blob).hexdigest()
        for number in range(aw.blob_of(blob).chunks):
            piece = content[number * chunks.CHUNK_BYTES : (number + 1) * chunks.CHUNK_BYTES]
            self.server.publish(topics.blob(aw.FLEET, digest, number), piece, retain=True)
        self.broker.pump()

    def turns(self, count: int) -> Any:
        for _ in range(count):
            self.most = max(self.most, len(self.link.outbox))  # type: ignore[attr-defined]
            self.broker.pump()
            for event in self.inbox.drain(1000, 0.0):
                if isinstance(event, Delivery):
                    self.fetch.deliver(topics.parse(event.topic), event.payload, self.now_s)
                    self.link.ack(event)
            self.fetch.tick(self.now_s)
            self.now_s += 1
        return self.fetch.done()


def test_chunks_are_asked_for_a_few_at_a_time_and_joined() -> None:
    taking = Taking(BIG, b"small", b"small")
    found = taking.turns(10)
    assert found == {sha256(BIG).hexdigest(): BIG, sha256(b"small").hexdigest(): b"small"}
    assert taking.most <= 2 * PARALLEL
    assert taking.link.filters == {}  # type: ignore[attr-defined]


def test_a_blob_that_is_not_its_digest_is_asked_for_again_then_refused() -> None:
    with pytest.raises(PeerError, match="digest-mismatch: blob: got 5 bytes with SHA-256"):
        Taking(b"small", lie=b"wrong").turns(30)


def test_a_blob_that_is_too_long_is_refused() -> None:
    with pytest.raises(PeerError, match=r"digest-mismatch: chunk 0 of blob .* has 9 bytes, expected 5"):
        Taking(b"small", lie=b"too large").turns(500)


def test_a_blob_that_comes_late_is_taken_and_one_that_never_comes_is_given_up() -> None:
    taking = Taking()
    taking.fetch = Fetch(taking.link, aw.FLEET, [aw.blob_of(b"late")], timeout_s=10.0, jitter=lambda: 0.5)
    taking.fetch.start(0.0)
    assert taking.turns(30) is None
    taking.put(b"late", b"late")
    assert taking.turns(3) == {sha256(b"late").hexdigest(): b"late"}
    taking.fetch = Fetch(taking.link, aw.FLEET, [aw.blob_of(b"never")], timeout_s=10.0, jitter=lambda: 0.5)
    taking.fetch.start(taking.now_s)
    with pytest.raises(PeerError, match="blob-timeout: chunk 0 of blob"):
        taking.turns(500)


def test_one_in_a_hurry_gives_up_after_it_has_asked_twice() -> None:
    taking = Taking()
    taking.fetch = Fetch(taking.link, aw.FLEET, [aw.blob_of(b"never")], timeout_s=10.0, jitter=lambda: 0.5)
    taking.fetch.start(0.0)
    taking.fetch.hurry()
    assert taking.turns(12) is None
    with pytest.raises(PeerError, match="did not come, asked 2 times"):
        taking.turns(30)


@pytest.mark.parametrize(("size", "count"), [(5, 2), (256_001, 1), (10**9, 1)])
def test_a_reference_that_cannot_be_true_is_refused(size: int, count: int) -> None:
    ref = msg.BlobRef(sha256="0" * 64, size_bytes=size, chunks=count)
    taking = Taking()
    with pytest.raises(PeerError, match="malformed-blob"):
        Fetch(taking.link, aw.FLEET, [ref], timeout_s=10.0, jitter=lambda: 0.5)


# --- models from blobs ---


def held(version: int) -> Held:
    file, told = aw.graph()
    graph = Graph(sha256(aw.blobs_of(version)[0]).hexdigest(), told.to_json(), file)
    return Held(version, aw.vector(version), graph)


def blobs(version: int) -> dict[str, bytes]:
    return {sha256(blob).hexdigest(): blob for blob in aw.blobs_of(version)}


def cheap(version: int) -> msg.ModelPointer:
    """A pointer whose full vector is dear, so that deltas are the cheaper way."""
    told = aw.pointer(version)
    return told.model_copy(update={"full": told.full.model_copy(update={"size_bytes": 10_000})})


@pytest.mark.parametrize(("have", "deltas"), [(None, None), (1, None), (2, 2), (3, 1), (4, 0), (5, None)])
def test_the_way_is_the_chain_of_deltas_where_there_is_one(have: int | None, deltas: int | None) -> None:
    way = route(cheap(4), None if have is None else held(have))
    assert (None if way.chain is None else len(way.chain)) == deltas
    assert way.fetch_graph == (have is None)


@pytest.mark.parametrize("have", [None, 2, 3, 4])
def test_every_way_leads_to_the_same_bytes(have: int | None) -> None:
    mine = None if have is None else held(have)
    way = route(cheap(4), mine)
    model = build(way, blobs(4), mine, task=aw.TASK, limit_bytes=10_000)
    assert model.onnx == aw.file_of(4)
    assert (model.vector == aw.vector(4)).all()


def test_the_full_vector_is_taken_when_it_is_smaller_or_asked_for() -> None:
    tiny = aw.pointer(4).full.model_copy(update={"size_bytes": 1})
    assert route(aw.pointer(4, full=tiny), held(3)).chain is None
    assert route(cheap(4), held(3), full=True).chain is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"vector_sha256": "0" * 64}, "vector-mismatch"),
        ({"onnx_sha256": "0" * 64}, "model-mismatch"),
        ({"parameters": 11}, "model-mismatch"),
    ],
)
def test_what_is_not_as_signed_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(PeerError) as caught:
        build(route(aw.pointer(2, **changes), None), blobs(2), None, task=aw.TASK, limit_bytes=10_000)
    assert caught.value.reason == reason


def test_a_model_of_another_task_is_refused() -> None:
    other = aw.WeightedSum(name="other", version=2)
    with pytest.raises(PeerError) as caught:
        build(route(aw.pointer(2), None), blobs(2), None, task=other, limit_bytes=10_000)
    assert str(caught.value) == "wrong-task: model 2 is for weighted_sum version 1, expected other version 2"


def test_a_graph_that_unpacks_to_too_much_is_refused() -> None:
    with pytest.raises(PeerError, match="too-large"):
        build(route(aw.pointer(2), None), blobs(2), None, task=aw.TASK, limit_bytes=100)


def test_a_wrong_held_vector_is_noticed() -> None:
    wrong = Held(3, aw.vector(2), held(3).graph)
    with pytest.raises(PeerError, match="vector-mismatch"):
        build(route(cheap(4), wrong), blobs(4), wrong, task=aw.TASK, limit_bytes=10_000)


def test_the_layout_of_the_tests_own_model_is_sound() -> None:
    file, told = aw.graph()
    assert (layout.extract(aw.file_of(2), told) == aw.vector(2)).all()
    assert len(file) == told.file_bytes
