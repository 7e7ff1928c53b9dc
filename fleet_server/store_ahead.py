"""A store that went back in time, from a backup or otherwise, goes on at numbers that no vehicle has seen yet.

Vehicles answer a round once and follow rising versions only. What happened after the backup is lost to the server, not
to them: they would ignore its next rounds and versions until the numbers had caught up.
"""

from sqlalchemy import Connection, Table, func, select

from fedfleet.fleet_server import store_published, store_rounds
from fedfleet.fleet_server.rounds import FINAL
from fedfleet.fleet_server.schema import model, regional, release, round_, score, update
from fedfleet.fleet_server.store_published import Published
from fedfleet.fleet_server.store_rounds import Round

__all__ = ["step_ahead", "step_beyond"]

REASON = "the server went back to an older store"


def step_beyond(connection: Connection, noted: Published, *, by: int) -> int:
    """Step ahead to numbers that are ``by`` beyond the store's and all that is noted; return by how many.

    A store without a model keeps that for its first one.
    """
    numbers = by + noted.above(store_published.of_store(connection))
    if connection.execute(select(func.max(model.c.version))).scalar_one() is None:
        store_published.begin_at(connection, numbers)
    else:
        step_ahead(connection, numbers)
    return numbers


def step_ahead(connection: Connection, numbers: int) -> None:
    """Leave so many round, version and release numbers out; rounds that were running are abandoned, updates returned.

    The newest model, its heads, scores and release are the same under their new numbers; its chain begins anew.
    """
    _end_rounds(connection)
    store_published.leave_out(connection, numbers)
    newest = store_rounds.newest(connection)
    if newest >= 0:
        latest: dict[str, Round] = {one.plan.region: one for one in store_rounds.rounds(connection)}
        for one in latest.values():
            plan = one.plan.model_copy(update={"round": newest + numbers})
            ended = Round(**{**vars(one), "plan": plan, "state": "abandoned", "reason": REASON})
            store_rounds.add_round(connection, ended)
            mine = (round_.c.round == plan.round) & (round_.c.region == plan.region)
            values = {"closed_at_s": one.closed_at_s or one.announced_at_s, "reason": REASON}
            connection.execute(round_.update().where(mine).values(**values))
    version = connection.execute(select(func.max(model.c.version))).scalar_one()
    if version is None:
        return
    for table in (model, regional, score):
        _copy(connection, table, version, {"version": version + numbers})
    gone = {"vector": None, "error": None}
    for table in (model, regional):
        connection.execute(table.update().where(table.c.version == version).values(**gone))
        ahead = table.c.version == version + numbers
        connection.execute(table.update().where(ahead).values(delta_sha256=None))
    last = connection.execute(select(func.max(release.c.number))).scalar_one()
    row = connection.execute(select(release).where(release.c.number == last)).mappings().one()
    # what drives stays what it was: the newest version, or an older one
    released = version + numbers if row["version"] == version else row["version"]
    connection.execute(release.insert(), {**row, "number": last + numbers, "version": released})


def _end_rounds(connection: Connection) -> None:
    for one in store_rounds.rounds(connection):
        if one.state not in FINAL:
            mine = (round_.c.round == one.plan.round) & (round_.c.region == one.plan.region)
            ended = {"state": "abandoned", "reason": REASON, "closed_at_s": one.announced_at_s}
            connection.execute(round_.update().where(mine).values(**ended))
    waiting = update.c.fate.is_(None) | (update.c.fate == "carried")
    connection.execute(update.update().where(waiting).values(fate="returned", reason=REASON))


def _copy(connection: Connection, table: Table, version: int, changes: dict[str, int]) -> None:
    rows = connection.execute(select(table).where(table.c.version == version)).mappings().all()
    if rows:
        connection.execute(table.insert(), [{**row, **changes} for row in rows])
