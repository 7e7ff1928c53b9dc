"""A small world for tests of the server: a numpy task, its model file, scripted vehicles that never give up.

The task is linear regression, so its model file is made here, without torch. `TASK` can be named in a
configuration as `server_world:TASK`.
"""

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from fedfleet.codec import payload
from fedfleet.codec.settings import Settings
from fedfleet.fleet_server.config import ServerConfig
from fedfleet.link.port import Connected, Delivery, Event, Link, LinkFull
from fedfleet.models import prepared
from fedfleet.models.layout import Layout
from fedfleet.models.task import Drive, Floats, Frames, Index, Metric, Samples, Specification, Sums
from fedfleet.protocol import chunks, envelope, messages, topics, update
from fedfleet.protocol.envelope import Kind
from fedfleet.protocol.ids import SERVER, UpdateId
from fedfleet.protocol.messages import Plan, Receipt, Settlement, Status
from fedfleet.protocol.signing import Keyring, SigningKey

FLEET = "test-fleet"
INPUTS, OUTPUTS = 8, 3
EPOCH = 0xABCDEF0123456789


SPECIFICATION = Specification("x", (INPUTS,), "y", (OUTPUTS,))


@dataclass(frozen=True)
class LinearTask:
    """y = W x + b; the error is the mean distance between output and target."""

    name: str = "linear_test"
    version: int = 1
    network: str = "nowhere:network"
    loss: str = "nowhere:loss"
    specification: Specification = field(default=SPECIFICATION)
    metrics: tuple[Metric, ...] = (Metric("distance", "m", "lower"),)

    def index(self, folder: Path) -> Index:
        return Index((Drive("north", "d0", 1, 1.0),), {str(folder): 0})

    def samples(self, folder: Path, drives: Sequence[str]) -> Samples:
        raise NotImplementedError(f"{folder} {drives}")

    def frames(self, folder: Path, drives: Sequence[str]) -> Frames:
        raise NotImplementedError(f"{folder} {drives}")

    def score(self, outputs: Floats, samples: Samples) -> Sums:
        found = np.linalg.norm(outputs - samples.targets, axis=1)[samples.judged]
        return {"distance": (float(found.sum()), int(found.size))}

    def score_all(self, outputs: Floats, samples: Samples) -> Sums:
        return self.score(outputs, samples)

    def baseline(self, inputs: Floats) -> Floats:
        return np.zeros((len(inputs), OUTPUTS), np.float32)


TASK = LinearTask()
SIZE = INPUTS * OUTPUTS + OUTPUTS
TRUTH = np.random.default_rng(7).normal(size=SIZE).astype(np.float32)


def write_export(folder: Path) -> None:
    """Write what the export process would: the model file with weights zeroed, layout, first vector."""
    marks = [np.full(INPUTS * OUTPUTS, 1234.5, np.float32), np.full(OUTPUTS, -4321.5, np.float32)]
    weights = [
        helper.make_tensor("w", TensorProto.FLOAT, (INPUTS, OUTPUTS), marks[0].tobytes(), raw=True),
        helper.make_tensor("b", TensorProto.FLOAT, (OUTPUTS,), marks[1].tobytes(), raw=True),
    ]
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", INPUTS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", OUTPUTS])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    file = model.SerializeToString()
    places = tuple(file.index(mark.tobytes()) for mark in marks)
    for mark in marks:
        file = file.replace(mark.tobytes(), bytes(mark.nbytes))
    layout = Layout(
        task=TASK.name,
        task_version=TASK.version,
        names=("w", "b"),
        shapes=((INPUTS, OUTPUTS), (OUTPUTS,)),
        offsets=(0, INPUTS * OUTPUTS),
        byte_offsets=places,
        file_bytes=len(file),
    )
    folder.mkdir(parents=True)
    (folder / "graph.onnx").write_bytes(file)
    (folder / "layout.json").write_bytes(layout.to_json())
    np.save(folder / "initial.npy", np.zeros(SIZE, np.float32))


def answer(inputs: Floats) -> Floats:
    """The outputs of the true model."""
    found: Floats = inputs @ TRUTH[: INPUTS * OUTPUTS].reshape(INPUTS, OUTPUTS) + TRUTH[INPUTS * OUTPUTS :]
    return found


