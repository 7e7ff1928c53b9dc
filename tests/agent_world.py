"""A small world for the agent's tests: a task of ten parameters, its data, and a server that does as it is told."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from fedfleet.codec import payload
from fedfleet.codec.settings import Settings as CodecSettings
from fedfleet.fleet_server.chain import live, pack_due
from fedfleet.link.inbox import Inbox
from fedfleet.link.port import Delivery, Event, Link, Sink
from fedfleet.models import bundle, layout, prepared
from fedfleet.models.task import Drive, Floats, Frames, Index, Metric, Samples, Specification, Sums
from fedfleet.protocol import chunks, envelope, topics, update
from fedfleet.protocol import messages as msg
from fedfleet.protocol.enrolment import open_enrolment, server_proof
from fedfleet.protocol.envelope import Kind
from fedfleet.protocol.ids import SERVER
from fedfleet.protocol.signing import Keyring, SigningKey

FLEET, REGION, TASK_ID = "test-fleet", "north", "weighted-sum"
SERVER_KEY = SigningKey(b"s" * 32)
CODE = "a long enough code"
NETWORK_SIZE = 10


SPECIFICATION = Specification("signal", (4,), "answer", (2,))


@dataclass(frozen=True)
class WeightedSum:
    """Four numbers in, two weighted sums out; judged by the mean absolute error."""

    name: str = "weighted_sum"
    version: int = 1
    specification: Specification = SPECIFICATION
    metrics: tuple[Metric, ...] = (Metric("error", "1", "lower"),)
    network: str = "agent_network:network"
    loss: str = "agent_network:loss"

    def index(self, folder: Path) -> Index:
        return Index((Drive(REGION, folder.name, 1, 5.0),), {})

    def samples(self, folder: Path, drives: Any) -> Samples:
        raise NotImplementedError

    def frames(self, folder: Path, drives: Any) -> Frames:
        raise NotImplementedError

    def score(self, outputs: Floats, samples: Samples) -> Sums:
        return self.score_all(outputs[samples.judged], samples)

    def score_all(self, outputs: Floats, samples: Samples) -> Sums:
        wanted = samples.targets[samples.judged] if len(outputs) != len(samples) else samples.targets
        return {"error": (float(np.abs(outputs - wanted).mean(axis=-1).sum()), len(outputs))}

    def baseline(self, inputs: Floats) -> Floats:
        return np.zeros((len(inputs), 2), dtype=np.float32)


TASK = WeightedSum()


def prepare(folder: Path, *, seed: int = 1, task: str = TASK.name) -> Path:
    """Write a prepared folder of 64 samples and 30 frames at 10 Hz."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(64, 4)).astype(np.float32)
    targets = (inputs @ rng.normal(size=(4, 2))).astype(np.float32)
    samples = Samples(inputs, targets, np.ones(64, dtype=np.bool_))
    offsets = np.arange(31, dtype=np.int64) * 2
    frames = Frames(inputs[:60], offsets, np.arange(60, dtype=np.int64), 10.0)
    meta = prepared.Meta(
        task=task,
        task_version=1,
        drives=(f"{REGION}/d1",),
        parts=("train", "frames"),
        counts={"train_samples": 64, "train_judged": 64, "frames": 30, "frames_inputs": 60},
        problems={},
        rate_hz=10.0,
    )
    prepared.write(folder, meta, samples={"train": samples}, frames=frames)
    return folder


