"""The table of the server's metrics, and those of them that are read from the store: pure values, no exporter.

Names and units follow the Prometheus conventions. Labels are regions, states, reasons and metric names, all bounded;
a vehicle is never a label.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection, func, select

from fedfleet.fleet_server import schema, store_models, store_rounds, store_updates, views
from fedfleet.protocol.printable import printable

__all__ = ["KINDS", "OTHER", "REASONS", "STEPS", "TABLE", "Family", "Sample", "read"]

OTHER = "other"
REASONS = 64
"""Reasons of refusal that are told apart; the rest, which is rare, is counted as "other"."""
KINDS = ("update", "status", "metrics", "request", OTHER)
STEPS = {
    "commit": "fedfleet_store_commit_seconds",
    "fold": "fedfleet_fold_seconds",
    "gate": "fedfleet_gate_seconds",
}


@dataclass(frozen=True)
class Family:
    """A metric: its name, kind, meaning and labels."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    meaning: str
    labels: tuple[str, ...] = ()


TABLE: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family("fedfleet_updates_stored_total", "counter", "updates made durable since the store was made"),
        Family("fedfleet_updates_duplicate_total", "counter", "updates that came again and were absorbed"),
        Family(
            "fedfleet_messages_refused_total",
            "counter",
            "messages refused, since the store was made",
            ("reason",),
        ),
        Family(
            "fedfleet_messages_dropped_total",
            "counter",
            "messages above their vehicle's rate or at QoS 0, never opened",
        ),
        Family(
            "fedfleet_internal_errors_total",
            "counter",
            "messages whose handling failed by a mistake of ours: put aside, the others go on",
        ),
        Family("fedfleet_quarantine_messages", "gauge", "refused messages kept for inspection"),
        Family("fedfleet_rounds", "gauge", "rounds in the store by where they are", ("region", "state")),
        Family("fedfleet_round_number", "gauge", "number of the newest round", ("region",)),
        Family(
            "fedfleet_round_opened_timestamp_seconds",
            "gauge",
            "when the newest round was opened",
            ("region",),
        ),
        Family("fedfleet_round_updates", "gauge", "updates stored for the newest round", ("region",)),
        Family("fedfleet_vehicles_enrolled", "gauge", "vehicles that may take part", ("region",)),
        Family("fedfleet_vehicles_online", "gauge", "vehicles whose status is ONLINE", ("region",)),
        Family("fedfleet_vehicles_denied", "gauge", "vehicles on the deny-list"),
        Family(
            "fedfleet_shared_ids_total",
            "counter",
            "signs that two processes use one vehicle's id, since the store was made",
        ),
        Family("fedfleet_shared_id_timestamp_seconds", "gauge", "when such a sign was last seen; 0: never"),
        Family("fedfleet_model_version", "gauge", "newest published version"),
        Family("fedfleet_model_created_timestamp_seconds", "gauge", "when the newest version was published"),
        Family("fedfleet_release_version", "gauge", "version that drives"),
        Family("fedfleet_gate_refused_total", "counter", "versions that the gate refused"),
        Family(
            "fedfleet_validation_score",
            "gauge",
            "mean score of the newest version on validation drives, in the task's unit",
            ("region", "metric"),
        ),
        Family(
            "fedfleet_baseline_score", "gauge", "the same of the task's trivial answer", ("region", "metric")
        ),
        Family(
            "fedfleet_store_readable", "gauge", "1, or 0 when the store could not be read for this scrape"
        ),
        Family(
            "fedfleet_store_writable", "gauge", "0 while it cannot be written; then nothing is acknowledged"
        ),
        Family(
            "fedfleet_store_commit_seconds", "histogram", "commit of a transaction, with its sync to disk"
        ),
        Family("fedfleet_fold_seconds", "histogram", "fold of one region's round"),
        Family(
            "fedfleet_gate_seconds", "histogram", "merge, server optimizer, encoding and gate of one version"
        ),
        Family(
            "fedfleet_received_messages_total", "counter", "messages from the broker, this run", ("kind",)
        ),
        Family("fedfleet_received_bytes_total", "counter", "their payload bytes", ("kind",)),
        Family("fedfleet_queue_depth", "gauge", "events from the broker that wait for the server"),
        Family(
            "fedfleet_queue_refused_total", "counter", "events that had to wait outside: the queue was full"
        ),
        Family("fedfleet_broker_connected", "gauge", "1 while the broker is connected"),
    )
}
"""Every metric that the server has, by name, besides ``process_*`` (the exporter's own)."""


