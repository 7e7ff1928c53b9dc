"""Rows of updates: what was stored, its fate, and counters."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from sqlalchemy import Connection, Select, bindparam, func, select, text

from fedfleet.fleet_server.schema import PENDING, WITH_FILE, audit, counter, member, update
from fedfleet.fleet_server.store_files import FILE_BYTES, Data, files_of
from fedfleet.fleet_server.upsert import insert, insert_many
from fedfleet.protocol.ids import UpdateId, shard
from fedfleet.protocol.messages import Fate
from fedfleet.protocol.update import Manifest

__all__ = [
    "Known",
    "StoredUpdate",
    "add_update",
    "add_updates",
    "audit_head",
    "audit_leaf",
    "count",
    "count_all",
    "counters",
    "digests",
    "has_members",
    "known",
    "known_of",
    "members",
    "named_files",
    "pending",
    "sealed",
    "senders",
    "set_fates",
    "settled",
    "stored_of",
]

MOST_IDS = 1000
"""Ids that one query looks up: databases bound its parameters."""
SETTLED = frozenset({"folded", "returned", "dropped"})
"""Fates after which nobody reads an update's bytes any more."""
_KNOWN = select(update.c.id, update.c.sealed_sha256, update.c.fate, update.c.reason).where(
    update.c.id.in_(bindparam("ids", expanding=True))
)
_STORED = (
    select(
        update.c.vehicle,
        update.c.round,
        func.count().label("number"),
        func.sum(update.c.size_bytes).label("bytes"),
    )
    .where(
        *(
            update.c[name].in_(bindparam(name, expanding=True))
            for name in ("round", "region", "shard", "vehicle")
        )
    )
    .group_by(update.c.vehicle, update.c.round)
)
_PENDING = (
    select(update.c.id)
    .where(
        update.c.round == bindparam("round"), update.c.region == bindparam("region"), update.c.fate.is_(None)
    )
    .order_by(update.c.shard, update.c.vehicle, update.c.epoch, update.c.sequence)
)
_SENDERS = (
    select(update.c.vehicle)
    .where(update.c.round == bindparam("round"), update.c.region == bindparam("region"), text(PENDING))
    .distinct()
)


@dataclass(frozen=True)
class StoredUpdate:
    """An update that passed every check; ``payload`` is the codec's bytes, ``sealed_sha256`` names the message.

    The payload is the end of the whole message ``sealed``, which is kept in a file when it is large; where only the
    payload is known it is kept in the row. ``norm`` is the length (L2) of the change.
    """

    manifest: Manifest
    payload: Data
    steps: int
    examples: int
    sealed_sha256: str
    sealed_bytes: int
    sealed: Data | None = None
    norm: float | None = None

    @property
    def payload_at(self) -> int | None:
        """Where the payload begins in the update's file; None when it is kept in the row."""
        is_large = self.sealed is not None and len(self.sealed) >= FILE_BYTES
        return self.sealed_bytes - len(self.payload) if is_large else None


@dataclass(frozen=True)
class Known:
    """What is recorded of an update: the digest of its message, and its fate once it has one."""

    update_id: str
    sealed_sha256: str
    fate: Fate | None
    reason: str


def known(connection: Connection, update_id: UpdateId) -> Known | None:
    """Return what is recorded under this id."""
    return known_of(connection, [update_id]).get(update_id)


def known_of(connection: Connection, ids: Collection[UpdateId]) -> dict[UpdateId, Known]:
    """Return what is recorded under these ids, in one query."""
    if not ids:
        return {}
    found = connection.execute(_KNOWN, {"ids": [str(id_) for id_ in ids]}).all()
    return {UpdateId.parse(row.id): Known(row.id, row.sealed_sha256, row.fate, row.reason) for row in found}


