"""Keeps the broker's retained topics as the store wants them: chunks first, what names them once they are acknowledged.

A reconciler: it compares what is wanted with what the broker has taken over, and publishes the difference. After
the broker forgot everything, or the server was restarted, the difference is everything.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256

import structlog

from fedfleet.fleet_server.announcements import Announcement, blob_topics
from fedfleet.link.port import Link, LinkFull, TooLarge
from fedfleet.protocol.chunks import blob_piece

__all__ = ["Publisher"]

log = structlog.get_logger()


@dataclass
class Publisher:
    """What is wanted, what is on its way, what the broker has. ``load`` returns the bytes of a blob by its digest.

    ``cleared`` are the topics whose clearing the broker has taken over since it was last emptied by the caller.
    """

    link: Link
    fleet: str
    load: Callable[[str], bytes]
    cleared: list[str] = field(default_factory=list)
    _wanted: Announcement = field(default_factory=Announcement)
    _digests: dict[str, str] = field(default_factory=dict)  # topic -> digest of the wanted message
    _confirmed: dict[str, str] = field(default_factory=dict)  # topic -> digest of what the broker has
    _flying: dict[int, tuple[str, str]] = field(default_factory=dict)  # ticket -> topic, digest
    _told: set[str] = field(default_factory=set)  # topics whose message is too large for the broker

    @property
    def settled(self) -> bool:
        """Whether the broker has all that is wanted."""
        return not self._flying and not self._missing_blobs() and not self._missing_messages()

    def want(self, announcement: Announcement) -> None:
        """Replace what is wanted."""
        self._wanted = announcement
        self._digests = {topic: sha256(data).hexdigest() for topic, data in announcement.messages.items()}

    def reset(self) -> None:
        """Begin again from nothing: the broker may have forgotten what it had."""
        self._confirmed.clear()
        self._flying.clear()
        self._told.clear()

    def published(self, ticket: int) -> None:
        """Note that the broker has taken a message over."""
        if (found := self._flying.pop(ticket, None)) is None:
            return
        topic, digest = found
        if digest:
            self._confirmed[topic] = digest
        else:
            self._confirmed.pop(topic, None)
            self.cleared.append(topic)

    def pump(self) -> None:
        """Publish what the link has room for, in order: chunks, messages, clearings."""
        try:
            for digest in self._missing_blobs():
                self._send_blob(digest)
            if self._missing_blobs():
                return  # on their way: what names them waits for their acknowledgement
            for topic in self._missing_messages():
                self._send_message(topic)
            if self._told.issuperset(self._missing_messages()):
                self._clear()
        except LinkFull:
            return  # the rest at the next call, after some were acknowledged

    def _send(self, topic: str, payload: bytes, digest: str) -> None:
        if (topic, digest) not in self._flying.values():
            ticket = self.link.publish(topic, payload, qos=1, retain=True)
            self._flying[ticket] = (topic, digest)

    def _send_message(self, topic: str) -> None:
        """Publish a message; one that the broker is too small for is told once, and the others go on."""
        try:
            self._send(topic, self._wanted.messages[topic], self._digests[topic])
        except TooLarge as error:
            if topic not in self._told:
                log.error("message too large for the broker", topic=topic, error=str(error))  # noqa: TRY400
            self._told.add(topic)

    def _missing_blobs(self) -> list[str]:
        return [
            digest
            for digest, blob in self._wanted.blobs.items()
            if any(self._confirmed.get(topic) != digest for topic in blob_topics(self.fleet, blob))
        ]

    def _send_blob(self, digest: str) -> None:
        flying = {topic for topic, _ in self._flying.values()}
        blob = self._wanted.blobs[digest]
        missing = {
            number: topic
            for number, topic in enumerate(blob_topics(self.fleet, blob))
            if self._confirmed.get(topic) != digest and topic not in flying
        }
        data = self.load(digest) if missing else b""
        piece = blob_piece(blob.size_bytes, blob.chunks)
        for number, topic in missing.items():
            self._send(topic, data[number * piece : (number + 1) * piece], digest)

    def _missing_messages(self) -> list[str]:
        return [topic for topic, digest in self._digests.items() if self._confirmed.get(topic) != digest]

    def _clear(self) -> None:
        done = set(self.cleared)
        for topic in self._wanted.clear:
            if topic not in done:
                self._send(topic, b"", "")