@dataclass(frozen=True)
class Sample:
    """A value of a metric of the table."""

    name: str
    value: float
    labels: tuple[str, ...] = ()


def read(connection: Connection, regions: Sequence[str]) -> Iterator[Sample]:
    """Yield what the store says now, with a value for every configured region."""
    yield from _updates(connection)
    yield from _rounds(connection, regions)
    yield from _vehicles(connection, regions)
    yield from _models(connection)


def _updates(connection: Connection) -> Iterator[Sample]:
    counters = store_updates.counters(connection)
    yield Sample("fedfleet_updates_stored_total", store_updates.audit_head(connection)[0])
    yield Sample("fedfleet_updates_duplicate_total", counters.get("duplicates", 0))
    dropped = sum(number for name, number in counters.items() if name.startswith("dropped:"))
    yield Sample("fedfleet_messages_dropped_total", dropped)
    yield Sample("fedfleet_internal_errors_total", counters.get("refused:internal-error", 0))
    yield Sample("fedfleet_gate_refused_total", counters.get("gate:refused", 0))
    refused: Counter[str] = Counter()
    for name, number in counters.items():
        if name.startswith("refused:"):
            refused[printable(name.partition(":")[2])] += number
    named = sorted(refused, key=lambda reason: (-refused[reason], reason))[:REASONS]
    for reason in sorted(named):
        yield Sample("fedfleet_messages_refused_total", refused[reason], (reason,))
    rest = refused.total() - sum(refused[reason] for reason in named)
    if rest:
        yield Sample("fedfleet_messages_refused_total", rest, (OTHER,))
    kept = connection.execute(select(func.count()).select_from(schema.quarantine)).scalar_one()
    yield Sample("fedfleet_quarantine_messages", kept)


def _rounds(connection: Connection, regions: Sequence[str]) -> Iterator[Sample]:
    table = schema.round_
    query = select(table.c.region, table.c.state, func.count()).group_by(table.c.region, table.c.state)
    for region, state, number in connection.execute(query.order_by(table.c.region, table.c.state)):
        yield Sample("fedfleet_rounds", number, (region, state))
    current = store_rounds.current(connection)
    for region in regions:
        one = current.get(region)
        yield Sample("fedfleet_round_number", one.plan.round if one else 0, (region,))
        if one is not None:
            yield Sample("fedfleet_round_opened_timestamp_seconds", one.plan.opened_at_s, (region,))
            mine = (schema.update.c.round == one.plan.round) & (schema.update.c.region == region)
            stored = connection.execute(select(func.count()).select_from(schema.update).where(mine))
            yield Sample("fedfleet_round_updates", stored.scalar_one(), (region,))


def _vehicles(connection: Connection, regions: Sequence[str]) -> Iterator[Sample]:
    table = schema.vehicle
    columns = (table.c.region, table.c.denied, table.c.state)
    enrolled: Counter[str] = Counter()
    online: Counter[str] = Counter()
    denied = 0
    for region, is_denied, state, number in connection.execute(
        select(*columns, func.count()).group_by(*columns)
    ):
        place = region if region in regions else OTHER
        denied += number if is_denied else 0
        enrolled[place] += 0 if is_denied else number
        online[place] += number if state == "ONLINE" and not is_denied else 0
    for region in (*regions, *([OTHER] if OTHER in enrolled else [])):
        yield Sample("fedfleet_vehicles_enrolled", enrolled[region], (region,))
        yield Sample("fedfleet_vehicles_online", online[region], (region,))
    yield Sample("fedfleet_vehicles_denied", denied)
    yield Sample("fedfleet_shared_ids_total", store_updates.counters(connection).get("shared-id", 0))
    last_s = connection.execute(select(func.max(table.c.shared_at_s))).scalar_one()
    yield Sample("fedfleet_shared_id_timestamp_seconds", last_s or 0.0)


def _models(connection: Connection) -> Iterator[Sample]:
    version, release = store_models.newest_version(connection), store_models.newest_release(connection)
    if release is not None:
        yield Sample("fedfleet_release_version", release.version)
    if version is None:
        return
    yield Sample("fedfleet_model_version", version)
    query = select(schema.model.c.created_at_s).where(schema.model.c.version == version)
    yield Sample("fedfleet_model_created_timestamp_seconds", connection.execute(query).scalar_one())
    for name, of in (
        ("fedfleet_validation_score", version),
        ("fedfleet_baseline_score", store_models.BASELINE),
    ):
        means = views.means({of: store_models.scores(connection, of)})[of]
        for region, by_metric in means.items():
            for metric, mean in by_metric.items():
                if mean is not None:
                    yield Sample(name, mean, (region, metric))
