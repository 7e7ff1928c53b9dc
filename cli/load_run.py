"""As many simulated vehicles as are asked for: where there are fewer drives than vehicles, several get the same.

Such a run says what a fleet costs, not what it learns: who shares drives is marked, and tells no accuracy.
"""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedfleet.cli.config import Settings
from fedfleet.cli.data import Job
from fedfleet.cli.launch import server_dir, server_place
from fedfleet.models import task as tasks
from fedfleet.protocol.errors import UsageError
from fedfleet.scenarios.partition import partition
from fedfleet.vehicle_agent import keys
from fedfleet.vehicle_agent.config import VehicleEntry

__all__ = ["MOST", "Placed", "deal", "entries", "jobs", "register", "wanted"]

MOST = 2000


@dataclass(frozen=True)
class Placed:
    """A vehicle's region and drives, and the folder that holds them prepared, perhaps for others too."""

    region: str
    drives: tuple[str, ...]
    folder: Path


def wanted(text: str | None) -> int | None:
    """Return the number of vehicles when that is what was asked for, None for names; UsageError beyond MOST."""
    if text is None or not text.strip().isdecimal():
        return None
    number = int(text)
    if not 1 <= number <= MOST:
        raise UsageError(f"--vehicles {text}: expected 1 to {MOST}, or names separated by commas")
    return number


def deal(settings: Settings, scenarios: Path, number: int) -> Mapping[str, Placed]:
    """Return so many vehicles, evenly over the regions; training drives are shared only where there are too few.

    Validation and test drives are those of every other command with the same configuration.
    """
    index, data = tasks.load(settings.task).index(scenarios), settings.data
    regions = sorted({drive.region for drive in index.drives})
    each, over = divmod(number, len(regions))
    sizes = {region: each + (place < over) for place, region in enumerate(regions)}
    parts = partition(
        index.drives,
        vehicles=sizes,
        seed=data.seed,
        fractions=(1.0 - data.validation - data.test, data.validation, data.test),
        fewer=True,
    )
    root = settings.work_dir / "data" / f"fleet-{number}"
    sources: dict[str, list[Placed]] = {region: [] for region in regions}
    for name, (region, drives) in parts.vehicles.items():
        sources[region].append(Placed(region, drives, root / name))
    placed: dict[str, Placed] = {}
    width = max(2, len(str(number)))
    for region in regions:
        for place in range(sizes[region]):
            name = f"v{len(placed) + 1:0{width}d}"
            placed[name] = sources[region][place % len(sources[region])]
    return placed


def jobs(placed: Mapping[str, Placed]) -> list[Job]:
    """Return what must be prepared, each folder once."""
    folders = {each.folder: each for each in placed.values()}
    return [Job(folder, each.drives, ("train", "frames")) for folder, each in sorted(folders.items())]


def entries(placed: Mapping[str, Placed]) -> tuple[VehicleEntry, ...]:
    """Return the vehicles as the fleet process takes them, marked where they share."""
    sharers = Counter(each.folder for each in placed.values())
    return tuple(
        VehicleEntry(vehicle=name, data_dir=each.folder, sharers=sharers[each.folder])
        for name, each in placed.items()
    )


def register(settings: Settings, placed: Mapping[str, Placed]) -> str:
    """Enrol all vehicles at the server on this machine, as an operator would by hand; return the server's key.

    Raises UsageError when no server has ever run here with this configuration.
    """
    from fedfleet.fleet_server import registry

    public = server_dir(settings) / "server.pub"
    if not public.is_file():
        told = f"{len(placed)} vehicles are enrolled at the server's store on this machine, but {public} is not there"
        raise UsageError(f"{told}: start `fedfleet server` with this configuration first")
    rows = {
        name: (each.region, keys.load_or_create(settings.work_dir / "vehicles" / name).public)
        for name, each in placed.items()
    }
    registry.enrol_all(server_place(settings), rows, now_s=time.time())
    return public.read_text(encoding="ascii").strip()
