"""What vehicles count since their start, summed up over their restarts: a total never falls.

A vehicle's metrics begin at 0 with its process. When one of its counters is less than it last was, the process is
another, and what the one before had counted is kept beside the metrics (column `metrics_before`).
"""

import json
from typing import Final

from sqlalchemy import Connection, select

from fedfleet.fleet_server.schema import vehicle
from fedfleet.protocol.messages import Metrics, decode

__all__ = ["COUNTERS", "kept", "totals"]

COUNTERS: Final = (
    "frames",
    "missed",
    "missed_in_swap",
    "swaps",
    "bytes_up",
    "bytes_down",
    "trainings",
    "late",
    "guard_pauses",
    "shadow_answers",
    "shadow_disagreed",
)
MOST: Final = 2**63 - 1


def kept(connection: Connection, new: Metrics) -> str | None:
    """Return the value of `metrics_before` that belongs to a vehicle's new metrics, which are not stored yet."""
    columns = (vehicle.c.id, vehicle.c.metrics, vehicle.c.metrics_before)
    row = connection.execute(select(*columns).where(vehicle.c.id == new.vehicle)).one_or_none()
    if row is None or row.metrics is None:
        return None
    last = decode(Metrics, row.metrics, sender=row.id)
    if all(getattr(new, name) >= getattr(last, name) for name in COUNTERS):
        return str(row.metrics_before) if row.metrics_before else None
    before = _before(row.metrics_before)
    return json.dumps({name: min(MOST, before.get(name, 0) + getattr(last, name)) for name in COUNTERS})


def totals(connection: Connection) -> dict[str, dict[str, int]]:
    """Return the counters of every vehicle that sent metrics, over all of its processes."""
    columns = (vehicle.c.id, vehicle.c.metrics, vehicle.c.metrics_before)
    found = {}
    for row in connection.execute(select(*columns).where(vehicle.c.metrics.is_not(None))):
        last, before = decode(Metrics, row.metrics, sender=row.id), _before(row.metrics_before)
        found[str(row.id)] = {name: before.get(name, 0) + getattr(last, name) for name in COUNTERS}
    return found


def _before(text: str | None) -> dict[str, int]:
    return {name: int(number) for name, number in json.loads(text).items()} if text else {}
