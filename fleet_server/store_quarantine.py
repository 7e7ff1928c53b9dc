"""Rows of the quarantine: messages that were refused, why, and their first bytes; bounded in number and bytes."""

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, Integer, Select, cast, func, select

from fedfleet.fleet_server.schema import quarantine

__all__ = ["HEAD_BYTES", "Quarantined", "find", "put_aside", "quarantined", "totals"]

HEAD_BYTES = 64_000
"""What is kept of one message at most: all of it, for an update of ordinary size."""


@dataclass(frozen=True)
class Quarantined:
    """A message that was refused: why, where it came, and its first bytes. ``number`` rises; 0 before it is kept."""

    at_s: float
    reason: str
    detail: str
    vehicle: str
    topic: str
    sha256: str
    size_bytes: int
    head: bytes
    number: int = 0


def put_aside(connection: Connection, refused: Iterable[Quarantined], *, keep: int, keep_bytes: int) -> None:
    """Keep refused messages: at most ``keep``, and at most ``keep_bytes`` of their first bytes.

    The newest of each vehicle stay: one that sends much rubbish pushes its own out, not that of others.
    """
    rows = [
        {
            "at_s": one.at_s,
            "reason": one.reason,
            "detail": _text(one.detail),
            "vehicle": one.vehicle,
            "topic": _text(one.topic),
            "sha256": one.sha256,
            "size_bytes": one.size_bytes,
            "head": one.head[:HEAD_BYTES],
        }
        for one in refused
    ]
    if not rows:
        return
    connection.execute(quarantine.insert(), rows)
    connection.execute(quarantine.delete().where(quarantine.c.number.in_(_over(keep, keep_bytes))))


def _over(keep: int, keep_bytes: int) -> Select[tuple[int]]:
    """Return those that there is no room for: the oldest of whoever has the most, so that nobody pushes others out."""
    newest_first = quarantine.c.number.desc()
    own = func.row_number().over(partition_by=quarantine.c.vehicle, order_by=newest_first)
    size = func.length(quarantine.c.head)
    ranked = select(quarantine.c.number, size.label("size"), own.label("own")).subquery()
    order = (ranked.c.own, ranked.c.number.desc())
    kept = select(
        ranked.c.number,
        func.row_number().over(order_by=order).label("place"),
        func.sum(ranked.c.size).over(order_by=order).label("bytes"),
    ).subquery()
    return select(kept.c.number).where((kept.c.place > keep) | (kept.c.bytes > keep_bytes))


def _text(text: str) -> str:
    """Return what every database takes as text: no NUL, no half of a surrogate pair, at most 300 characters."""
    return text[:300].encode("utf-8", "replace").decode().replace("\0", "\ufffd")


def quarantined(connection: Connection, *, limit: int, reason: str = "") -> list[Quarantined]:
    """Return the newest refused messages, the newest first; only those of one reason when it is given."""
    query = select(quarantine).order_by(quarantine.c.number.desc()).limit(limit)
    query = query.where(quarantine.c.reason == reason) if reason else query
    return [Quarantined(**row) for row in connection.execute(query).mappings()]


def find(connection: Connection, number: int) -> Quarantined | None:
    """Return one refused message by its number."""
    row = connection.execute(select(quarantine).where(quarantine.c.number == number)).mappings().one_or_none()
    return None if row is None else Quarantined(**row)


def totals(connection: Connection) -> tuple[int, int]:
    """Return how many messages are kept, and the bytes that are kept of them."""
    bytes_ = cast(func.coalesce(func.sum(func.length(quarantine.c.head)), 0), Integer)
    row = connection.execute(select(func.count(), bytes_).select_from(quarantine)).one()
    return int(row[0]), int(row[1])
