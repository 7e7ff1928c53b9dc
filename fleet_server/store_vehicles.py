"""Rows of vehicles: who is enrolled, with which key, in which region; what each last said of itself."""

from collections.abc import Mapping
from hashlib import sha256
from typing import Literal, NamedTuple, TypeAlias

from sqlalchemy import Connection, func, select

from fedfleet.fleet_server import store_counters
from fedfleet.fleet_server.schema import code, property_, round_, vehicle
from fedfleet.fleet_server.upsert import insert
from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.ids import SERVER, check_id
from fedfleet.protocol.messages import Metrics, Status, encode
from fedfleet.protocol.signing import KEY_BYTES, Keyring

__all__ = [
    "Presence",
    "Saved",
    "ahead_of",
    "code_is_open",
    "deny",
    "enrol",
    "enrolled",
    "forget_presence",
    "keyring",
    "last_metrics",
    "metrics_of",
    "moved",
    "note_shared",
    "presences",
    "regions",
    "restamp",
    "save_metrics",
    "save_status",
    "stamp",
    "use_code",
]

REORDERED_S = 600.0
"""Seconds by which metrics may be older than those before them because they were overtaken on their way."""
Saved: TypeAlias = Literal["saved", "ignored", "shared"]
"""What became of a status; ``shared``: saved, and it shows that two processes use one id."""
STAMP = "registry"
"""Property that counts the changes of the registry."""

_PRESENCES = (
    select(
        vehicle.c.id,
        vehicle.c.region,
        func.coalesce(vehicle.c.state, "") == "ONLINE",
        func.coalesce(vehicle.c.lease_round, 0),
        func.coalesce(vehicle.c.lease_until_s, 0.0),
    )
    .where(~vehicle.c.denied)
    .order_by(vehicle.c.id)
)


class _Newest(NamedTuple):
    """What is recorded of a vehicle's newest status."""

    epoch: int
    session: int
    status_at_s: float
    process: int
    process_before: int


class Presence(NamedTuple):
    """What a vehicle's newest status said. ``lease_until_s`` is 0 without a lease."""

    vehicle: str
    region: str
    online: bool
    lease_round: int
    lease_until_s: float


def enrol(
    connection: Connection,
    name: str,
    *,
    region: str,
    public_key: bytes,
    now_s: float,
    replace: bool = False,
) -> None:
    """Register a vehicle's key and region; enrolling the same key again moves the vehicle to the region.

    Raises UsageError for an id outside the alphabet, the server's own name, or another key than the enrolled one,
    unless that is to be replaced.
    """
    check_id(name, "vehicle")
    check_id(region, "region")
    if name == SERVER:
        raise UsageError(f"vehicle id {name!r} is the server's own name")
    if len(public_key) != KEY_BYTES:
        raise UsageError(f"vehicle {name}: public key has {len(public_key)} bytes, expected {KEY_BYTES}")
    known = connection.execute(select(vehicle.c.public_key).where(vehicle.c.id == name)).scalar_one_or_none()
    if known is None:
        row = {"id": name, "region": region, "public_key": public_key, "enrolled_at_s": now_s}
        connection.execute(vehicle.insert(), row)
    elif known != public_key and not replace:
        told = "if it lost that one, give it a fresh enrolment code, or enrol it with --replace"
        raise UsageError(f"vehicle {name} is enrolled with another key {known.hex()[:12]}…: {told}")
    else:
        mine = vehicle.c.id == name
        connection.execute(vehicle.update().where(mine).values(public_key=public_key))
        _move(connection, name, region)
    restamp(connection)


def _move(connection: Connection, name: str, region: str) -> None:
    """Put a vehicle into a region, from the next round on; what it trained for until then counts where it was."""
    before = connection.execute(select(vehicle.c.region).where(vehicle.c.id == name)).scalar_one()
    if before != region:
        newest = connection.execute(select(func.max(round_.c.round))).scalar_one() or 0
        values = {"region": region, "region_before": before, "moved_round": newest}
        connection.execute(vehicle.update().where(vehicle.c.id == name).values(**values))


