"""What vehicles count since their start, summed up over their restarts: a total never falls.

A vehicle's metrics begin at 0 with its process. When one of its counters is less than it last was, the process is
another, and what the one before had counted is kept beside the metrics (column `metrics_before`).
"""

import json
from typing import Final

from sqlalchemy import Connection, select

from fedfleet.fleet_server.schema import vehicle
from fedfleet.protocol.errors import PeerError
from fedfleet.protocol.messages import Metrics, decode

__all__ = ["COUNTERS", "kept", "stored", "totals"]

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
    last = stored(row.metrics, row.id)
    if last is None or all(getattr(new, name) >= getattr(last, name) for name in COUNTERS):
        return str(row.metrics_before) if row.metrics_before else None
    before = _before(row.metrics_before)
    return json.dumps({name: min(MOST, before.get(name, 0) + getattr(last, name)) for name in COUNTERS})


def totals(connection: Connection) -> dict[str, dict[str, int]]:
    """Return the counters of every vehicle that sent metrics, over all of its processes."""
    columns = (vehicle.c.id, vehicle.c.metrics, vehicle.c.metrics_before)
    found = {}
    for row in connection.execute(select(*columns).where(vehicle.c.metrics.is_not(None))):
        last, before = stored(row.metrics, row.id), _before(row.metrics_before)
        if last is not None:
            found[str(row.id)] = {name: before.get(name, 0) + getattr(last, name) for name in COUNTERS}
    return found


def stored(data: bytes, name: str) -> Metrics | None:
    """Return the metrics that are stored of a vehicle; None for what an earlier version took and this one refuses.

    The vehicle's next message replaces it.
    """
    try:
        return decode(Metrics, data, sender=name)
    except PeerError:
        return None


def _before(text: str | None) -> dict[str, int]:
    return {name: int(number) for name, number in json.loads(text).items()} if text else {}
