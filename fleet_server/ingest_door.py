"""What of the broker's deliveries is looked at: QoS 1, within its vehicle's rate. The rest is dropped and counted."""

from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

import structlog

from fedfleet.fleet_server.log_limit import LogLimit
from fedfleet.fleet_server.rate import Limiter
from fedfleet.link.port import Delivery
from fedfleet.protocol import topics
from fedfleet.protocol.errors import PeerError
from fedfleet.protocol.topics import Topic

__all__ = ["INTERNAL_SHARE", "Door", "Received", "party_of"]

log = structlog.get_logger()

Received: TypeAlias = tuple[Delivery, Topic | PeerError]
INTERNAL_SHARE = 0.1
"""Share of its burst that a message takes from its vehicle whose handling failed: such a one costs a whole batch."""


@dataclass
class Door:
    """Admits deliveries. ``dropped`` counts by reason what was turned away and is not in the store's counters yet.

    ``known`` are the vehicles that are told apart, by what they send and in the log; all others, who may be anyone
    and as many as they like, count as one.
    """

    limiter: Limiter
    lines: LogLimit[tuple[str, str]] = field(default_factory=LogLimit)
    dropped: Counter[str] = field(default_factory=Counter)

    def admit(self, deliveries: Iterable[Delivery], known: Container[str], now_s: float) -> list[Received]:
        """Return what is to be looked at, with its topic taken apart."""
        admitted, turned_away = [], Counter[tuple[str, str]]()
        for delivery in deliveries:
            topic = _topic(delivery)
            who = party_of(topic, known)
            if delivery.qos == 0:
                turned_away[who, "qos-0"] += 1
            elif self.limiter.admits(who, now_s, size_bytes=len(delivery.payload)):
                admitted.append((delivery, topic))
            else:
                turned_away[who, "rate"] += 1
        for (who, reason), number in turned_away.items():
            self.turn_away(who, reason, number, now_s=now_s)
        return admitted

    def refund(self, admitted: Iterable[Received], known: Container[str]) -> None:
        """Take back that these were admitted: they could not be stored, and will be given again."""
        for delivery, topic in admitted:
            self.limiter.refund(party_of(topic, known), size_bytes=len(delivery.payload))

    def turn_away(self, who: str, reason: str, number: int, *, now_s: float) -> None:
        """Count messages of one vehicle that were dropped unread."""
        self.dropped[f"dropped:{reason}"] += number
        if self.lines.admits((who, reason), now_s, times=number):
            log.warning(
                "messages dropped unread", vehicle=who or "(not enrolled)", reason=reason, messages=number
            )

    def charge(self, who: str, now_s: float) -> None:
        """Make a vehicle pay for a message whose handling failed."""
        self.limiter.charge(who, now_s, share=INTERNAL_SHARE)

    def tell_rest(self, now_s: float) -> None:
        """Write a line for what was left out of the log in minutes that are over."""
        for (who, reason), left_out in self.lines.ended(now_s):
            log.warning("and again", vehicle=who or "(not enrolled)", reason=reason, times=left_out)


def party_of(topic: Topic | PeerError, known: Container[str]) -> str:
    """Return the vehicle that a topic belongs to; empty for all that are not known."""
    return topic.vehicle if isinstance(topic, Topic) and topic.vehicle in known else ""


def _topic(delivery: Delivery) -> Topic | PeerError:
    try:
        return topics.parse(delivery.topic)
    except PeerError as error:
        return error
