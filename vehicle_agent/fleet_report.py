"""What the vehicles of a fleet process did, as one JSON value. Vehicles that share drives are marked: no accuracy."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedfleet.models.task import Task, added
from fedfleet.vehicle_agent.config import FleetConfig, VehicleEntry
from fedfleet.vehicle_agent.vehicle import Vehicle

__all__ = ["report", "words"]


def report(
    config: FleetConfig,
    task: Task,
    vehicles: Sequence[Vehicle],
    *,
    rss_bytes: int,
    relay: Mapping[str, int],
) -> dict[str, Any]:
    """Return the figures of every vehicle and of all; journals must be open.

    ``metrics`` are those of the active models on the vehicles' own drives; None when some vehicles share theirs.
    """
    rows = [_row(config, entry, vehicle) for entry, vehicle in zip(config.vehicles, vehicles, strict=True)]
    sharing = sum(entry.sharers > 1 for entry in config.vehicles)
    told = added([vehicle.parts.replay.figures().scores for vehicle in vehicles])
    metrics = None if sharing else {each.name: each.value(told) for each in task.metrics}
    names = ("trainings", "updates", "bytes_up", "bytes_down", "frames", "missed", "swaps")
    return {
        "task": task.name,
        "load_run": bool(sharing),
        "vehicles_that_share_drives": sharing,
        "metrics": metrics,
        "total": {name: sum(row[name] for row in rows) for name in names} | {"vehicles": len(rows)},
        "rss_bytes": rss_bytes,
        "relay": dict(relay),
        "vehicles": rows,
    }


def words(told: Mapping[str, Any]) -> str:
    """Return one line of it for a person."""
    total = told["total"]
    line = f"{total['vehicles']} vehicles, {total['trainings']} trainings, {total['updates']} updates"
    if told["load_run"]:
        return f"{line}; load run: {told['vehicles_that_share_drives']} share their drives, so no accuracy is told"
    known = {name: value for name, value in (told["metrics"] or {}).items() if value is not None}
    return "; ".join([line, *(f"{name} {value:.3g}" for name, value in known.items())])


def _row(config: FleetConfig, entry: VehicleEntry, vehicle: Vehicle) -> dict[str, Any]:
    state, figures, profile = vehicle.state, vehicle.parts.replay.figures(), config.profile(entry.vehicle)
    kinds = [name for name, each in config.profiles.items() if each == profile]
    return {
        "vehicle": vehicle.name,
        "region": state.region,
        "profile": kinds[0] if kinds else "",
        "data": entry.data_dir.name,
        "shares_drives_with": entry.sharers - 1,
        "eligible": state.verdict.eligible,
        "reasons": list(state.verdict.reasons),
        "base_version": state.base.version if state.base else None,
        "active_version": state.active.version if state.active else None,
        "trainings": vehicle.parts.tuning.trainings,
        "updates": vehicle.parts.journal.next_id.sequence - 1,
        "bytes_up": vehicle.bytes_up,
        "bytes_down": vehicle.bytes_down,
        "frames": figures.frames,
        "missed": figures.missed,
        "swaps": figures.swaps,
        "refusals": dict(vehicle.refusals),
    }
