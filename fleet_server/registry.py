"""Changes to the registry of vehicles by an operator's command, beside a running server or before its first start."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedfleet.fleet_server import store_vehicles
from fedfleet.fleet_server.store import Store, open_store
from fedfleet.fleet_server.store_postgres import Address

__all__ = ["Place", "deny", "enrol", "enrol_all"]


@dataclass(frozen=True)
class Place:
    """Where a server keeps its store, and whose it is."""

    data_dir: Path
    fleet: str
    task: str
    address: Address | None = None


def enrol(
    place: Place, vehicle: str, *, region: str, public_key: bytes, now_s: float, replace: bool = False
) -> None:
    """Register a vehicle's key and region in the store; UsageError as ``store_vehicles.enrol``."""
    enrol_all(place, {vehicle: (region, public_key)}, now_s=now_s, replace=replace)


def enrol_all(
    place: Place, vehicles: Mapping[str, tuple[str, bytes]], *, now_s: float, replace: bool = False
) -> None:
    """Register regions and keys of many vehicles, all or none; UsageError as ``store_vehicles.enrol``."""
    store = _open(place)
    try:
        with store.write() as connection:
            for vehicle, (region, public_key) in vehicles.items():
                store_vehicles.enrol(
                    connection, vehicle, region=region, public_key=public_key, now_s=now_s, replace=replace
                )
    finally:
        store.close()


def deny(place: Place, vehicle: str, *, denied: bool) -> None:
    """Put a vehicle on the deny-list, or take it off; UsageError when it is not enrolled."""
    store = _open(place)
    try:
        with store.write() as connection:
            store_vehicles.deny(connection, vehicle, denied=denied)
    finally:
        store.close()


def _open(place: Place) -> Store:
    return open_store(
        place.data_dir, fleet=place.fleet, task=place.task, address=place.address, exclusive=False
    )
