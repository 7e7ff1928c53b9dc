"""Generate the SUMO pack: simulate every region, cut scenarios, write tables and `pack.json`.

May live here: the order of the work. `sumo_run` simulates in a process of its own, `sumo_cut` chooses and cuts,
`table` writes. The same seed and the same versions of SUMO and numpy give the same table hash.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from fedfleet.models import extras
from fedfleet.models.interpreter import module_command
from fedfleet.scenarios.pack import PACK_FILE, TABLE_VERSION, sumo_pack
from fedfleet.scenarios.records import Scenario, ScenarioError
from fedfleet.scenarios.sumo_cut import FRAMES, RATE_HZ, SCENARIOS, Drive, Window, cut
from fedfleet.scenarios.sumo_traffic import REGIONS, Region, routes
from fedfleet.scenarios.table import table_sha256, write_table

__all__ = ["DRIVES_PER_RUN", "RUNS", "SEED", "drives", "generate"]

SEED: Final = 1
RUNS: Final = 3
DRIVES_PER_RUN: Final = 6

_WINDOW_S: Final = SCENARIOS * FRAMES / RATE_HZ
_PAUSE_S: Final = 20.0

Progress = Callable[[int, int, str], None]


def generate(out_dir: Path, *, seed: int = SEED, progress: Progress | None = None) -> dict[str, Any]:
    """Write the whole pack into `out_dir` and return what `pack.json` says; about four minutes on one core.

    `progress(done, total, text)` is called after each drive. Raises UsageError when libsumo is not installed,
    ScenarioError when a simulation fails; files already written stay, `pack.json` is written last.
    """
    _require_libsumo()
    out_dir.mkdir(parents=True, exist_ok=True)
    _copy_networks(out_dir)
    total = len(REGIONS) * RUNS * DRIVES_PER_RUN
    done, scenarios, regions = 0, [], {}
    for region in REGIONS.values():
        made = []
        for run in range(RUNS):
            for drive in drives(region, run, seed=seed):
                made.append(drive)
                done += 1
                if progress is not None:
                    progress(done, total, f"{region.name}: {drive.name}")
        here = [scenario for drive in made for scenario in drive.scenarios]
        table_hash = write_table(out_dir / f"{region.name}.parquet", here, version=TABLE_VERSION)
        regions[region.name] = _summary(made, table_hash)
        scenarios += here
    return _write_manifest(out_dir, seed=seed, scenarios=scenarios, regions=regions)


def drives(region: Region, run: int, *, seed: int = SEED, count: int = DRIVES_PER_RUN) -> Iterator[Drive]:
    """The first `count` drives of one simulation run, one after the other; each is the same for any count.

    Drives of a run follow each other in time with a pause, runs have traffic of their own: no two drives share
    a moment of the same traffic.
    """
    _require_libsumo()
    net = sumo_pack() / "networks" / f"{region.name}.net.xml.gz"
    starts = [region.warm_up_s + i * (_WINDOW_S + _PAUSE_S) for i in range(DRIVES_PER_RUN)]
    place = list(REGIONS).index(region.name)
    with tempfile.TemporaryDirectory(prefix="fedfleet-sumo-") as folder:
        trips = Path(folder) / "trips.rou.xml"
        rng = np.random.default_rng([seed, place, run])
        trips.write_text(routes(region, net, run=run, until_s=starts[-1] + _WINDOW_S, rng=rng))
        order = {
            "net": str(net),
            "routes": str(trips),
            "seed": int(np.random.SeedSequence([seed, place, run]).generate_state(1)[0] % 2**31),
            "windows": [[start, start + _WINDOW_S] for start in starts[:count]],
            "out": folder,
        }
        for number in _simulate(order):
            window = _load(Path(folder) / f"{number}.npz", starts[number])
            name = f"{region.name}-{run * DRIVES_PER_RUN + number:02d}"
            yield cut(
                window, region=region.name, name=name, rng=np.random.default_rng([seed, place, run, number])
            )


def _require_libsumo() -> None:
    extras.need("libsumo", what="scenario generation")


def _simulate(order: dict[str, Any]) -> Iterator[int]:
    """Numbers of the windows as their files become ready."""
    command = module_command("fedfleet.scenarios.sumo_run")
    log = Path(order["out"]) / "errors.txt"
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as child,
    ):
        try:
            if child.stdin is None or child.stdout is None:
                raise ScenarioError("simulation-failed", "no pipes to the SUMO process")
            child.stdin.write(json.dumps(order) + "\n")
            child.stdin.close()
            for line in child.stdout:
                if line.startswith("window "):
                    yield int(line.split()[1])
            status = child.wait()
        finally:
            child.kill()
    if status:
        last = [*log.read_text(errors="replace").strip().splitlines(), "no message"][-2:][0]
        raise ScenarioError("simulation-failed", f"SUMO process ended with status {status}: {last:.200}")


def _load(file: Path, start_s: float) -> Window:
    with np.load(file, allow_pickle=False) as data:
        ids, lanes = (tuple(str(name) for name in data[key]) for key in ("ids", "lanes"))
        return Window(ids, data["cube"], lanes, start_s)


def _summary(made: list[Drive], table_hash: str) -> dict[str, Any]:
    scenarios = [scenario for drive in made for scenario in drive.scenarios]
    totals = {name: sum(drive.manoeuvres[name] for drive in made) for name in made[0].manoeuvres}
    return {
        "drives": len(made),
        "scenarios": len(scenarios),
        "tracks": sum(len(scenario.track_ids) for scenario in scenarios),
        "agents": sum(totals.values()),
        "agent_manoeuvres": totals,
        "table_sha256": table_hash,
        "drive_sha256": {drive.name: table_sha256(drive.scenarios, version=TABLE_VERSION) for drive in made},
    }


def _write_manifest(
    out: Path, *, seed: int, scenarios: list[Scenario], regions: dict[str, Any]
) -> dict[str, Any]:
    manifest = {
        "name": "sumo",
        "version": 1,
        "licence": "Apache-2.0",
        "made_with": {name: importlib.metadata.version(name) for name in ("libsumo", "numpy")},
        "seed": seed,
        "rate_hz": RATE_HZ,
        "frames": FRAMES,
        "table_sha256": table_sha256(scenarios, version=TABLE_VERSION),
        "regions": regions,
    }
    part = out / f"{PACK_FILE}.part"
    part.write_text(json.dumps(manifest, indent=1) + "\n")
    part.replace(out / PACK_FILE)
    return manifest


def _copy_networks(out: Path) -> None:
    source, target = sumo_pack() / "networks", out / "networks"
    if source.resolve() != target.resolve():
        shutil.copytree(source, target, dirs_exist_ok=True)
