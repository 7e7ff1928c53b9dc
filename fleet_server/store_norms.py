"""The lengths of updates that were folded lately, as the rows of the store tell them: the same after a restart."""

from collections.abc import Callable
from functools import partial

from sqlalchemy import Connection, select

from fedfleet.fleet_server import store_models
from fedfleet.fleet_server.norms import Recent
from fedfleet.fleet_server.schema import member, round_, update
from fedfleet.protocol.messages import CodecPlan, Plan, decode

__all__ = ["Norms", "lengths", "recent"]

ROUNDS, MOST = 8, 4096
"""From so many rounds of regions, at most so many updates."""


def recent(connection: Connection, codec: CodecPlan) -> Recent:
    """Return the lengths of the updates that the newest folds of this codec took."""
    published = (
        select(round_.c.round, round_.c.region, round_.c.plan)
        .where(round_.c.state == "published")
        .order_by(round_.c.round.desc(), round_.c.region)
        .limit(ROUNDS)
    )
    found: list[float] = []
    newest = -1
    for number, region, data in connection.execute(published).all():
        if _key(decode(Plan, data, sender="the store").codec) != _key(codec) or len(found) >= MOST:
            continue
        newest = max(newest, number)
        query = select(update.c.norm).join(member, member.c.update_id == update.c.id)
        mine = (member.c.round == number) & (member.c.region == region)
        folded = update.c.norm.is_not(None) & (update.c.fate == "folded")
        found += connection.execute(query.where(mine, folded).limit(MOST)).scalars()
    return Recent(tuple(found), newest)


def _key(codec: CodecPlan) -> tuple[object, ...]:
    """Return what of a codec decides about the length of what it sends."""
    return codec.index, codec.value, codec.density


def lengths(connection: Connection, *, number: int, region: str) -> dict[str, float]:
    """Return the length of each frozen member of a closed round, by update id, as far as it was written down."""
    query = select(update.c.id, update.c.norm).join(member, member.c.update_id == update.c.id)
    mine = (member.c.round == number) & (member.c.region == region)
    rows = connection.execute(query.where(mine, update.c.norm.is_not(None)))
    return {row.id: row.norm for row in rows}


class Norms:
    """Tells how long an update for a plan may be; looks into the store once per version and codec."""

    def __init__(self, *, factor: float, parameters: int) -> None:
        """Let in what is at most ``factor`` times as long as usual."""
        self._factor, self._parameters = factor, parameters
        self._version: int | None = -1
        self._recent: dict[tuple[object, ...], Recent] = {}

    def at(self, connection: Connection) -> Callable[[Plan], float]:
        """Return what tells the longest update for a plan that is let in, in this transaction."""
        version = store_models.newest_version(connection)
        if version != self._version:
            self._version, self._recent = version, {}
        return partial(self._limit, connection)

    def _limit(self, connection: Connection, plan: Plan) -> float:
        key = _key(plan.codec)
        if key not in self._recent:
            self._recent[key] = recent(connection, plan.codec)
        return self._recent[key].limit(factor=self._factor, parameters=self._parameters, round_=plan.round)
