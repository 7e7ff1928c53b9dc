"""Load for the ingest: vehicles' updates, made before, from one thin MQTT client that also hears the receipts.

Only what MQTT 3.1.1 needs to publish at QoS 1 and to hear, over one socket: a client library would cost more than
the server that is measured.
"""

import select
import socket
import struct
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from server_world import FLEET, key_of

from fedfleet.codec import payload
from fedfleet.codec.settings import Settings
from fedfleet.link import embedded
from fedfleet.protocol import chunks, envelope, topics, update
from fedfleet.protocol.envelope import Kind
from fedfleet.protocol.ids import UpdateId
from fedfleet.protocol.messages import Plan

__all__ = ["Client", "Load", "Message", "drive", "messages", "names"]

READ_BYTES = 1 << 18
PATIENCE_S = 60.0
BODIES = 8
EPOCH = 7


@dataclass(frozen=True)
class Load:
    """Updates of models with so many parameters, encoded so; ``rate`` per second, 0: as fast as receipts come.

    ``window`` updates are on their way at once. A large update goes in pieces, as a vehicle sends it.
    """

    parameters: int
    density: float
    value: str
    updates: int
    vehicles: int
    rate: float = 0.0
    window: int = 600
    index: str = "rice"

    def told(self) -> dict[str, object]:
        """What differs from the defaults: an older server's process knows these fields too."""
        return {each.name: now for each in fields(self) if (now := getattr(self, each.name)) != each.default}


@dataclass(frozen=True)
class Message:
    """One update: its publishes, each with the place of the packet id in it, and the topic of its receipt."""

    packets: tuple[tuple[bytearray, int], ...]
    receipt_topic: bytes


def names(count: int) -> list[str]:
    """The vehicles."""
    return [f"v-{number}" for number in range(count)]


def messages(load: Load, plan: Plan) -> tuple[list[Message], int]:
    """Seal all updates; also return the size of one in bytes."""
    rng = np.random.default_rng(1)
    settings = Settings(load.index, load.value, load.density)
    deltas = (rng.normal(size=load.parameters).astype(np.float32) for _ in range(BODIES))
    bodies = [payload.encode(delta, settings, steps=5, examples=10) for delta in deltas]
    found, size, fleet = [], 0, names(load.vehicles)
    for number in range(load.updates):
        name = fleet[number % load.vehicles]
        id_ = UpdateId(name, EPOCH, number // load.vehicles)
        manifest = update.Manifest(
            id_, plan.task, plan.region, round=plan.round, base_version=plan.base_version
        )
        body = update.pack(manifest, bodies[number % BODIES])
        sealed = envelope.seal(body, key_of(name), kind=Kind.UPDATE, sender=name, fleet=FLEET)
        packets = []
        for piece, frame in enumerate(chunks.split(sealed)):
            topic = topics.update(FLEET, name, plan.task, round_=plan.round, number=piece).encode()
            head = struct.pack(">H", len(topic)) + topic
            packet = bytearray(b"\x32" + _length(len(head) + 2 + len(frame)) + head + b"\x00\x00" + frame)
            packets.append((packet, len(packet) - len(frame) - 2))
        found.append(Message(tuple(packets), topics.receipt(FLEET, name).encode()))
        size = len(sealed)
    return found, size


def _length(size: int) -> bytes:
    out = bytearray()
    while True:
        size, low = divmod(size, 128)
        out.append(low | (128 if size else 0))
        if not size:
            return bytes(out)


@dataclass
class Client:
    """One connection that publishes and hears receipts. ``latencies`` are seconds from the one to the other."""

    host: str
    port: int
    latencies: list[float] = field(default_factory=list)
    received: int = 0
    _id: int = 1
    _buffer: bytearray = field(default_factory=bytearray)
    _acks: bytearray = field(default_factory=bytearray)
    _sent: dict[bytes, deque[float]] = field(default_factory=lambda: defaultdict(deque))

    def __post_init__(self) -> None:
        """Connect and subscribe to all receipts."""
        self.socket = socket.create_connection((self.host, self.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        name = embedded.SERVER_USER.encode()
        words = b"\x00\x04MQTT\x04\x82\x00\x00" + b"\x00\x06loader" + struct.pack(">H", len(name)) + name
        self.socket.sendall(b"\x10" + _length(len(words)) + words)
        topic = f"fl/v1/{FLEET}/v/+/+/receipt".encode()
        words = b"\x00\x01" + struct.pack(">H", len(topic)) + topic + b"\x01"
        self.socket.sendall(b"\x82" + _length(len(words)) + words)
        answers = b""
        while len(answers) < 9:
            answers += self.socket.recv(64)
        if answers[3] or answers[-1] > 1:
            raise RuntimeError(f"the broker refuses the load: {answers.hex()}")
        self.socket.setblocking(False)

    def send(self, message: Message) -> None:
        """Publish all of an update, each part under the next packet id."""
        for packet, id_at in message.packets:
            struct.pack_into(">H", packet, id_at, self._id)
            self._id = self._id % 65_535 + 1
            self.flush()
            self._write(packet)
        self._sent[message.receipt_topic].append(time.perf_counter())

    def flush(self) -> None:
        """Send the acknowledgements that are due; never in the middle of another packet."""
        acks, self._acks = self._acks, bytearray()
        self._write(acks)

    def _write(self, data: bytes | bytearray) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[self.socket.send(view) :]
            except BlockingIOError:
                self.read(0.001)

    def read(self, timeout_s: float) -> None:
        """Take what has come: receipts are timed, their acknowledgements wait for `flush`."""
        if not select.select([self.socket], [], [], timeout_s)[0]:
            return
        data = self.socket.recv(READ_BYTES)
        if not data:
            raise ConnectionError("the broker ended the load's connection")
        now = time.perf_counter()
        self._buffer += data
        at, buffer = 0, self._buffer
        while (found := _packet(buffer, at)) is not None:
            start, end = found
            if buffer[at] >> 4 == 3:
                size = int.from_bytes(buffer[start : start + 2], "big")
                topic = bytes(buffer[start + 2 : start + 2 + size])
                self._acks += b"\x40\x02" + buffer[start + 2 + size : start + 4 + size]
                self.latencies.append(now - self._sent[topic].popleft())
                self.received += 1
            at = end
        del buffer[:at]


def _packet(buffer: bytearray, at: int) -> tuple[int, int] | None:
    """The beginning and end of the body of the packet at this place; None while it is not complete."""
    size, shift, place = 0, 0, at + 1
    while place < len(buffer):
        size |= (buffer[place] & 127) << shift
        place += 1
        if buffer[place - 1] < 128:
            return (place, place + size) if place + size <= len(buffer) else None
        shift += 7
    return None


def drive(client: Client, sending: Sequence[Message], load: Load) -> float:
    """Send everything and wait for all receipts; return the seconds from the first send to the last receipt."""
    begun, sent, start = time.perf_counter(), 0, client.received
    while client.received - start < len(sending):
        now = time.perf_counter()
        if now - begun > PATIENCE_S:
            raise TimeoutError(f"{client.received - start} of {len(sending)} receipts came")
        due = int((now - begun) * load.rate) if load.rate else client.received - start + load.window
        while sent < min(due, len(sending)):
            client.send(sending[sent])
            sent += 1
            if sent % 16 == 0:
                client.read(0.0)
        client.read(0.001)
        client.flush()
    return time.perf_counter() - begun
