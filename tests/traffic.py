"""Small made-up traffic for tests: scenarios as records and as a folder of tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedfleet.scenarios.records import Scenario
from fedfleet.scenarios.table import write_table


def scenario(
    name: str = "s0",
    *,
    region: str = "town",
    drive: str = "d00",
    tracks: int = 6,
    frames: int = 50,
    seed: int = 0,
) -> Scenario:
    """Cars on circles of different radius: what lies ahead is not where constant velocity points."""
    chance = np.random.default_rng([seed, *name.encode(), *region.encode(), *drive.encode()])
    time = np.arange(frames) * 0.1
    speed = chance.uniform(3, 15, (tracks, 1))
    turn = chance.choice([-1, 1], (tracks, 1)) / chance.uniform(10, 40, (tracks, 1))
    angle = chance.uniform(-np.pi, np.pi, (tracks, 1)) + speed * turn * time
    xy = np.stack([np.sin(angle), -np.cos(angle)], axis=-1) / turn[..., None] + chance.uniform(
        -50, 50, (tracks, 1, 2)
    )
    ids = tuple(f"t{i}" for i in range(tracks))
    kinds = ("AV", *("AGENT" if i % 2 else "OTHERS" for i in range(1, tracks)))
    return Scenario(name, region, drive, 10.0, 0.0, ids, kinds, xy)


def write_folder(folder: Path, *, regions: tuple[str, ...] = ("town", "coast"), drives: int = 6) -> Path:
    """A folder with one table per region, two scenarios in each drive."""
    folder.mkdir(parents=True, exist_ok=True)
    for region in regions:
        names = [(f"d{drive:02d}", f"s{number}") for drive in range(drives) for number in range(2)]
        write_table(folder / f"{region}.parquet", [scenario(s, region=region, drive=d) for d, s in names])
    return folder
