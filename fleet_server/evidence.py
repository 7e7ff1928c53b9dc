"""What shows a running server that it has published more than its store knows.

Two kinds count. A message that bears the server's own signature proves it: such stay retained at the broker. What
vehicles say of themselves proves nothing alone, so one that lies is told to the operator and no more; but when most
of those online say so, the store went back in time.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median_low

from fedfleet.fleet_server.requests import Party
from fedfleet.fleet_server.store_published import Published
from fedfleet.protocol import envelope, messages, topics
from fedfleet.protocol.envelope import Kind
from fedfleet.protocol.errors import PeerError
from fedfleet.protocol.ids import SERVER
from fedfleet.protocol.messages import ModelPointer, Plan, Release
from fedfleet.protocol.signing import Keyring

__all__ = ["Claim", "believed", "filters", "is_own", "proven"]

LIMIT_BYTES = 300_000
FEWEST = 2
ENROLLED_SHARE = 0.1


@dataclass(frozen=True)
class Claim:
    """What an online vehicle says it has seen: the version that drives, the round that it trains for."""

    vehicle: str
    version: int
    round: int


def filters(fleet: str, regions: Iterable[str], task: str) -> list[str]:
    """Return the topics of the server's own retained messages that tell its numbers."""
    kinds = (topics.round_plan, topics.model, topics.release)
    return [kind(fleet, region, task) for region in regions for kind in kinds]


def is_own(topic: str, fleet: str) -> bool:
    """Tell whether a topic is one on which only the server speaks."""
    return topic.startswith(f"fl/v1/{fleet}/r/")


def proven(sealed: bytes, party: Party) -> Published:
    """Return the numbers in a message with the server's own signature; none for any other message."""
    ring = Keyring({SERVER: party.key.public})
    try:
        opened = envelope.open_sealed(sealed, ring, fleet=party.fleet, limit_bytes=LIMIT_BYTES)
        return _numbers(opened, party.task)
    except PeerError:
        return Published()


def _numbers(opened: envelope.Opened, task: str) -> Published:
    match opened.kind:
        case Kind.PLAN:
            plan = messages.decode(Plan, opened.body, sender=SERVER)
            told, numbers = plan.task, Published(round=plan.round, version=plan.base_version)
        case Kind.MODEL:
            pointer = messages.decode(ModelPointer, opened.body, sender=SERVER)
            told, numbers = pointer.task, Published(version=pointer.version)
        case Kind.RELEASE:
            release = messages.decode(Release, opened.body, sender=SERVER)
            told, numbers = release.task, Published(version=release.model.version, release=release.number)
        case _:
            return Published()
    return numbers if told == task else Published()


def believed(ahead: Sequence[Claim], *, online: int, enrolled: int) -> Published:
    """Return what vehicles that are ahead of the store say, when there are enough of them; else nothing.

    Enough are more than half of those online, a tenth of those enrolled, and two (one in a fleet of one). What they
    say is the middle of their words, so that one of them cannot make the numbers run out.
    """
    fewest = max(min(FEWEST, enrolled), ENROLLED_SHARE * enrolled)
    if not ahead or 2 * len(ahead) <= online or len(ahead) < fewest:
        return Published()
    return Published(
        round=median_low(one.round for one in ahead), version=median_low(one.version for one in ahead)
    )
