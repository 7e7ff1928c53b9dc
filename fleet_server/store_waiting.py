"""Rows of updates that outlive their round: carried ones, and the members that a closing round took from them."""

from collections.abc import Collection

from sqlalchemy import Connection, bindparam, case, null, or_, select, text

from fedfleet.fleet_server import store_models, store_rounds
from fedfleet.fleet_server.config_rounds import RoundsConfig
from fedfleet.fleet_server.rounds import RUNNING
from fedfleet.fleet_server.schema import CARRIED, PENDING, member, round_, update, vehicle
from fedfleet.fleet_server.settlement import Waiting, late_fate
from fedfleet.protocol.ids import UpdateId
from fedfleet.protocol.messages import Fate, Plan
from fedfleet.protocol.update import Manifest

__all__ = ["Late", "bases", "claimed", "counted_elsewhere", "left_out", "take_back", "votes", "waiting"]

_FOLD_ORDER = (update.c.shard, update.c.vehicle, update.c.epoch, update.c.sequence)
_CLAIMED = (
    select(member.c.update_id)
    .join(round_, (member.c.round == round_.c.round) & (member.c.region == round_.c.region))
    .where(round_.c.state.in_(RUNNING))
)
_WAITING = (
    select(update.c.id, update.c.round, update.c.base_version)
    .where(update.c.region == bindparam("region"), text(CARRIED), update.c.id.not_in(_CLAIMED))
    .order_by(*_FOLD_ORDER)
)


def waiting(connection: Connection, *, region: str) -> list[Waiting]:
    """Return the region's carried updates that no closing round has claimed, in fold order."""
    rows = connection.execute(_WAITING, {"region": region})
    return [Waiting(UpdateId.parse(row.id), row.round, row.base_version) for row in rows]


def claimed(connection: Connection, *, number: int, region: str) -> list[UpdateId]:
    """Return the frozen members of a closed round, of whatever round they were, in fold order."""
    return list(bases(connection, number=number, region=region))


def bases(connection: Connection, *, number: int, region: str) -> dict[UpdateId, int]:
    """Return the version that each frozen member of a closed round was trained from, in fold order."""
    mine = (member.c.round == number) & (member.c.region == region)
    query = select(update.c.id, update.c.base_version).join(member, member.c.update_id == update.c.id)
    rows = connection.execute(query.where(mine).order_by(*_FOLD_ORDER))
    return {UpdateId.parse(row.id): row.base_version for row in rows}


def votes(connection: Connection, *, number: int, region: str) -> dict[str, int]:
    """Return the vehicles of a closed round's frozen members, each with the round that its member answers."""
    mine = (member.c.round == number) & (member.c.region == region)
    query = select(update.c.vehicle, update.c.round).join(member, member.c.update_id == update.c.id)
    return {row.vehicle: row.round for row in connection.execute(query.where(mine))}


def counted_elsewhere(connection: Connection, *, region: str) -> frozenset[str]:
    """Return the vehicles that count in another region's fold, of which no version is made yet: they have moved."""
    running = (member.c.round == round_.c.round) & (member.c.region == round_.c.region)
    query = (
        select(vehicle.c.id)
        .join(update, update.c.vehicle == vehicle.c.id)
        .join(member, member.c.update_id == update.c.id)
        .join(round_, running)
    )
    is_other = (round_.c.region != region) & round_.c.state.in_(RUNNING)
    rows = connection.execute(query.where(vehicle.c.region_before.is_not(None), is_other).distinct())
    return frozenset(rows.scalars())


def left_out(
    connection: Connection, *, number: int, region: str
) -> tuple[dict[UpdateId, str], dict[UpdateId, str]]:
    """Return the frozen members of a closed round that its fold has dropped, and those it returned, with the reason."""
    mine = (member.c.round == number) & (member.c.region == region)
    query = select(update.c.id, update.c.fate, update.c.reason).join(
        member, member.c.update_id == update.c.id
    )
    rows = connection.execute(query.where(mine, update.c.fate.in_(("dropped", "returned")))).all()
    found = {
        fate: {UpdateId.parse(row.id): row.reason for row in rows if row.fate == fate}
        for fate in ("dropped", "returned")
    }
    return found["dropped"], found["returned"]


def take_back(connection: Connection, ids: Collection[UpdateId], *, number: int) -> None:
    """Take back the fate that a fold of round ``number`` gave its members: it was not the one that counts."""
    before = case((update.c.round == number, null()), else_="carried")
    for id_ in sorted(ids):
        mine = update.c.id == str(id_)
        connection.execute(update.update().where(mine).values(fate=before, reason=""))


class Late:
    """What becomes of updates whose round has closed; they are written after all of a transaction were judged."""

    def __init__(self, connection: Connection, rounds: RoundsConfig) -> None:
        self._connection, self._rounds = connection, rounds
        self._seen: set[tuple[str, int]] = set()

    def fate(self, manifest: Manifest) -> tuple[Fate, str]:
        """Return fate and reason of a late update."""
        found = late_fate(
            carries=self._rounds.carries_late and self._follows(manifest.region),
            staleness=self._staleness(manifest.base_version),
            max_staleness=self._rounds.max_staleness,
            has_other=self._has_other(manifest),
            has_newer=self._has_newer(manifest),
        )
        self._seen.add((manifest.id.vehicle, manifest.round))
        return found

    def may_carry(self, plan: Plan) -> bool:
        """Tell whether an update for the closed round of this plan could still be folded by a later one."""
        if not self._rounds.carries_late or not self._follows(plan.region):
            return False
        return self._staleness(plan.base_version) <= self._rounds.max_staleness

    def _follows(self, region: str) -> bool:
        newest = store_rounds.current(self._connection).get(region)
        return newest is not None and (newest.state == "open" or self._rounds.goes_on(newest.plan.round))

    def _staleness(self, base_version: int) -> int:
        return (store_models.newest_version(self._connection) or 0) - base_version

    def _has_other(self, manifest: Manifest) -> bool:
        """Tell whether the vehicle has an update for the same round that counts, or still may."""
        if (manifest.id.vehicle, manifest.round) in self._seen:
            return True
        counts = update.c.fate.is_(None) | update.c.fate.in_(("folded", "carried"))
        mine = (update.c.round == manifest.round) & (update.c.vehicle == manifest.id.vehicle)
        query = select(update.c.id).where(mine, counts).limit(1)
        return self._connection.execute(query).one_or_none() is not None

    def _has_newer(self, manifest: Manifest) -> bool:
        """Tell whether the vehicle has an update for a later round of the region that waits for a fold."""
        mine = (update.c.region == manifest.region) & (update.c.vehicle == manifest.id.vehicle)
        counts = or_(text(PENDING), text(CARRIED))
        query = select(update.c.id).where(mine, update.c.round > manifest.round, counts).limit(1)
        return self._connection.execute(query).one_or_none() is not None
