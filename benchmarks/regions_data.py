"""Scenario tables of roads that differ: the US-101 motorway and a city street of NGSIM, with Argoverse districts.

    FEDFLEET_DATA=… python benchmarks/regions_data.py --out FOLDER

Reads the CommonRoad files of NGSIM (50 frames from every 2 s on; every vehicle that is seen in all of them is judged)
and Argoverse districts as they are, and writes a table for each region, for `benchmarks/regions.py --scenarios FOLDER`.
Files of one overlap group show the same seconds: they are one drive. For development: the data are not ours to ship.
"""

from __future__ import annotations

import argparse
import csv
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np

from fedfleet.scenarios.reading import open_recordings, stream
from fedfleet.scenarios.records import Scenario
from fedfleet.scenarios.table import write_table

ROADS = {"US101": "us-101", "Lankershim": "lankershim"}
WINDOW, STRIDE, RATE_HZ = 50, 20, 10.0
MOST_PER_DISTRICT = 300


def tracks(data: bytes) -> dict[str, dict[int, tuple[float, float]]]:
    """Return each vehicle's positions in metres by time step."""
    found: dict[str, dict[int, tuple[float, float]]] = {}
    for obstacle in ET.fromstring(data).iter("dynamicObstacle"):  # noqa: S314
        states = [*obstacle.findall("initialState"), *obstacle.findall("trajectory/state")]
        own = found.setdefault(obstacle.attrib["id"], {})
        for state in states:
            x, y = (float(state.findtext(f"position/point/{axis}", "nan")) for axis in "xy")
            own[int(float(state.findtext("time/exact", "-1")))] = (x, y)
    return found


def windows(name: str, data: bytes, *, region: str, drive: str) -> Iterator[Scenario]:
    """Return a file's windows in which some vehicle is seen in every frame."""
    seen = tracks(data)
    last = max((step for own in seen.values() for step in own), default=-1)
    for start in range(0, last - WINDOW + 2, STRIDE):
        steps = range(start, start + WINDOW)
        whole = sorted(track for track, own in seen.items() if all(step in own for step in steps))
        if whole:
            xy = np.array([[seen[track][step] for step in steps] for track in whole], dtype=np.float64)
            kinds = ("AGENT",) * len(whole)
            yield Scenario(
                f"{name}-{start}", region, drive, RATE_HZ, start / RATE_HZ, tuple(whole), kinds, xy
            )


def ngsim(folder: Path) -> Iterator[Scenario]:
    """Return the windows of both roads."""
    with (folder / "index.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["location"] in ROADS]
    for row in rows:
        with zipfile.ZipFile(folder / f"{row['location']}.zip") as archive:
            data = archive.read(row["file"])
        yield from windows(row["file"], data, region=ROADS[row["location"]], drive=row["overlap_group"])


def argoverse(folder: Path, districts: tuple[str, ...]) -> Iterator[Scenario]:
    """Return the scenarios of some districts, whole drives until there are enough of a district."""
    taken = dict.fromkeys(districts, 0)
    for key, drive in sorted(open_recordings(folder).drives.items()):
        if drive.region in taken and taken[drive.region] < MOST_PER_DISTRICT:
            taken[drive.region] += drive.recordings
            yield from stream(folder, [key])


def main() -> None:
    """Write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--districts", default="mia-e,pit-w")
    given = parser.parse_args()
    data = Path(os.environ["FEDFLEET_DATA"])
    regions: dict[str, list[Scenario]] = {}
    recorded = argoverse(data / "argoverse1", tuple(given.districts.split(",")))
    for scenario in (*ngsim(data / "commonroad-ngsim"), *recorded):
        regions.setdefault(scenario.region, []).append(scenario)
    given.out.mkdir(parents=True, exist_ok=True)
    for region, scenarios in regions.items():
        write_table(given.out / f"{region}.parquet", scenarios)
        judged = sum(kind == "AGENT" for one in scenarios for kind in one.kinds)
        drives = len({one.drive for one in scenarios})
        print(f"{region}: {len(scenarios)} scenarios of {drives} drives, {judged} judged tracks")


if __name__ == "__main__":
    main()
