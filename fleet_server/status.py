"""What the fleet does now, read from the store by any process: for ``fedfleet status``, the demo and reports."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from sqlalchemy import Connection, func, select

from fedfleet.fleet_server import (
    schema,
    store_counters,
    store_models,
    store_quarantine,
    store_rounds,
    store_updates,
    store_vehicles,
    troubles,
    views,
)
from fedfleet.fleet_server.coordinator import is_over
from fedfleet.fleet_server.gate import Scores
from fedfleet.fleet_server.store import START
from fedfleet.fleet_server.store_rounds import Round
from fedfleet.models import task as tasks
from fedfleet.models.task import Metric
from fedfleet.protocol.messages import Metrics

__all__ = ["snapshot"]

QUARANTINE_SHOWN = 100
COUNTED = ("frames", "missed", "missed_in_swap", "swaps")


def snapshot(data_dir: Path, now_s: float) -> dict[str, Any]:
    """Return the state of the server whose store is in ``data_dir``, as values that JSON can hold.

    Raises UsageError when no server has begun there. Means are None where nothing was scored or measured.
    """
    with views.begun(data_dir) as (connection, told):
        return _snapshot(connection, told, now_s)


def _snapshot(connection: Connection, told: Mapping[str, str], now_s: float) -> dict[str, Any]:
    metric = tasks.load(told["task"]).metrics[0]
    start = json.loads(told[START])
    current = store_rounds.current(connection)
    number = next((one.plan.round for one in current.values()), 0)
    rounds = store_rounds.rounds(connection)
    metrics, totals = store_vehicles.last_metrics(connection), store_counters.totals(connection)
    release = store_models.newest_release(connection)
    over = [group for group in _by_number(rounds).values() if is_over(group)]
    total = start["rounds_total"]
    regions = _regions(connection, start["regions"], metrics, totals=totals)
    newest = store_models.newest_version(connection)
    score = _primary(store_models.scores(connection, newest or 0), metric)
    baseline = _primary(store_models.scores(connection, store_models.BASELINE), metric)
    for name, region in regions.items():
        region.update(score=score.get(name), baseline=baseline.get(name))
        region.update(_in_round(connection, current.get(name), now_s))
    return {
        "fleet": told["fleet"],
        "task": told["task"],
        "at_s": now_s,
        "metric": {"name": metric.name, "unit": metric.unit, "better": metric.better},
        "version": newest,
        "parameters": store_models.parameters(connection),
        "released": release.version if release else None,
        "released_sha256": store_models.model_row(connection, release.version)[0] if release else "",
        "round": number,
        "rounds_total": total,
        "rounds_run": len(over),
        "rounds_published": sum(any(r.state == "published" for r in group.values()) for group in over),
        "is_done": bool(total) and len(over) >= total,
        "server_started_at_s": start["started_at_s"],
        "resumed_round": start["resumed_round"],
        "updates": connection.execute(select(func.count()).select_from(schema.update)).scalar_one(),
        "updates_per_s": views.upload_rate(connection, now_s),
        "regions": regions,
        "vehicles": views.vehicles(connection, updates=False),
        "inference": _inference(metrics.values(), totals.values()),
        "rounds": views.rounds(connection, now_s, updates=False),
        "history": _history(connection, metric),
        "quarantine": _quarantine(connection),
        "counters": store_updates.counters(connection),
        "troubles": troubles.described(metrics.values()),
    }


def _by_number(rounds: Iterable[Round]) -> dict[int, dict[str, Round]]:
    groups: dict[int, dict[str, Round]] = {}
    for one in rounds:
        groups.setdefault(one.plan.round, {})[one.plan.region] = one
    return groups


def _regions(
    connection: Connection,
    names: Iterable[str],
    metrics: Mapping[str, Metrics],
    *,
    totals: Mapping[str, Mapping[str, int]],
) -> dict[str, dict[str, Any]]:
    rows = connection.execute(select(schema.vehicle).where(~schema.vehicle.c.denied)).all()
    size = store_models.parameters(connection)
    found = {}
    for name in names:
        mine = [row for row in rows if row.region == name]
        number, stored_bytes = _stored(connection, name)
        heard = [metrics[row.id] for row in mine if row.id in metrics]
        counted = [totals[row.id] for row in mine if row.id in totals]
        found[name] = {
            "enrolled": len(mine),
            "online": sum(row.state == "ONLINE" for row in mine),
            "updates": number,
            "bytes_up": stored_bytes,
            "bytes_down": sum(each["bytes_down"] for each in counted),
            "ratio": number * size * 4 / stored_bytes if stored_bytes else None,
            **_inference(heard, counted),
        }
    return found


def _stored(connection: Connection, region: str) -> tuple[int, int]:
    total = func.coalesce(func.sum(schema.update.c.size_bytes), 0)
    query = select(func.count().label("number"), total.label("size")).where(schema.update.c.region == region)
    row = connection.execute(query).one()
    return row.number, int(row.size)  # PostgreSQL sums to a Decimal


def _in_round(connection: Connection, one: Round | None, now_s: float) -> dict[str, Any]:
    if one is None:
        return {"state": None, "members": 0, "received": 0, "received_from": [], "target": 0, "training": 0}
    number, region = one.plan.round, one.plan.region
    mine = (schema.member.c.round == number) & (schema.member.c.region == region)
    members = [
        text.partition(":")[0]
        for text in connection.execute(select(schema.member.c.update_id).where(mine)).scalars()
    ]
    waiting = store_updates.pending(connection, round_=number, region=region)
    senders = sorted({*members, *(id_.vehicle for id_ in waiting)})
    leases = [
        each
        for each in store_vehicles.presences(connection)
        if each.region == region and each.lease_round == number and each.lease_until_s > now_s
    ]
    return {
        "state": one.state,
        "members": len(members),
        "received": len(senders),
        "received_from": senders,
        "target": len(one.target if one.contributors is None else one.contributors),
        "training": sum(each.online and each.vehicle not in senders for each in leases),
    }


def _inference(metrics: Iterable[Metrics], totals: Iterable[Mapping[str, int]]) -> dict[str, Any]:
    """Sums of counters; the middle vehicle's median latency and the worst vehicle's 99th percentile."""
    heard = list(metrics)
    running = [each for each in heard if each.frames]
    counted = list(totals)
    return {
        **{name: sum(each[name] for each in counted) for name in COUNTED},
        "p50_ms": median(each.p50_ms for each in running) if running else None,
        "p99_ms": max((each.p99_ms for each in running), default=None),
    }


def _primary(scores: Scores, metric: Metric) -> dict[str, float | None]:
    by_region = views.means({0: scores})[0]
    return {region: means[metric.name] for region, means in by_region.items() if metric.name in means}


def _history(connection: Connection, metric: Metric) -> list[dict[str, Any]]:
    return [
        {
            **{name: one[name] for name in ("version", "round", "created_at_s", "metrics")},
            "scores": {region: means[metric.name] for region, means in one["metrics"].items()},
        }
        for one in views.models(connection)
    ]


def _quarantine(connection: Connection) -> list[dict[str, Any]]:
    """The newest refused messages, the oldest of them first, without their bytes."""
    newest = store_quarantine.quarantined(connection, limit=QUARANTINE_SHOWN)
    return [{name: value for name, value in vars(one).items() if name != "head"} for one in reversed(newest)]