def write_validation(folder: Path, regions: Iterable[str], *, count: int = 20) -> None:
    """Write a prepared validation folder for each region."""
    for number, region in enumerate(regions):
        inputs = np.random.default_rng(number).normal(size=(count, INPUTS)).astype(np.float32)
        samples = Samples(inputs, answer(inputs), np.ones(count, np.bool_))
        meta = prepared.Meta(
            task=TASK.name,
            task_version=TASK.version,
            drives=(f"{region}/d0",),
            parts=("validation",),
            counts={"validation_samples": count, "validation_judged": count},
            problems={},
        )
        (folder / region).parent.mkdir(parents=True, exist_ok=True)
        prepared.write(folder / region, meta, samples={"validation": samples})


REGIONS: Mapping[str, tuple[str, ...]] = {"north": ("n-0", "n-1", "n-2"), "south": ("s-0", "s-1")}


def configuration(
    folder: Path, *, regions: Mapping[str, tuple[str, ...]] = REGIONS, **changes: object
) -> ServerConfig:
    """Make the files that a server needs in `folder`, and its configuration: all vehicles contribute, three rounds."""
    if not (folder / "server" / "export").exists():
        write_export(folder / "server" / "export")
        write_validation(folder / "validation", regions)
    content: dict[str, object] = {
        "fleet": FLEET,
        "regions": tuple(regions),
        "data_dir": folder / "server",
        "validation_dir": folder / "validation",
        "task": "server_world:TASK",
        "rounds": {
            "total": 3,
            "quorum": 1,
            "deadline_s": 60.0,
            "lease_s": 10.0,
            "contributors": {name: list(vehicles) for name, vehicles in regions.items()},
        },
        "strategy": {"server_learning_rate": 1.0},
        "downlink": {"value": "int8", "density": 0.5},
        "codec": {"value": "int8", "density": 0.5},
        "gate": {"tolerance": 1.0},
        "release_policy": "every-accepted",
        "enrolment": [
            {"vehicle": name, "region": region, "code": code(name)}
            for region, vehicles in regions.items()
            for name in vehicles
        ],
    }
    return ServerConfig.model_validate(content | changes)


def dump(config: ServerConfig) -> str:
    """The configuration as JSON with its secrets, as a server process reads it."""
    content = json.loads(config.model_dump_json())
    for written, one in zip(content["enrolment"], config.enrolment, strict=True):
        written["code"] = one.code.get_secret_value()
    return json.dumps(content)


def code(vehicle: str) -> str:
    """The one-time code of a vehicle."""
    return f"one-time code of {vehicle}"


def key_of(name: str) -> SigningKey:
    """The signing key of a vehicle, or of a stranger."""
    return SigningKey(sha256(name.encode()).digest())


def delta_for(vehicle: str, plan: Plan) -> Floats:
    """The change a vehicle finds in a round: towards the truth, with noise; depends on the base to the last bit."""
    seed = sha256(f"{vehicle}:{plan.round}:{plan.onnx_sha256}".encode()).digest()
    noise = np.random.default_rng(list(seed)).normal(0, 0.05, SIZE)
    return (TRUTH * 0.15 + noise).astype(np.float32)


def sealed_update(vehicle: str, plan: Plan, *, key: SigningKey | None = None, **changes: object) -> bytes:
    """The vehicle's update for a plan; `changes` replace fields of its manifest."""
    fields: dict[str, object] = {
        "id": UpdateId(vehicle, EPOCH, plan.round),
        "task": plan.task,
        "region": plan.region,
        "round": plan.round,
        "base_version": plan.base_version,
    }
    manifest = update.Manifest(**(fields | changes))  # type: ignore[arg-type]
    settings = Settings(plan.codec.index, plan.codec.value, plan.codec.density)
    examples = 10 + sum(vehicle.encode()) % 7
    body = update.pack(
        manifest, payload.encode(delta_for(vehicle, plan), settings, steps=5, examples=examples)
    )
    return envelope.seal(body, key or key_of(vehicle), kind=Kind.UPDATE, sender=vehicle, fleet=FLEET)


