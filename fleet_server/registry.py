"""Changes to the registry of vehicles by an operator's command, beside a running server or before its first start."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedfleet.fleet_server import store_codes, store_vehicles
from fedfleet.fleet_server.store import START, Store, open_reader, open_store
from fedfleet.fleet_server.store_postgres import Address
from fedfleet.fleet_server.store_properties import properties
from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.ids import SERVER, check_id

__all__ = ["Place", "deny", "enrol", "enrol_all", "make_code"]


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


def make_code(
    place: Place, vehicle: str, *, region: str | None, secret: str, now_s: float, expires_at_s: float
) -> str:
    """Keep a one-time code with which a vehicle may enrol until a time, once; return its region.

    The code before it is void. An enrolled vehicle may take it to enrol with a new key; it stays in its region when
    none is given. Raises UsageError for a store that is not there, a denied vehicle, an unknown region, or none.
    """
    open_reader(place.data_dir).close()  # a code for a fleet that is not there would make one
    store = _open(place)
    try:
        with store.write() as connection:
            if check_id(vehicle, "vehicle") == SERVER:
                raise UsageError(f"vehicle id {vehicle!r} is the server's own name")
            if vehicle in store_vehicles.keyring(connection).denied:
                raise UsageError(
                    f"vehicle {vehicle} is on the deny-list: `fedfleet server deny {vehicle} --undo` first"
                )
            known = tuple(json.loads(properties(connection).get(START, "{}")).get("regions", ()))
            where = _region(vehicle, region, known, store_vehicles.regions(connection).get(vehicle))
            store_codes.make(
                connection, vehicle, region=where, secret=secret, now_s=now_s, expires_at_s=expires_at_s
            )
            store_vehicles.restamp(connection)
    finally:
        store.close()
    return where


def _region(vehicle: str, told: str | None, known: Sequence[str], present: str | None) -> str:
    if told is None and present is not None:
        return present
    if told is None and len(known) == 1:
        return known[0]
    among = f", one of {', '.join(known)}" if known else ""
    if told is None:
        raise UsageError(f"--region: expected the region of {vehicle}{among}; it is not enrolled yet")
    if known and told not in known:
        raise UsageError(f"--region {told}: unknown region, expected one of {', '.join(known)}")
    return check_id(told, "region")


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
