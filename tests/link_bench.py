"""One broker and its clients under the contract tests: in memory, Mosquitto or NATS, with the same few verbs."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

import pytest

from fedfleet.link import embedded
from fedfleet.link.inbox import Inbox
from fedfleet.link.live import LiveLink
from fedfleet.link.memory import MemoryBroker, MemoryLink
from fedfleet.link.options import Backoff, Options
from fedfleet.link.paho import Loop
from fedfleet.link.port import Connected, Delivery, Event, Link, Published, Will

E = TypeVar("E", bound=Event)
PATIENCE_S = 20.0
#: Every client says that it is the server: the contract is about the broker's queues, not its ACL.
EVERYONE = Options(username=embedded.SERVER_USER, backoff=Backoff(cap_s=0.5))


class Party:
    """A client and what it has heard."""

    def __init__(
        self, link: Link, inbox: Inbox[Event], *, pump: Callable[[], object], patience_s: float
    ) -> None:
        self.link, self._inbox, self._pump, self._patience_s = link, inbox, pump, patience_s
        self.kept: list[Event] = []

    def next(self, kind: type[E]) -> E:
        """The next event of a kind; others are kept for later."""
        for position, event in enumerate(self.kept):
            if isinstance(event, kind):
                del self.kept[position]
                return event
        while True:
            self._pump()
            heard = self._inbox.get(self._patience_s)
            if heard is None:
                pytest.fail(f"no {kind.__name__} came; kept are {[type(e).__name__ for e in self.kept]}")
            if isinstance(heard, kind):
                return heard
            self.kept.append(heard)

    def connected(self) -> Connected:
        return self.next(Connected)

    def receive(self, count: int = 1, *, ack: bool = True) -> list[Delivery]:
        deliveries = []
        for _ in range(count):
            deliveries.append(self.next(Delivery))
            if ack:
                self.link.ack(deliveries[-1])
        return deliveries

    def send(self, topic: str, payload: bytes = b"x", *, qos: int = 1, retain: bool = False) -> None:
        """Publish, and wait until the broker has it."""
        ticket = self.link.publish(topic, payload, qos=qos, retain=retain)
        while self.next(Published).ticket != ticket:
            pass
        if retain:  # NATS acknowledges a moment before new subscribers can see it, but before our next packet
            self.settled()

    def listen(self, *filters: str) -> None:
        """Subscribe, and wait until that is in force: what follows on the same connection is answered."""
        for topic_filter in filters:
            self.link.subscribe(topic_filter)
        self.send("fl/v1/t/fence")

    def settled(self) -> None:
        """Wait until all that this client said before has been handled by the broker."""
        self.send("fl/v1/t/fence")


class Bench(Protocol):
    def join(self, client_id: str, *, will: Will | None = None) -> Party: ...
    def crash(self, party: Party) -> None: ...
    def stop(self, *, lose: bool = False) -> None: ...
    def start(self) -> None: ...
    def end(self) -> None: ...


class MemoryBench:
    def __init__(self) -> None:
        self.broker = MemoryBroker(seed=1)

    def join(self, client_id: str, *, will: Will | None = None) -> Party:
        inbox: Inbox[Event] = Inbox(10_000)
        link = self.broker.connect(client_id, inbox.put, will=will)
        return Party(link, inbox, pump=self.broker.pump, patience_s=0.0)

    def crash(self, party: Party) -> None:
        assert isinstance(party.link, MemoryLink)
        self.broker.kill(party.link.client_id)

    def stop(self, *, lose: bool = False) -> None:
        self.broker.stop(lose=lose)

    def start(self) -> None:
        self.broker.start()

    def end(self) -> None:
        pass


class RealBench:
    def __init__(self, data_dir: Path, kind: embedded.Kind) -> None:
        self.broker = embedded.start(data_dir, kind=kind)
        self.loop = Loop().start()

    def join(self, client_id: str, *, will: Will | None = None) -> Party:
        inbox: Inbox[Event] = Inbox(10_000)
        link = self.loop.connect(
            self.broker.host,
            self.broker.port,
            client_id=client_id,
            sink=inbox.put,
            will=will,
            options=EVERYONE,
        )
        return Party(link, inbox, pump=lambda: None, patience_s=PATIENCE_S)

    def crash(self, party: Party) -> None:
        assert isinstance(party.link, LiveLink)
        party.link.leave(goodbye=False)
        assert party.link.gone.wait(PATIENCE_S)

    def stop(self, *, lose: bool = False) -> None:
        if not lose:
            self.broker.stop()
            return
        self.broker.kill()
        for path in (self.broker.data_dir / "mosquitto.db", self.broker.data_dir / "jetstream"):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def start(self) -> None:
        self.broker.restart()

    def end(self) -> None:
        self.loop.stop()
        self.broker.stop()