_SENT: dict[str, str] = {}
"""Ids of what all scripted vehicles sent, by which settlements name it: no vehicle knows those of others."""


def by_id(settled: Settlement) -> Settlement:
    """The settlement as a person reads it, with the ids of the updates."""
    fates = {_SENT.get(key, key): fate for key, fate in settled.fates.items()}
    reasons = {_SENT.get(key, key): why for key, why in settled.reasons.items()}
    return settled.model_copy(update={"fates": fates, "reasons": reasons, "named_by": "id"})


@dataclass
class Vehicle:
    """A scripted vehicle: answers each plan once, and sends the same bytes again until they are stored."""

    name: str
    region: str
    task: str
    server_key: bytes
    link: Link = field(init=False)
    events: deque[Event] = field(default_factory=deque)
    outbox: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    answered: set[int] = field(default_factory=set)
    receipts: list[Receipt] = field(default_factory=list)
    settlements: dict[int, Settlement] = field(default_factory=dict)
    plans: dict[int, Plan] = field(default_factory=dict)
    session: int = 0
    is_mute: bool = False

    def seal(self, message: messages.Message, kind: Kind) -> bytes:
        return envelope.seal(
            messages.encode(message), key_of(self.name), kind=kind, sender=self.name, fleet=FLEET
        )

    def step(self) -> None:
        """Handle what came."""
        while self.events:
            match self.events.popleft():
                case Connected():
                    self._greet()
                case Delivery() as delivery:
                    self._receive(delivery)
                    self.link.ack(delivery)

    def resend(self) -> None:
        """Send again what has no receipt."""
        for topic, sealed in list(self.outbox.values()):
            self._send(topic, sealed)

    def _greet(self) -> None:
        self.link.subscribe(topics.receipt(FLEET, self.name))
        for topic_filter in topics.region_all(FLEET, self.region, self.task):
            self.link.subscribe(topic_filter)
        self.session += 1
        status = Status(vehicle=self.name, state="ONLINE", session=self.session, at_s=float(self.session))
        self.link.publish(topics.status(FLEET, self.name), self.seal(status, Kind.STATUS), retain=True)

    def _receive(self, delivery: Delivery) -> None:
        if not delivery.payload:
            return
        ring = Keyring({SERVER: self.server_key})
        opened = envelope.open_sealed(delivery.payload, ring, fleet=FLEET, limit_bytes=1_000_000)
        match opened.kind:
            case Kind.PLAN:
                plan = messages.decode(Plan, opened.body, sender=SERVER)
                self.plans[plan.round] = plan
                if plan.round not in self.answered and not self.is_mute:
                    self.reply(plan)
            case Kind.RECEIPT:
                receipt = messages.decode(Receipt, opened.body, sender=SERVER)
                self.receipts.append(receipt)
                if receipt.outcome == "stored":
                    self.outbox.pop(receipt.sealed_sha256, None)
            case Kind.SETTLEMENT:
                settled = messages.decode(Settlement, opened.body, sender=SERVER)
                self.settlements[settled.round] = by_id(settled)
            case _:
                pass

    def reply(self, plan: Plan) -> None:
        """Answer a plan, once."""
        self.answered.add(plan.round)
        self.offer(sealed_update(self.name, plan), plan.round)

    def offer(self, sealed: bytes, round_: int) -> None:
        """Put an update into the outbox and send it."""
        topic = topics.update(FLEET, self.name, self.task, round_=round_, number=0)
        header = envelope.peek(sealed, limit_bytes=len(sealed))
        manifest, _ = update.unpack(sealed[header.body_start :], sender=self.name)
        _SENT[messages.digest_key(sha256(sealed).hexdigest())] = str(manifest.id)
        self.outbox[sha256(sealed).hexdigest()] = (topic, sealed)
        self._send(topic, sealed)

    def _send(self, topic: str, sealed: bytes) -> None:
        try:
            for number, frame in enumerate(chunks.split(sealed)):
                self.link.publish(topic.rpartition("/")[0] + f"/{number}", frame)
        except LinkFull:
            return


def pace(condition: Callable[[], bool], act: Callable[[], None], *, timeout_s: float) -> bool:
    """Act again and again until the condition holds; False when it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        act()
        time.sleep(0.005)
    return True
