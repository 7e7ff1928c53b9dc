"""Bad messages for the demo, sent on purpose through the real broker: a corrupt update and a stranger's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedfleet.codec import payload
from fedfleet.codec.settings import Settings
from fedfleet.link.config import BrokerConfig
from fedfleet.link.inbox import Inbox
from fedfleet.link.options import options_for
from fedfleet.link.paho import Loop
from fedfleet.link.port import Event, Published
from fedfleet.models import task as tasks
from fedfleet.protocol import topics, update
from fedfleet.protocol.envelope import Kind, seal
from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.ids import UpdateId, task_id
from fedfleet.protocol.signing import SigningKey

__all__ = ["Target", "corrupt", "sealed_update", "send", "target"]

_PATIENCE_S = 10.0


@dataclass(frozen=True)
class Target:
    """The open round that the bad update pretends to serve."""

    fleet: str
    task: str
    region: str
    round: int
    base_version: int
    parameters: int


def target(fleet: str, row: Mapping[str, Any], snapshot: Mapping[str, Any]) -> Target:
    """Return what an update for an open round must name; ``row`` and ``snapshot`` are what ``status`` knows."""
    return Target(
        fleet,
        task_id(tasks.load(snapshot["task"]).name),  # a task of module:ATTRIBUTE has a name of its own
        row["region"],
        round=row["round"],
        base_version=snapshot["version"],
        parameters=snapshot["parameters"],
    )


def sealed_update(sender: str, key: SigningKey, target: Target) -> tuple[UpdateId, bytes]:
    """Return a well-formed, signed update of a few large values: it would do harm if it were folded."""
    harm = np.zeros(target.parameters, dtype=np.float32)
    harm[: max(1, target.parameters // 100)] = 1e3
    body = payload.encode(harm, Settings(density=0.01), steps=1, examples=1)
    name = UpdateId(sender, epoch=1, sequence=1)
    manifest = update.Manifest(
        name, target.task, target.region, round=target.round, base_version=target.base_version
    )
    return name, seal(update.pack(manifest, body), key, kind=Kind.UPDATE, sender=sender, fleet=target.fleet)


def corrupt(sealed: bytes) -> bytes:
    """Return the message with one bit of its body flipped, as a bad memory or a bad actor would."""
    return sealed[:-5] + bytes([sealed[-5] ^ 0x10]) + sealed[-4:]


def send(broker: BrokerConfig, sender: str, sealed: bytes, target: Target) -> None:
    """Publish a message as this client and wait until the broker has taken it; UsageError when it does not."""
    inbox: Inbox[Event] = Inbox(100)
    loop = Loop().start()
    try:
        link = loop.connect(
            broker.host, broker.port, client_id=sender, sink=inbox.put, options=options_for(broker)
        )
        ticket = link.publish(
            topics.update(target.fleet, sender, target.task, round_=target.round, number=0), sealed
        )
        for _ in range(100):
            event = inbox.get(_PATIENCE_S / 10)
            if isinstance(event, Published) and event.ticket == ticket:
                link.close()
                return
    finally:
        loop.stop()
    raise UsageError(f"the broker at {broker.host}:{broker.port} did not take a message of {sender}")
