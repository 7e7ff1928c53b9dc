"""Rows of rounds: one per round and region, its frozen members and its settlement."""

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, RowMapping, func, select

from fedfleet.fleet_server.rounds import State
from fedfleet.fleet_server.schema import clearing, member, round_, settlement
from fedfleet.fleet_server.store_updates import set_fates
from fedfleet.fleet_server.upsert import insert
from fedfleet.protocol.ids import UpdateId
from fedfleet.protocol.messages import Fate, Plan, Settlement, decode, encode

__all__ = [
    "Round",
    "add_round",
    "close",
    "current",
    "find",
    "live_settlements",
    "newest",
    "replan",
    "retire_settlements",
    "rounds",
    "set_state",
    "settle",
]

_NEWEST = (
    select(round_.c.region, func.max(round_.c.round).label("number")).group_by(round_.c.region).subquery()
)
_CURRENT = (
    select(round_)
    .join(_NEWEST, (round_.c.round == _NEWEST.c.number) & (round_.c.region == _NEWEST.c.region))
    .order_by(round_.c.region)
)


@dataclass(frozen=True)
class Round:
    """One region's round. ``target`` are the vehicles asked at opening, ``contributors`` the exact list, if any.

    ``announced_at_s`` is when the newest revision of the plan was made.
    """

    plan: Plan
    state: State
    target: frozenset[str]
    contributors: frozenset[str] | None
    announced_at_s: float
    closed_at_s: float | None = None
    reason: str = ""


def add_round(connection: Connection, one: Round) -> None:
    """Add a region's round, as it opens."""
    row = {
        "round": one.plan.round,
        "region": one.plan.region,
        "state": one.state,
        "plan": encode(one.plan),
        "target": json.dumps(sorted(one.target)),
        "contributors": None if one.contributors is None else json.dumps(sorted(one.contributors)),
        "announced_at_s": one.announced_at_s,
    }
    connection.execute(round_.insert(), row)


def current(connection: Connection) -> dict[str, Round]:
    """Return each region's newest round; empty before the first."""
    return {row["region"]: _round(row) for row in connection.execute(_CURRENT).mappings()}


def newest(connection: Connection) -> int:
    """Return the number of the newest round; -1 before the first."""
    found: int | None = connection.execute(select(func.max(round_.c.round))).scalar_one()
    return -1 if found is None else found


def rounds(connection: Connection, *, number: int | None = None) -> list[Round]:
    """Return the rounds of all regions, or those of one number, in order of round and region."""
    query = select(round_).order_by(round_.c.round, round_.c.region)
    rows = connection.execute(query if number is None else query.where(round_.c.round == number)).mappings()
    return [_round(row) for row in rows]


def find(connection: Connection, *, number: int, region: str) -> Round | None:
    """Return one region's round of this number."""
    query = select(round_).where(round_.c.round == number, round_.c.region == region)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else _round(row)


def _round(row: RowMapping) -> Round:
    listed = row["contributors"]
    return Round(
        plan=decode(Plan, row["plan"], sender="the store"),
        state=row["state"],
        target=frozenset(json.loads(str(row["target"]))),
        contributors=None if listed is None else frozenset(json.loads(str(listed))),
        announced_at_s=row["announced_at_s"],
        closed_at_s=row["closed_at_s"],
        reason=str(row["reason"]),
    )


def _where(connection: Connection, number: int, region: str, **values: object) -> None:
    mine = (round_.c.round == number) & (round_.c.region == region)
    connection.execute(round_.update().where(mine).values(**values))


def replan(connection: Connection, plan: Plan, *, now_s: float) -> None:
    """Record a new revision of an open round's plan."""
    _where(connection, plan.round, plan.region, plan=encode(plan), announced_at_s=now_s)


def set_state(connection: Connection, number: int, region: str, state: State) -> None:
    """Record the state of a region's round."""
    _where(connection, number, region, state=state)


def close(
    connection: Connection,
    one: Round,
    *,
    state: State,
    members: Collection[UpdateId],
    now_s: float,
    reason: str,
) -> None:
    """Record that a region's round no longer takes updates, why, and which updates are its members."""
    number, region = one.plan.round, one.plan.region
    _where(connection, number, region, state=state, closed_at_s=now_s, reason=reason)
    rows = [{"round": number, "region": region, "update_id": str(id_)} for id_ in members]
    if rows:
        connection.execute(member.insert(), rows)


def settle(connection: Connection, message: Settlement, fates: Mapping[UpdateId, tuple[Fate, str]]) -> None:
    """Record a region's settlement and the fates in it."""
    set_fates(connection, fates)
    row = {"round": message.round, "region": message.region, "message": encode(message)}
    connection.execute(settlement.insert(), row)


def live_settlements(connection: Connection) -> list[Settlement]:
    """Return the settlements that are to be retained, in order of round and region."""
    query = select(settlement.c.message).where(~settlement.c.retired)
    rows = connection.execute(query.order_by(settlement.c.round, settlement.c.region)).scalars()
    return [decode(Settlement, data, sender="the store") for data in rows]


def retire_settlements(
    connection: Connection, topics: Callable[[Settlement], Iterable[str]], *, region: str, before: int
) -> None:
    """Retire a region's settlements of rounds below ``before``; their ``topics`` are then to be cleared."""
    old = (settlement.c.round < before) & (settlement.c.region == region) & ~settlement.c.retired
    for data in connection.execute(select(settlement.c.message).where(old)).scalars().all():
        for topic in topics(decode(Settlement, data, sender="the store")):
            statement = insert(connection, clearing).values(topic=topic)
            connection.execute(statement.on_conflict_do_nothing())
    connection.execute(settlement.update().where(old).values(retired=True))
