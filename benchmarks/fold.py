"""How fast a region folds, and in how much memory: every rule and server optimizer, each in a process of its own.

    python benchmarks/fold.py [--updates 500] [--parameters 1000000] [--only NAME,…] [--quick] [--json]

`updates_per_s` counts payloads from bytes to the aggregate (decoded, checked, folded) by seconds of a core; `ms_total`
is the wall time with one step of the optimizer; of up to five folds in two seconds the fastest counts. `rss_mb` is
the largest resident memory of the process, interpreter and libraries included, of which `base_mb` were there before
the first payload. Payloads are top 1 %, sign and mean; where a rule needs the same coordinates of all, the plan's
(`common`). They come one by one from a file, as the store gives them.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fedfleet.codec import payload
from fedfleet.codec.parts import Parts
from fedfleet.codec.settings import Settings
from fedfleet.fleet_server.config import StrategyConfig
from fedfleet.fleet_server.fold import fold_key
from fedfleet.fleet_server.merge import merge, merge_controls
from fedfleet.fleet_server.region_fold import Member, Members, fold_members
from fedfleet.protocol.ids import UpdateId

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedavgm": {"momentum": 0.9},
    "fedadam": {},
    "fedyogi": {},
    "fedadagrad": {},
    "fedprox": {},
    "scaffold": {},
    "fednova": {},
}
RULES = (
    "norm-clip",
    "fltrust",
    "geometric-median",
    "krum",
    "multi-krum",
    "median",
    "trimmed-mean",
    "bulyan",
    "nnm-trimmed-mean",
)
REPEATS = 5
DISTINCT = 25
"""Payloads that differ; they come again and again under other ids, which changes neither time nor memory."""


def main() -> None:
    """Measure every strategy in a child process and print."""
    parser = argparse.ArgumentParser(description="Measure the fold.")
    parser.add_argument("--updates", type=int, default=500)
    parser.add_argument("--parameters", type=int, default=1_000_000)
    parser.add_argument("--only", default="", help="names of strategies and rules (default: all)")
    parser.add_argument("--quick", action="store_true", help="only the size that was asked for")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(measure(**json.loads(given.child))))
        return
    wanted = given.only.split(",") if given.only else [*OPTIMIZERS, *RULES]
    with tempfile.TemporaryDirectory() as folder:
        found = {"one_round": {}, "flat": {}, "bulyan_50_dense": {}}
        for name in wanted:
            found["one_round"][name] = _child(Path(folder), name, given.updates, given.parameters)
        if not given.quick:
            for name in ("fedavg", "norm-clip"):
                for updates in (100, 5000):
                    key = f"{name}_{updates}"
                    found["flat"][key] = _child(Path(folder), name, updates, given.parameters)
            found["bulyan_50_dense"] = _child(
                Path(folder), "bulyan", 50, given.parameters, index="dense", value="int8"
            )
    print(json.dumps(found, indent=1) if given.json else _table(found))


def _child(folder: Path, name: str, updates: int, parameters: int, **settings: str) -> dict[str, Any]:
    aligned = name in {"median", "trimmed-mean", "bulyan", "nnm-trimmed-mean"}
    told = {"index": "common" if aligned else "rice", "value": "sign"} | settings
    file = folder / f"{told['index']}-{told['value']}-{'control' if name == 'scaffold' else ''}-{parameters}"
    order = {"name": name, "updates": updates, "parameters": parameters, "file": str(file), **told}
    command = [sys.executable, __file__, "--child", json.dumps(order)]
    if not file.exists():
        subprocess.run([*command[:-1], json.dumps(order | {"write": True})], check=True, capture_output=True)
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    row: dict[str, Any] = json.loads(done.stdout)
    sys.stderr.write(f"{name}, {updates} updates, {told['index']}: {row}\n")
    return row


def measure(  # noqa: PLR0913 (what a child is told)
    *, name: str, updates: int, parameters: int, file: str, index: str, value: str, write: bool = False
) -> dict[str, Any]:
    """Fold once and tell time and memory; with `write`, only write the payloads."""
    settings = Settings(index, value, 0.01)
    common = _common(parameters) if index == "common" else None
    if write:
        _write(Path(file), settings, parameters, common=common, control=name == "scaffold")
        return {}
    config = _config(name)
    strategy, size, parts = config.strategy(), parameters, Parts.whole(parameters)
    root = np.random.default_rng(7).normal(size=size).astype(np.float32) if name == "fltrust" else None
    rule, base_mb, runs = config.fold_rule(root), _rss_mb(), []
    while not runs or (len(runs) < REPEATS and sum(ms for _, ms in runs) < 2000):
        members = Members(
            lambda: _read(Path(file), updates),
            lambda data: payload.decode(
                data, size=size, parts=parts, common=common, control=name == "scaffold"
            ),
            size,
            10_000,
            equal=strategy.weighting == "equal",
            has_control=name == "scaffold",
        )
        start, start_core = time.perf_counter(), time.process_time()
        aggregate = fold_members(members, rule, momentum=0.9 if name == "fednova" else None)
        core_s = time.process_time() - start_core
        merged, _ = merge({"region": aggregate}, cap=1.0)
        control = merge_controls({"region": aggregate}, vehicles=updates)
        strategy.apply(strategy.init(size), merged, control)
        runs.append((core_s, 1000 * (time.perf_counter() - start)))
    core_s, ms = min(runs)
    return {
        "updates_per_s": round(updates / core_s),
        "rss_mb": round(_rss_mb(), 1),
        "base_mb": round(base_mb, 1),
        "ms_total": round(ms, 1),
        "needs": rule.needs,
    }


def _config(name: str) -> StrategyConfig:
    if name in OPTIMIZERS:
        return StrategyConfig.model_validate({"name": name, **OPTIMIZERS[name]})
    more = {"root_dir": "."} if name == "fltrust" else {}
    return StrategyConfig.model_validate({"rule": name, **more})


def _common(parameters: int) -> np.ndarray:
    drawn = np.random.default_rng(1).choice(parameters, max(1, parameters // 100), replace=False)
    return np.sort(drawn).astype(np.int64)


def _write(
    file: Path, settings: Settings, parameters: int, *, common: np.ndarray | None, control: bool
) -> None:
    with file.open("wb") as out:
        for n in range(DISTINCT):
            rng = np.random.default_rng(n)
            delta = rng.standard_normal(parameters, dtype=np.float32)
            told = rng.standard_normal(parameters, dtype=np.float32) if control else None
            data = payload.encode(delta, settings, steps=5 + n, examples=100 + n, common=common, control=told)
            out.write(len(data).to_bytes(8, "little") + data)


def _read(file: Path, updates: int) -> Iterator[Member]:
    """Yield members in fold order, their payloads one by one from the file."""
    ids = sorted((UpdateId(f"v{n}", 0, 0) for n in range(updates)), key=fold_key)
    with file.open("rb") as data:
        for n, id_ in enumerate(ids):
            if n % DISTINCT == 0:
                data.seek(0)
            yield Member(id_, data.read(int.from_bytes(data.read(8), "little")), 100 + n % DISTINCT)


def _rss_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def _table(found: dict[str, Any]) -> str:
    rows = [(name, row) for part in ("one_round", "flat") for name, row in found[part].items()]
    if found["bulyan_50_dense"]:
        rows.append(("bulyan, 50 dense", found["bulyan_50_dense"]))
    lines = [f"{'strategy':<22}{'updates/s':>11}{'rss MB':>9}{'ms':>11}"]
    for name, row in rows:
        lines.append(f"{name:<22}{row['updates_per_s']:>11,}{row['rss_mb']:>9.0f}{row['ms_total']:>11,.0f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