def deny(connection: Connection, name: str, *, denied: bool = True) -> None:
    """Put an enrolled vehicle on the deny-list, or take it off; UsageError when it is not enrolled."""
    changed = connection.execute(vehicle.update().where(vehicle.c.id == name).values(denied=denied))
    if changed.rowcount == 0:
        raise UsageError(f"vehicle {name} is not enrolled, so it cannot be denied")
    restamp(connection)


def stamp(connection: Connection) -> int:
    """Return a number that changes with every change of keys, regions and the deny-list, whoever made it."""
    query = select(property_.c.value).where(property_.c.name == STAMP)
    return int(connection.execute(query).scalar_one_or_none() or 0)


def restamp(connection: Connection) -> None:
    """Let a running server read again who may send: a key, a region, the deny-list or a code has changed."""
    values = {"name": STAMP, "value": str(stamp(connection) + 1)}
    statement = insert(connection, property_).values(**values)
    connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_=values))


def keyring(connection: Connection) -> Keyring:
    """Return the enrolled keys and the deny-list."""
    rows = connection.execute(select(vehicle.c.id, vehicle.c.public_key, vehicle.c.denied)).all()
    return Keyring({row.id: row.public_key for row in rows}, frozenset(row.id for row in rows if row.denied))


def regions(connection: Connection) -> dict[str, str]:
    """Return the region of every enrolled vehicle."""
    return {row.id: row.region for row in connection.execute(select(vehicle.c.id, vehicle.c.region))}


def moved(connection: Connection) -> dict[str, tuple[str, int]]:
    """Return of every vehicle that has moved: the region before, and the last round of which it still counts there."""
    columns = (vehicle.c.id, vehicle.c.region_before, vehicle.c.moved_round)
    rows = connection.execute(select(*columns).where(vehicle.c.region_before.is_not(None)))
    return {row.id: (row.region_before, row.moved_round) for row in rows}


def enrolled(connection: Connection) -> dict[str, int]:
    """Return the number of enrolled vehicles by region, without the denied."""
    rows = connection.execute(
        select(vehicle.c.region, func.count().label("number"))
        .where(~vehicle.c.denied)
        .group_by(vehicle.c.region)
    )
    return {row.region: row.number for row in rows}


def presences(connection: Connection) -> list[Presence]:
    """Return the presence of every vehicle that is enrolled and not denied, by id."""
    return list(map(Presence._make, connection.execute(_PRESENCES)))


def ahead_of(connection: Connection, *, version: int, round_: int) -> list[tuple[str, int, int]]:
    """Return (vehicle, version, round) of those online that say of themselves that they have seen newer ones."""
    lease = func.coalesce(vehicle.c.lease_round, -1)
    newer = (vehicle.c.active_version > version) | (lease > round_)
    query = select(vehicle.c.id, vehicle.c.active_version, lease)
    rows = connection.execute(query.where(newer, vehicle.c.state == "ONLINE", ~vehicle.c.denied))
    return [(row[0], row[1], row[2]) for row in rows]


def save_status(connection: Connection, status: Status, *, now_s: float) -> Saved:
    """Record a vehicle's status, unless it is older than the recorded one.

    What one process says counts in the order of arrival, as a will carries the time at which it was deposited; for
    other processes see ``_compared``. No time counts that is after ``now_s``: a clock that was ahead once holds nothing
    back.
    """
    columns = (vehicle.c.epoch, vehicle.c.session, vehicle.c.status_at_s)
    processes = (vehicle.c.process, vehicle.c.process_before)
    found = connection.execute(select(*columns, *processes).where(vehicle.c.id == status.vehicle)).one()
    row = _Newest._make(found)
    at_s, before_s = min(status.at_s, now_s), min(row.status_at_s, now_s)
    is_same = status.process == row.process != 0
    saved: Saved = "saved" if is_same else _compared(status, row, at_s=at_s, before_s=before_s)
    if saved == "ignored":
        return saved
    values = {
        "state": status.state,
        "status_at_s": max(at_s, before_s),
        "epoch": status.epoch,
        "session": status.session,
        "process": status.process,
        "process_before": row.process_before if is_same else row.process,
        "lease_round": status.lease.round if status.lease else None,
        "lease_until_s": _lease_until(status, now_s),
        "active_version": status.active_version,
        "eligible": status.eligible,
        "reason": status.reason,
    }
    connection.execute(vehicle.update().where(vehicle.c.id == status.vehicle).values(**values))
    if saved == "shared":
        note_shared(connection, status.vehicle, now_s)
    return saved