def digests(connection: Connection, ids: Iterable[UpdateId]) -> dict[UpdateId, str]:
    """Return the SHA-256 of the sealed bytes of these updates, as far as they are stored; in the order of the ids."""
    wanted = list(ids)
    found: dict[UpdateId, Known] = {}
    for start in range(0, len(wanted), MOST_IDS):
        found |= known_of(connection, wanted[start : start + MOST_IDS])
    return {id_: found[id_].sealed_sha256 for id_ in wanted if id_ in found}


def sealed(connection: Connection, update_id: UpdateId) -> tuple[str, int]:
    """Return digest and size in bytes of a stored update's message."""
    query = select(update.c.sealed_sha256, update.c.size_bytes).where(update.c.id == str(update_id))
    row = connection.execute(query).one()
    return row.sealed_sha256, row.size_bytes


def add_update(
    connection: Connection, stored: StoredUpdate, *, now_s: float, fate: Fate | None = None, reason: str = ""
) -> None:
    """Add one update, as `add_updates`."""
    add_updates(connection, [(stored, fate, reason)], now_s=now_s)


def add_updates(
    connection: Connection, updates: Sequence[tuple[StoredUpdate, Fate | None, str]], *, now_s: float
) -> None:
    """Add the dedupe rows with the updates' bytes, fate and reason, and their leaves in the audit chain.

    What is settled already (too late, say) is recorded without its bytes: nobody will read them.
    """
    if not updates:
        return
    files = files_of(connection)
    for stored, fate, _ in updates:
        if fate not in SETTLED and stored.sealed is not None and stored.payload_at is not None:
            files.put(stored.sealed_sha256, stored.sealed)
    insert_many(connection, update, [_row(*one, now_s=now_s) for one in updates])
    position, leaf = audit_head(connection)
    leaves = []
    for number, (stored, _, _) in enumerate(updates, start=position + 1):
        name = str(stored.manifest.id)
        leaf = audit_leaf(leaf, name, stored.sealed_sha256)
        leaves.append(
            {"position": number, "update_id": name, "sealed_sha256": stored.sealed_sha256, "leaf": leaf}
        )
    insert_many(connection, audit, leaves)


def stored_of(
    connection: Connection, manifests: Collection[Manifest]
) -> dict[tuple[str, int], tuple[int, int]]:
    """Return number and bytes of the stored updates of these vehicles for these rounds, by vehicle and round."""
    if not manifests:
        return {}
    wanted: dict[str, set[object]] = {"round": set(), "region": set(), "shard": set(), "vehicle": set()}
    for one in manifests:
        wanted["round"].add(one.round)
        wanted["region"].add(one.region)
        wanted["shard"].add(shard(one.id.vehicle))
        wanted["vehicle"].add(one.id.vehicle)
    rows = connection.execute(_STORED, {name: list(values) for name, values in wanted.items()})
    return {(row.vehicle, row.round): (row.number, int(row.bytes)) for row in rows}


def _row(stored: StoredUpdate, fate: Fate | None, reason: str, *, now_s: float) -> dict[str, object]:
    manifest, is_settled = stored.manifest, fate in SETTLED
    return {
        "id": str(manifest.id),
        "vehicle": manifest.id.vehicle,
        "epoch": f"{manifest.id.epoch:016x}",
        "sequence": manifest.id.sequence,
        "shard": shard(manifest.id.vehicle),
        "region": manifest.region,
        "round": manifest.round,
        "base_version": manifest.base_version,
        "steps": stored.steps,
        "examples": stored.examples,
        "sealed_sha256": stored.sealed_sha256,
        "size_bytes": stored.sealed_bytes,
        "payload": stored.payload if stored.payload_at is None and not is_settled else None,
        "payload_at": None if is_settled else stored.payload_at,
        "norm": stored.norm,
        "stored_at_s": now_s,
        "fate": fate,
        "reason": reason,
    }


def audit_leaf(before: str, update_id: str, sealed_sha256: str) -> str:
    """Return the next leaf of the audit chain."""
    return sha256(f"{before}\n{update_id}\n{sealed_sha256}".encode()).hexdigest()


