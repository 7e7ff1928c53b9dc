"""Rows of enrolment codes: those that an operator had made, and how often a proof was wrong."""

from dataclasses import dataclass

from sqlalchemy import Connection, select

from fedfleet.fleet_server.schema import guess, made_code
from fedfleet.fleet_server.upsert import insert

__all__ = ["ALL", "MadeCode", "find", "locked_until", "make", "note_right", "note_wrong", "use", "vehicles"]

ALL = ""
"""Stands for all vehicles together."""
MOST_WRONG, LOCK_S = 5, 900.0
"""Wrong proofs for one vehicle after which none is looked at for a while; each further one locks anew."""
MOST_WRONG_OF_ALL, WINDOW_S = 100, 600.0
"""Wrong proofs for all vehicles within so many seconds after which none is looked at for as long."""


@dataclass(frozen=True)
class MadeCode:
    """What is kept of a code: the region of its vehicle, what is proven of it, until when, and whether it was used."""

    region: str
    secret: str
    expires_at_s: float
    used_at_s: float | None

    def is_open(self, now_s: float) -> bool:
        """Tell whether a vehicle may enrol with it."""
        return self.used_at_s is None and now_s < self.expires_at_s


def make(
    connection: Connection, vehicle: str, *, region: str, secret: str, now_s: float, expires_at_s: float
) -> None:
    """Keep a new code for a vehicle, in place of the one before; what was guessed wrong is forgotten."""
    values = {
        "region": region,
        "secret": secret,
        "made_at_s": now_s,
        "expires_at_s": expires_at_s,
        "used_at_s": None,
    }
    statement = insert(connection, made_code).values(vehicle=vehicle, **values)
    connection.execute(statement.on_conflict_do_update(index_elements=["vehicle"], set_=values))
    note_right(connection, vehicle)


def find(connection: Connection, vehicle: str) -> MadeCode | None:
    """Return the code that was made last for a vehicle; None without any."""
    columns = (made_code.c.region, made_code.c.secret, made_code.c.expires_at_s, made_code.c.used_at_s)
    row = connection.execute(select(*columns).where(made_code.c.vehicle == vehicle)).one_or_none()
    return None if row is None else MadeCode(*row)


def vehicles(connection: Connection) -> list[str]:
    """Return the vehicles for which a code was made that was not used."""
    query = select(made_code.c.vehicle).where(made_code.c.used_at_s.is_(None))
    return list(connection.execute(query.order_by(made_code.c.vehicle)).scalars())


def use(connection: Connection, vehicle: str, *, now_s: float) -> None:
    """Mark a vehicle's code as used."""
    mine = made_code.c.vehicle == vehicle
    connection.execute(made_code.update().where(mine).values(used_at_s=now_s))


def locked_until(connection: Connection, vehicle: str, now_s: float) -> float | None:
    """Return until when no proof of this vehicle is looked at; None when it is now."""
    mine = guess.c.vehicle.in_((vehicle, ALL)) & (guess.c.locked_until_s > now_s)
    # a clock that was set back makes no lock longer than it was meant
    mine &= guess.c.locked_until_s <= now_s + max(LOCK_S, WINDOW_S)
    return max(connection.execute(select(guess.c.locked_until_s).where(mine)).scalars(), default=None)


def note_wrong(connection: Connection, vehicle: str, *, now_s: float) -> None:
    """Count a wrong proof; the one too many locks, for this vehicle or for all."""
    _count(connection, vehicle, now_s, most=MOST_WRONG, lock_s=LOCK_S, window_s=None)
    _count(connection, ALL, now_s, most=MOST_WRONG_OF_ALL, lock_s=WINDOW_S, window_s=WINDOW_S)


def note_right(connection: Connection, vehicle: str) -> None:
    """Forget what was wrong for this vehicle."""
    connection.execute(guess.delete().where(guess.c.vehicle == vehicle))


def _count(
    connection: Connection, who: str, now_s: float, *, most: int, lock_s: float, window_s: float | None
) -> None:
    query = select(guess.c.wrong, guess.c.since_s).where(guess.c.vehicle == who)
    row = connection.execute(query).one_or_none()
    is_new = row is None or (window_s is not None and not 0 <= now_s - row.since_s < window_s)
    wrong, since_s = (1, now_s) if row is None or is_new else (row.wrong + 1, row.since_s)
    values = {"wrong": wrong, "since_s": since_s, "locked_until_s": now_s + lock_s if wrong >= most else 0.0}
    statement = insert(connection, guess).values(vehicle=who, **values)
    connection.execute(statement.on_conflict_do_update(index_elements=["vehicle"], set_=values))
