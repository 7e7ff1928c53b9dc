"""What a vehicle says: sealed with its key, published, counted in payload bytes."""

from fedfleet.link.port import Link, LinkFull, Will
from fedfleet.protocol import chunks, topics
from fedfleet.protocol import messages as msg
from fedfleet.protocol.envelope import Kind, seal
from fedfleet.protocol.signing import SigningKey
from fedfleet.vehicle_agent.entries import OutboxEntry

__all__ = ["Uplink", "will"]


def will(status: msg.Status, key: SigningKey, *, fleet: str) -> Will:
    """Return what the broker says in the vehicle's name when the vehicle is gone without a goodbye."""
    sealed = seal(msg.encode(status), key, kind=Kind.STATUS, sender=status.vehicle, fleet=fleet)
    return Will(topics.status(fleet, status.vehicle), sealed, 1, retain=True)


class Uplink:
    """The way up of one vehicle. What the link cannot take now is kept (status) or told by False (the rest)."""

    def __init__(self, link: Link, key: SigningKey, *, fleet: str, vehicle: str) -> None:
        self._link, self._key, self._fleet, self._vehicle = link, key, fleet, vehicle
        self._owed: msg.Status | None = None
        self.bytes_up = 0

    def status(self, status: msg.Status) -> bool:
        """Publish the retained status; when the link is full, the newest one follows with ``retry``."""
        done = self._publish(topics.status(self._fleet, self._vehicle), status, Kind.STATUS, retain=True)
        self._owed = None if done else status
        return done

    def farewell(self, status: msg.Status) -> int | None:
        """Publish the last status; returns its ticket, None when the link cannot take it."""
        body, topic = msg.encode(status), topics.status(self._fleet, self._vehicle)
        sealed = seal(body, self._key, kind=Kind.STATUS, sender=self._vehicle, fleet=self._fleet)
        try:
            return self._link.publish(topic, sealed, qos=1, retain=True)
        except LinkFull:
            return None

    def retry(self) -> None:
        """Publish the status that the link could not take."""
        if self._owed is not None:
            self.status(self._owed)

    def metrics(self, metrics: msg.Metrics) -> bool:
        """Publish the metrics; the next ones make up for lost ones."""
        return self._publish(topics.metrics(self._fleet, self._vehicle), metrics, Kind.METRICS)

    def request(self, request: msg.Request) -> bool:
        """Publish a request."""
        return self._publish(topics.request(self._fleet, self._vehicle), request, Kind.REQUEST)

    def update(self, entry: OutboxEntry, task: str) -> bool:
        """Publish a sealed update, in chunks when it is large; False: some of it is missing, send it again later."""
        piece = chunks.piece_for(self._link.max_payload_bytes)
        for number, frame in enumerate(chunks.split(entry.sealed, chunk_bytes=piece)):
            topic = topics.update(self._fleet, self._vehicle, task, round_=entry.round, number=number)
            if not self._send(topic, frame, retain=False):
                return False
        return True

    def _publish(self, topic: str, message: msg.Message, kind: Kind, *, retain: bool = False) -> bool:
        body = msg.encode(message)
        sealed = seal(body, self._key, kind=kind, sender=self._vehicle, fleet=self._fleet)
        return self._send(topic, sealed, retain=retain)

    def _send(self, topic: str, payload: bytes, *, retain: bool) -> bool:
        try:
            self._link.publish(topic, payload, qos=1, retain=retain)
        except LinkFull:
            return False
        self.bytes_up += len(payload)
        return True