def audit_head(connection: Connection) -> tuple[int, str]:
    """Return the position and the leaf at the head of the audit chain; (0, "") before the first update."""
    query = select(audit.c.position, audit.c.leaf).order_by(audit.c.position.desc()).limit(1)
    row = connection.execute(query).one_or_none()
    return (row.position, row.leaf) if row else (0, "")


def pending(connection: Connection, *, round_: int, region: str) -> list[UpdateId]:
    """Return the updates of a region's round that have no fate yet, in fold order."""
    found = connection.execute(_PENDING, {"round": round_, "region": region}).scalars()
    return [UpdateId.parse(id_) for id_ in found]


def senders(connection: Connection, *, round_: int, region: str) -> frozenset[str]:
    """Return the vehicles of those updates."""
    return frozenset(connection.execute(_SENDERS, {"round": round_, "region": region}).scalars())


def settled(connection: Connection, *, round_: int, region: str) -> dict[UpdateId, tuple[Fate, str]]:
    """Return the updates of a region's round whose fate is recorded already: late ones, and who is no member."""
    mine = (update.c.round == round_) & (update.c.region == region) & update.c.fate.is_not(None)
    rows = connection.execute(_in_fold_order(select(update.c.id, update.c.fate, update.c.reason).where(mine)))
    return {UpdateId.parse(row.id): (row.fate, row.reason) for row in rows}


def members(
    connection: Connection, *, round_: int, region: str
) -> Iterator[tuple[UpdateId, Data | None, int]]:
    """Yield (id, payload, examples) of the frozen members of a closed round, shard by shard in id order.

    The payload is None where it is gone, or its file is not what was written.
    """
    columns = (update.c.payload, update.c.payload_at, update.c.sealed_sha256, update.c.size_bytes)
    query = select(update.c.id, update.c.examples, *columns).join(member, member.c.update_id == update.c.id)
    query = query.where(member.c.round == round_, member.c.region == region)
    files = files_of(connection)
    for row in connection.execute(_in_fold_order(query), execution_options={"yield_per": 16}):
        payload = row.payload
        if row.payload_at is not None:
            payload = files.read(row.sealed_sha256, size_bytes=row.size_bytes, start=row.payload_at)
        yield UpdateId.parse(row.id), payload, row.examples


def named_files(connection: Connection) -> set[str]:
    """Return the digests of the updates that are kept in files."""
    return set(connection.execute(select(update.c.sealed_sha256).where(text(WITH_FILE))).scalars())


def has_members(connection: Connection, *, round_: int, region: str) -> bool:
    """Tell whether a closed round of a region has members at all."""
    query = select(member.c.update_id).where(member.c.round == round_, member.c.region == region).limit(1)
    return connection.execute(query).one_or_none() is not None


def _in_fold_order(query: Select[Any]) -> Select[Any]:
    return query.order_by(update.c.shard, update.c.vehicle, update.c.epoch, update.c.sequence)


def set_fates(connection: Connection, fates: Mapping[UpdateId, tuple[Fate, str]]) -> None:
    """Record the fate of updates, and why."""
    for update_id, (fate, reason) in fates.items():
        values = {"fate": fate, "reason": reason}
        connection.execute(update.update().where(update.c.id == str(update_id)).values(**values))


def count(connection: Connection, name: str, by: int = 1) -> None:
    """Add to a counter."""
    count_all(connection, {name: by})


def count_all(connection: Connection, by: Mapping[str, int]) -> None:
    """Add to several counters."""
    statement = insert(connection, counter)
    sum_ = {"value": counter.c.value + statement.excluded.value}
    rows = [{"name": name, "value": value} for name, value in by.items()]
    if rows:
        connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_=sum_), rows)


def counters(connection: Connection, names: Iterable[str] = ()) -> dict[str, int]:
    """Return the counters of these names, or all."""
    query = select(counter.c.name, counter.c.value).order_by(counter.c.name)
    wanted = list(names)
    rows = connection.execute(query.where(counter.c.name.in_(wanted)) if wanted else query)
    return {row.name: row.value for row in rows}