def _compared(status: Status, row: _Newest, *, at_s: float, before_s: float) -> Saved:
    """Judge the status of another process than the recorded one, or of one that is not told apart (an older vehicle).

    A greeting counts when its session is newer or it is of another journal. If the recorded process had taken its
    place before, or it is of an older session but newer by its time, two processes use one id and take turns. A
    goodbye may be a will of long ago: it counts when nobody can tell whose it is and it is not older.
    """
    is_other_journal, are_known = status.epoch != row.epoch, status.process and row.process
    is_older = not is_other_journal and status.session < row.session
    if status.state != "ONLINE":
        if are_known or is_older or (is_other_journal and at_s <= before_s):
            return "ignored"
        return "saved"
    if are_known and status.process == row.process_before:
        return "shared"
    if is_older:
        return "shared" if at_s > before_s else "ignored"
    return "saved"


def note_shared(connection: Connection, name: str, now_s: float) -> None:
    """Record that a vehicle's id was used twice: by two processes, or by a copy of its folder that was put back."""
    connection.execute(vehicle.update().where(vehicle.c.id == name).values(shared_at_s=now_s))


def _lease_until(status: Status, now_s: float) -> float | None:
    """Return the end of a lease by the server's clock: it is as long as its vehicle says, whatever its clock shows."""
    if status.lease is None:
        return None
    return status.lease.until_s - max(0.0, status.at_s - now_s)


def forget_presence(connection: Connection) -> None:
    """Take every vehicle for offline until it is heard of: its retained status comes again after a subscribe."""
    connection.execute(vehicle.update().values(state="OFFLINE"))


def save_metrics(connection: Connection, metrics: Metrics, *, now_s: float) -> bool:
    """Record a vehicle's metrics; False when they are a little older than the recorded ones and were ignored.

    Metrics that are far older come from a clock that was set back: they are the newest, as messages of one vehicle
    come nearly in order. What is recorded from after ``now_s`` holds nothing back.
    """
    at_s = min(metrics.at_s, now_s)
    last_s = vehicle.c.metrics_at_s
    newer = (last_s <= at_s) | (last_s > now_s) | (last_s > at_s + REORDERED_S)
    kept = metrics.model_copy(update={"at_s": at_s})
    values = {
        "metrics_at_s": at_s,
        "metrics": encode(kept),
        "metrics_before": store_counters.kept(connection, kept),
    }
    mine = vehicle.c.id == metrics.vehicle
    return connection.execute(vehicle.update().where(mine & newer).values(**values)).rowcount > 0


def metrics_of(connection: Connection, name: str) -> Metrics | None:
    """Return the last metrics of a vehicle; None when it sent none, or they are not valid any more."""
    data = connection.execute(select(vehicle.c.metrics).where(vehicle.c.id == name)).scalar_one_or_none()
    return None if data is None else store_counters.stored(data, name)


def last_metrics(connection: Connection) -> Mapping[str, Metrics]:
    """Return the last metrics of every vehicle that sent some which are still valid (`store_counters.stored`)."""
    rows = connection.execute(select(vehicle.c.id, vehicle.c.metrics).where(vehicle.c.metrics.is_not(None)))
    found = {name: store_counters.stored(data, name) for name, data in rows}
    return {name: metrics for name, metrics in found.items() if metrics is not None}


def code_is_open(connection: Connection, name: str, secret: str) -> bool:
    """Tell whether this vehicle's one-time code was not used yet."""
    found = connection.execute(select(code.c.code_sha256).where(code.c.vehicle == name)).scalar_one_or_none()
    return found != sha256(secret.encode()).hexdigest()


def use_code(connection: Connection, name: str, secret: str, *, now_s: float) -> None:
    """Mark a vehicle's one-time code as used."""
    values = {"vehicle": name, "code_sha256": sha256(secret.encode()).hexdigest(), "used_at_s": now_s}
    statement = insert(connection, code).values(**values)
    connection.execute(statement.on_conflict_do_update(index_elements=["vehicle"], set_=values))
