"""Parts of what the store knows, as values that JSON can hold: rounds, vehicles, models. For commands and ``status``.

Each reads one view of the store, beside a running server or a stopped one, and no more of it than was asked for.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, select, true

from fedfleet.fleet_server import (
    schema,
    store_counters,
    store_models,
    store_rounds,
    store_variants,
    store_vehicles,
)
from fedfleet.fleet_server.gate import Scores
from fedfleet.fleet_server.store import START, open_reader
from fedfleet.fleet_server.store_properties import properties
from fedfleet.fleet_server.store_rounds import Round
from fedfleet.protocol.errors import UsageError

__all__ = ["begun", "means", "models", "rounds", "upload_rate", "vehicles"]

RATE_WINDOW_S = 60.0
RATE_UPDATES = 500
VEHICLE_COLUMNS = (
    "region",
    "state",
    "denied",
    "active_version",
    "eligible",
    "reason",
    "session",
    "status_at_s",
    "shared_at_s",
)


@contextmanager
def begun(data_dir: Path) -> Iterator[tuple[Connection, dict[str, str]]]:
    """Read the store in ``data_dir`` as it is now, with its properties.

    Raises UsageError when there is none, it cannot be read by this fedfleet, or no server has begun with it.
    """
    store = open_reader(data_dir)
    try:
        with store.read() as connection:
            told = properties(connection)
            if START not in told or store_models.newest_version(connection) is None:
                raise UsageError(f"{data_dir}: the fleet server has not begun yet")
            yield connection, told
    finally:
        store.close()


def rounds(
    connection: Connection,
    now_s: float,
    *,
    regions: Sequence[str] = (),
    last: int | None = None,
    updates: bool = True,
) -> list[dict[str, Any]]:
    """Return the last rounds of these regions (all when none are named), the oldest first.

    ``updates`` adds number, bytes and fates of their updates, for which the rows of all of these are read.
    """
    kept = store_rounds.rounds(connection)
    first = max((one.plan.round for one in kept), default=0) - last + 1 if last else 0
    chosen = [one for one in kept if one.plan.round >= first and (not regions or one.plan.region in regions)]
    members = _members(connection, first)
    found = [_round(one, members, now_s) for one in chosen]
    if updates:
        stored = _stored(connection, first)
        for told in found:
            told.update(_fates(stored.get((told["round"], told["region"]), {})))
    return found


def _fates(by_fate: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    return {
        "stored": sum(number for number, _ in by_fate.values()),
        "stored_bytes": sum(size for _, size in by_fate.values()),
        "fates": {fate: number for fate, (number, _) in sorted(by_fate.items())},
    }


def _round(one: Round, members: Mapping[tuple[int, str], list[str]], now_s: float) -> dict[str, Any]:
    return {
        "round": one.plan.round,
        "region": one.plan.region,
        "state": one.state,
        "reason": one.reason,
        "revision": one.plan.revision,
        "share": one.plan.share,
        "base_version": one.plan.base_version,
        "opened_at_s": one.plan.opened_at_s,
        "deadline_s": one.plan.deadline_s,
        "closed_at_s": one.closed_at_s,
        "seconds": (one.closed_at_s or now_s) - one.plan.opened_at_s,
        "asked": len(one.target if one.contributors is None else one.contributors),
        "contributors": members.get((one.plan.round, one.plan.region), []),
    }


def _members(connection: Connection, first: int) -> dict[tuple[int, str], list[str]]:
    """Return the vehicles whose updates were frozen, by round and region, from a round on."""
    query = select(schema.member).where(schema.member.c.round >= first).order_by(schema.member.c.update_id)
    found: dict[tuple[int, str], list[str]] = {}
    for row in connection.execute(query):
        found.setdefault((row.round, row.region), []).append(row.update_id.partition(":")[0])
    return found


def _stored(connection: Connection, first: int) -> dict[tuple[int, str], dict[str, tuple[int, int]]]:
    """Return number and bytes of the stored updates by round, region and fate ("pending" for those without)."""
    table = schema.update
    group = (table.c.round, table.c.region, table.c.fate)
    query = select(*group, func.count(), func.sum(table.c.size_bytes)).where(table.c.round >= first)
    found: dict[tuple[int, str], dict[str, tuple[int, int]]] = {}
    for number, region, fate, count, size in connection.execute(query.group_by(*group)):
        found.setdefault((number, region), {})[fate or "pending"] = (count, int(size))
    return found


def vehicles(
    connection: Connection, *, regions: Sequence[str] = (), last: int | None = None, updates: bool = True
) -> dict[str, dict[str, Any]]:
    """Return the vehicles of these regions by id: how they are, with ``updates`` what they sent.

    ``last``: so many, those heard of latest.
    """
    table = schema.vehicle
    query = select(table).where(_named(table.c.region, regions)).order_by(table.c.id)
    rows = connection.execute(query).mappings().all()
    if last is not None:
        latest = sorted(rows, key=lambda row: row["status_at_s"], reverse=True)[:last]
        rows = sorted(latest, key=lambda row: str(row["id"]))
    metrics, totals = store_vehicles.last_metrics(connection), store_counters.totals(connection)
    sent = _sent(connection) if updates else {}
    found = {}
    for row in rows:
        name = str(row["id"])
        one = {column: row[column] for column in VEHICLE_COLUMNS}
        if updates:
            one |= sent.get(name, {"updates": 0, "folded": 0, "update_bytes": 0, "last_round": None})
        if name in metrics:
            one["metrics"] = metrics[name].model_dump(mode="json")
            one["totals"] = totals[name]
        found[name] = one
    return found


def _sent(connection: Connection) -> dict[str, dict[str, Any]]:
    table = schema.update
    columns = (
        table.c.vehicle,
        func.count().label("updates"),
        func.count().filter(table.c.fate == "folded").label("folded"),
        func.sum(table.c.size_bytes).label("size"),
        func.max(table.c.round).label("last_round"),
    )
    return {
        row.vehicle: {
            "updates": row.updates,
            "folded": row.folded,
            "update_bytes": int(row.size),
            "last_round": row.last_round,
        }
        for row in connection.execute(select(*columns).group_by(table.c.vehicle))
    }


def models(
    connection: Connection, *, regions: Sequence[str] = (), last: int | None = None
) -> list[dict[str, Any]]:
    """Return the last versions, the oldest first: what made them, their size, their scores in these regions.

    Sizes are None for what is no longer kept. ``regions`` has what each region gets, when regions have heads of their
    own; the version itself is then only what they share, which nobody fetches.
    """
    table, sizes = schema.model, dict(_blob_sizes(connection))
    first = (store_models.newest_version(connection) or 0) - last + 1 if last else 0
    released = Counter(connection.execute(select(schema.release.c.version)).scalars())
    columns = [column for column in table.c if column.name not in {"vector", "error"}]
    rows = connection.execute(select(*columns).where(table.c.version >= first).order_by(table.c.version))
    scores = means(store_models.all_scores(connection))
    regional, variants = _regional(connection, first, sizes), store_variants.views(connection)
    return [
        {
            "version": row.version,
            "round": row.round,
            "created_at_s": row.created_at_s,
            "released": row.version in released,
            "onnx_sha256": row.onnx_sha256,
            "full_bytes": sizes.get(row.full_sha256),
            "delta_bytes": sizes.get(row.delta_sha256),
            "regions": {
                region: told
                for region, told in regional.get(row.version, {}).items()
                if not regions or region in regions
            },
            "variants": [
                told
                for told in variants.get(row.version, [])
                if not regions or not told["region"] or told["region"] in regions
            ],
            "metrics": {
                region: told
                for region, told in scores.get(row.version, {}).items()
                if not regions or region in regions
            },
        }
        for row in rows
    ]


def _regional(
    connection: Connection, first: int, sizes: Mapping[str, int]
) -> dict[int, dict[str, dict[str, Any]]]:
    table = schema.regional
    columns = (table.c.version, table.c.region, table.c.head_version)
    digests = (table.c.onnx_sha256, table.c.full_sha256, table.c.delta_sha256)
    query = select(*columns, *digests).where(table.c.version >= first).order_by(table.c.region)
    found: dict[int, dict[str, dict[str, Any]]] = {}
    for row in connection.execute(query):
        found.setdefault(row.version, {})[row.region] = {
            "head_version": row.head_version,
            "onnx_sha256": row.onnx_sha256,
            "full_bytes": sizes.get(row.full_sha256),
            "delta_bytes": sizes.get(row.delta_sha256),
        }
    return found


def _blob_sizes(connection: Connection) -> Iterator[tuple[str, int]]:
    for row in connection.execute(select(schema.blob.c.sha256, schema.blob.c.size_bytes)):
        yield row.sha256, row.size_bytes


def upload_rate(connection: Connection, now_s: float) -> float:
    """Return stored updates per second: of the newest 500, those of the last minute, over the time they took."""
    newest = select(schema.audit.c.update_id).order_by(schema.audit.c.position.desc()).limit(RATE_UPDATES)
    query = select(func.count(), func.min(schema.update.c.stored_at_s)).where(
        schema.update.c.id.in_(newest), schema.update.c.stored_at_s > now_s - RATE_WINDOW_S
    )
    number, oldest_s = connection.execute(query).one()  # the oldest of them is None when there are none
    if number < RATE_UPDATES:
        return float(number) / RATE_WINDOW_S
    return float(number) / max(now_s - float(oldest_s), 1e-3)


def means(scores: Mapping[int, Scores]) -> dict[int, dict[str, dict[str, float | None]]]:
    """Return mean scores by version, region and metric; None where nothing was scored."""
    return {
        version: {
            region: {name: total / count if count else None for name, (total, count) in by_metric.items()}
            for region, by_metric in by_region.items()
        }
        for version, by_region in scores.items()
    }


def _named(column: ColumnElement[str], regions: Sequence[str]) -> ColumnElement[bool]:
    return column.in_(regions) if regions else true()
