"""A server of the tests' own that tells all kinds of fates, in all kinds of ways, of one vehicle's updates."""

import random
import time
from collections.abc import Mapping
from typing import Any

import agent_world as aw

from fedfleet.link.port import Delivery
from fedfleet.protocol import envelope, topics, update
from fedfleet.protocol import messages as msg
from fedfleet.protocol.errors import PeerError
from fedfleet.protocol.signing import Keyring

__all__ = ["VEHICLE", "Judge"]

VEHICLE = "v01"
FATES: tuple[tuple[str, float], ...] = (
    ("folded", 4),
    ("returned", 3),
    ("dropped", 1),
    ("carried", 1),
    ("late", 1),
)


class Judge(aw.Server):
    """Publishes a model and a plan for each round, and decides by lot what becomes of an update, and how it tells.

    It may be deaf to the first copies of an update. What it decided it tells again to whoever sends again.
    """

    def __init__(self, connect: Any, rng: random.Random) -> None:
        super().__init__(connect, codes={VEHICLE: aw.CODE})
        self.rng = rng
        self.round = self.number = self.deaf = 0
        self.copies_heard: list[str] = []
        self.seen: dict[str, set[str]] = {}
        self.first: dict[str, bytes] = {}
        self.fates: dict[str, str] = {}
        self.rounds: dict[str, int] = {}
        self.settled: dict[int, dict[str, str]] = {}

    def open(self, round_: int, training: Mapping[str, int]) -> None:
        """Publish the next version, its release and the round's plan."""
        self.round, self.deaf = round_, self.rng.choice((0, 0, 1, 2))
        for blob in aw.blobs_of(round_ - 1):
            self.publish_blob(blob)
        self.publish(aw.pointer(round_ - 1))
        self.release(round_ - 1)
        self.publish(aw.plan(round_, round_ - 1, opened_at_s=time.time() - 1, training=training))

    def release(self, version: int) -> None:
        """Release a version, perhaps one that was released before."""
        self.number += 1
        self.publish(aw.release(self.number, version))

    def hears(self, sealed: bytes) -> None:
        """Take one copy of an update."""
        opened = envelope.open_sealed(sealed, Keyring(self.keys), fleet=aw.FLEET, limit_bytes=4_000_000)
        manifest, _ = update.unpack(opened.body, sender=opened.sender)
        name = str(manifest.id)
        self.copies_heard.append(name)
        self.seen.setdefault(name, set()).add(opened.digest)
        self.first.setdefault(name, sealed)
        self.rounds[name] = manifest.round
        if name not in self.fates:
            if self.deaf > 0:
                self.deaf -= 1
                return
            self.fates[name] = self.rng.choices([f for f, _ in FATES], [w for _, w in FATES])[0]
        told = {"outcome": "stored", "reason": "", "fate": self.settled.get(manifest.round, {}).get(name)}
        if self.fates[name] == "late":
            told = {"outcome": "refused", "reason": "late", "fate": None}
        self.publish(msg.Receipt(vehicle=VEHICLE, sealed_sha256=opened.digest, update=name, **told))  # type: ignore[arg-type]

    def settle(self) -> None:
        """Tell the fates of the round that is over; of what was carried in the one after it."""
        told = self.settled.setdefault(self.round, {})
        for name, fate in self.fates.items():
            if self.rounds[name] == self.round and fate != "late":
                told[name] = fate
            elif fate == "carried":
                told[name] = self.fates[name] = self.settled[self.rounds[name]][name] = "folded"
        self.publish(aw.settlement(self.round, told))  # type: ignore[arg-type]

    def turn(self, timeout_s: float = 0.0) -> None:
        """Take what has come, waiting for something at most so long."""
        for event in self.inbox.drain(1000, timeout_s):
            if isinstance(event, Delivery):
                self._take(event)
                self.link.ack(event)

    def _answer(self, payload_: bytes, vehicle: str) -> None:
        known = self.keys.pop(vehicle, None)
        try:
            super()._answer(payload_, vehicle)  # who was killed before it knew asks with its code again
        except PeerError:
            self.keys[vehicle] = known or b""
            super()._answer(payload_, vehicle)

    def _take(self, event: Delivery) -> None:
        if topics.parse(event.topic).kind == "update":
            self.hears(event.payload)
        else:
            super()._take(event)