@cache
def graph() -> tuple[bytes, layout.Layout]:
    """The model file with its weights zeroed, and its layout."""
    from onnx import TensorProto, helper

    marks = {"weight": np.full((2, 4), 7.5, np.float32), "bias": np.full(2, 9.5, np.float32)}
    tensors = [
        helper.make_tensor(name, TensorProto.FLOAT, mark.shape, mark.tobytes(), raw=True)
        for name, mark in marks.items()
    ]
    made = helper.make_graph(
        [helper.make_node("Gemm", ["signal", "weight", "bias"], ["answer"], transB=1)],
        "weighted_sum",
        [helper.make_tensor_value_info("signal", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, ["N", 2])],
        tensors,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    file = model.SerializeToString(deterministic=True)
    places = tuple(file.index(mark.tobytes()) for mark in marks.values())
    told = layout.Layout(
        task=TASK.name,
        task_version=1,
        names=("weight", "bias"),
        shapes=((2, 4), (2,)),
        offsets=(0, 8),
        byte_offsets=places,
        file_bytes=len(file),
    )
    return layout.patch(file, told, np.zeros(NETWORK_SIZE, dtype=np.float32)), told


def vector(version: int) -> Floats:
    """The weights of a version."""
    x = np.zeros(NETWORK_SIZE, dtype=np.float32)
    for step in range(version):
        x = x + step_of(step)
    return x


def step_of(version: int) -> Floats:
    return np.random.default_rng(version).normal(size=NETWORK_SIZE).astype(np.float32)


def file_of(version: int) -> bytes:
    return layout.patch(*graph(), vector(version))


def canary_of(version: int) -> bytes:
    inputs = np.random.default_rng(5).normal(size=(3, 4)).astype(np.float32)
    x = vector(version)
    return bundle.pack_canary(inputs, (inputs @ x[:8].reshape(2, 4).T + x[8:]).astype(np.float32))


def blob_of(data: bytes) -> msg.BlobRef:
    count = max(1, -(-len(data) // chunks.CHUNK_BYTES))
    return msg.BlobRef(sha256=sha256(data).hexdigest(), size_bytes=len(data), chunks=count)


def delta_of(version: int) -> bytes:
    """The payload from ``version`` to the next."""
    settings = CodecSettings(index="dense", value="float32")
    return payload.encode(step_of(version), settings, steps=0, examples=0)


def blobs_of(version: int) -> list[bytes]:
    file, told = graph()
    start = max(0, version - 2)
    return [
        bundle.pack_graph(told.to_json(), file),
        bundle.pack_vector(vector(version)),
        canary_of(version),
        *(delta_of(step) for step in range(start, version)),
    ]


def pointer(version: int, **changes: Any) -> msg.ModelPointer:
    graph_blob, full, _, *deltas = blobs_of(version)
    start = version - len(deltas)
    told = msg.ModelPointer(
        task=TASK_ID,
        region=REGION,
        version=version,
        parameters=NETWORK_SIZE,
        onnx_sha256=sha256(file_of(version)).hexdigest(),
        vector_sha256=sha256(vector(version).tobytes()).hexdigest(),
        segments=(msg.Segment(name="body", offset=0, size=NETWORK_SIZE, version=version),),
        graph=blob_of(graph_blob),
        full=blob_of(full),
        deltas=tuple(
            msg.DeltaRef(from_version=start + i, to_version=start + i + 1, kind="add", blob=blob_of(delta))
            for i, delta in enumerate(deltas)
        ),
    )
    return told.model_copy(update=changes)


def chained(version: int) -> tuple[msg.ModelPointer, dict[str, bytes]]:
    """A pointer to a version with deltas and packs from 0 on and a full vector that is dear, and all blobs."""
    deltas = {to: delta_of(to - 1) for to in range(1, version + 1)}
    packs = {
        due[-1]: bundle.pack_deltas(due[0] - 1, [("add", deltas[one]) for one in due])
        for last in range(1, version + 1)
        if (due := pack_due(last))
    }
    refs = [{to: blob_of(data) for to, data in each.items()} for each in (deltas, packs)]
    chain = live(refs[0], refs[1], version=version, full_bytes=10**9)
    told = pointer(version, deltas=chain.deltas, packs=chain.packs)
    told = told.model_copy(update={"full": told.full.model_copy(update={"size_bytes": 10**7})})
    blobs = [*deltas.values(), *packs.values(), *blobs_of(version)]
    return told, {sha256(data).hexdigest(): data for data in blobs}


def release(number: int, version: int, **changes: Any) -> msg.Release:
    told = msg.Release(
        task=TASK_ID,
        region=REGION,
        number=number,
        model=pointer(version),
        canary=blob_of(canary_of(version)),
        policy="test",
        released_at_s=1000.0,
    )
    return told.model_copy(update=changes)


def plan(round_: int, version: int, **changes: Any) -> msg.Plan:
    told = msg.Plan(
        task=TASK_ID,
        region=REGION,
        round=round_,
        revision=0,
        base_version=version,
        onnx_sha256=sha256(file_of(version)).hexdigest(),
        opened_at_s=1000.0,
        deadline_s=2000.0,
        lease_s=30.0,
        seed=1,
        share=1.0,
        codec=msg.CodecPlan(density=0.3),
        training={"epochs": 2, "batch_size": 8},
    )
    return told.model_copy(update=changes)


def settlement(round_: int, fates: Mapping[str, msg.Fate], **changes: Any) -> msg.Settlement:
    told = msg.Settlement(
        task=TASK_ID,
        region=REGION,
        round=round_,
        outcome="published",
        version=round_ + 1,
        closed_at_s=1000.0,
        fates=fates,
    )
    return told.model_copy(update=changes)


_PLACES: dict[type, tuple[Kind, Callable[[Any], str]]] = {
    msg.Plan: (Kind.PLAN, lambda m: topics.round_plan(FLEET, m.region, m.task)),
    msg.ModelPointer: (Kind.MODEL, lambda m: topics.model(FLEET, m.region, m.task)),
    msg.Release: (Kind.RELEASE, lambda m: topics.release(FLEET, m.region, m.task)),
    msg.Settlement: (Kind.SETTLEMENT, lambda m: topics.settlement(FLEET, m.region, m.task, m.round)),
    msg.Receipt: (Kind.RECEIPT, lambda m: topics.receipt(FLEET, m.vehicle)),
    msg.Command: (Kind.COMMAND, lambda m: topics.command(FLEET, m.vehicle)),
}


def topic_of(message: msg.Message) -> str:
    return _PLACES[type(message)][1](message)


def sealed(message: msg.Message, *, key: SigningKey = SERVER_KEY, sender: str = SERVER) -> bytes:
    return envelope.seal(msg.encode(message), key, kind=_PLACES[type(message)][0], sender=sender, fleet=FLEET)


@dataclass
class Server:
    """Answers requests and stores updates; publishes what a test tells it to."""

    connect: Callable[[str, Sink], Link]
    keys: dict[str, bytes] = field(default_factory=dict)
    codes: dict[str, str] = field(default_factory=dict)
    statuses: list[msg.Status] = field(default_factory=list)
    metrics: list[msg.Metrics] = field(default_factory=list)
    updates: dict[tuple[str, int], bytes] = field(default_factory=dict)
    copies: list[bytes] = field(default_factory=list)
    silent: bool = False

    def __post_init__(self) -> None:
        self.inbox: Inbox[Event] = Inbox(10_000)
        self.link = self.connect(SERVER, self.inbox.put)
        for topic_filter in topics.vehicles(FLEET):
            self.link.subscribe(topic_filter)

    def publish(self, *messages: msg.Message) -> None:
        for message in messages:
            retain = not isinstance(message, msg.Receipt | msg.Command)
            self.link.publish(topic_of(message), sealed(message), retain=retain)

    def publish_model(self, version: int) -> None:
        for blob in blobs_of(version):
            self.publish_blob(blob)
        self.publish(pointer(version), release(version + 1, version))

    def publish_blob(self, blob: bytes) -> None:
        for number in range(blob_of(blob).chunks):
            piece = blob[number * chunks.CHUNK_BYTES : (number + 1) * chunks.CHUNK_BYTES]
            self.link.publish(topics.blob(FLEET, sha256(blob).hexdigest(), number), piece, retain=True)

    def turn(self) -> None:
        for event in self.inbox.drain(1000, 0.0):
            if isinstance(event, Delivery):
                self._take(event)
                self.link.ack(event)

    def _take(self, event: Delivery) -> None:
        topic = topics.parse(event.topic)
        if topic.kind == "request":
            self._answer(event.payload, topic.vehicle)
            return
        opened = envelope.open_sealed(event.payload, Keyring(self.keys), fleet=FLEET, limit_bytes=4_000_000)
        if topic.kind == "status":
            self.statuses.append(msg.decode(msg.Status, opened.body, sender=opened.sender))
        elif topic.kind == "metrics":
            self.metrics.append(msg.decode(msg.Metrics, opened.body, sender=opened.sender))
        elif topic.kind == "update":
            self.copies.append(event.payload)
            if not self.silent:
                manifest, _ = update.unpack(opened.body, sender=opened.sender)
                self.updates[topic.vehicle, topic.round] = event.payload
                told = msg.Receipt(
                    vehicle=topic.vehicle,
                    sealed_sha256=opened.digest,
                    update=str(manifest.id),
                    outcome="stored",
                )
                self.publish(told)

    def _answer(self, payload_: bytes, vehicle: str) -> None:
        if vehicle in self.keys:
            opened = envelope.open_sealed(payload_, Keyring(self.keys), fleet=FLEET, limit_bytes=4096)
            request = msg.decode(msg.Request, opened.body, sender=vehicle)
            self.publish(msg.Command(vehicle=vehicle, kind="assign", nonce=request.nonce, region=REGION))
            return
        if vehicle not in self.codes:
            return
        request = open_enrolment(payload_, self.codes, fleet=FLEET)
        self.keys[vehicle] = bytes.fromhex(request.public_key)
        key = SERVER_KEY.public.hex()
        proof = server_proof(
            self.codes[vehicle], fleet=FLEET, vehicle=vehicle, nonce=request.nonce, server_key=key
        )
        told = msg.Command(
            vehicle=vehicle, kind="enrolled", nonce=request.nonce, region=REGION, server_key=key, proof=proof
        )
        self.publish(told)


def update_id(sealed_: bytes) -> str:
    """The id of a sealed update."""
    header = envelope.peek(sealed_, limit_bytes=len(sealed_))
    return str(update.unpack(sealed_[header.body_start :], sender=header.sender)[0].id)


def config(folder: Path, vehicles: Mapping[str, Path], **changes: Any) -> str:
    """The JSON of a fleet's configuration."""
    told = {
        "fleet": FLEET,
        "task": "agent_world:TASK",
        "work_dir": str(folder),
        "vehicles": [{"vehicle": n, "data_dir": str(d), "enrolment_code": CODE} for n, d in vehicles.items()],
        "metrics_interval_s": 0.5,
        "tick_s": 0.02,
        "resend_min_s": 1.0,
        "resend_cap_s": 2.0,
        **changes,
    }
    return json.dumps(told)
