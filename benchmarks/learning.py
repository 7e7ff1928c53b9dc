"""Accuracy against real serialized bytes, on Argoverse motion forecasting.

    FEDFLEET_DATA=FOLDER python benchmarks/learning.py --json [--work DIR] [--plot FILE] [--seconds N]

Every method tries the same number of settings (`learning_methods.py`) on two splits of their own and keeps the one
whose mean gain on validation is largest; then it runs on other splits. The target is 97 % of what centralised training
(one set of all samples, as many passes, equally tuned) gains over constant velocity on validation drives, in the mean
over the splits. Bytes are codec payloads, of one vehicle that takes part in every round. A method that never gets
there is told with the bytes that it had spent: a lower bound. Test drives are looked at once, after the last round.

Each finished run is a line of a file in `--work`, from which the script resumes.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import learning_data
import learning_summary as summary
from learning_methods import CENTRAL_RATES, METHODS, REMEDIES, trials
from learning_runs import Method, train

Row = Mapping[str, Any]
Tell = Callable[[int], None]
VEHICLES, RARE_VEHICLES = 12, 40
PASSES = 60


class OutOfTimeError(Exception):
    """No run is started after `--seconds`; what is done is in the file."""


@dataclass
class Bench:
    """The folder of recordings, the rows that are known, and where new ones go."""

    scenarios: Path
    file: Path
    end: float
    tuning: tuple[int, ...]
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        text = self.file.read_text(encoding="utf-8") if self.file.exists() else ""
        whole = [
            line for line in text.splitlines(keepends=True) if line.endswith("\n")
        ]  # a kill may cut the last
        self.rows = {row["key"]: row for row in map(json.loads, whole)}
        if text and not text.endswith("\n"):
            self.file.write_text("".join(whole), encoding="utf-8")

    def central(self, *, rate: float, seed: int) -> Row:
        """Centralised training on a split."""

        def make() -> dict[str, Any]:
            data = self._split(VEHICLES, seed)
            x = learning_data.centralised(data, learning_rate=rate, passes=PASSES, seed=seed)
            return {
                "start": learning_data.ade(data.first, data.validation),
                "validation": learning_data.ade(x, data.validation),
                "test_start": learning_data.ade(data.first, data.test),
                "test_last": learning_data.ade(x, data.test),
            }

        return self._row({"kind": "centralised", "rate": rate, "passes": PASSES, "seed": seed}, make)

    def run(self, method: Method, *, seed: int) -> Row:
        """A federated training on a split."""
        vehicles = VEHICLES if method.share == 1 else RARE_VEHICLES
        every = 5 if method.rounds >= 100 else 1

        def make() -> dict[str, Any]:
            data = self._split(vehicles, seed)
            with progress(f"{method.name} seed {seed}", method.rounds) as tell:
                return train(data, method, seed=seed, every=every, tell=tell)

        return self._row({"kind": "run", "vehicles": vehicles, "seed": seed, **asdict(method)}, make)

    def _split(self, vehicles: int, seed: int) -> learning_data.Split:
        return learning_data.split(self.scenarios, vehicles=vehicles, seed=seed)

    def _row(self, what: dict[str, Any], make: Callable[[], dict[str, Any]]) -> Row:
        key = sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
        if key not in self.rows:
            if time.monotonic() > self.end:
                raise OutOfTimeError
            start = time.perf_counter()
            row = {"key": key, **what, **make(), "seconds": round(time.perf_counter() - start, 1)}
            with self.file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
            self.rows[key] = row
        return self.rows[key]


def measure(bench: Bench, plot: Path | None) -> dict[str, Any]:
    """Tune, run and sum up; what is in the file is not run again."""
    rate = min(
        CENTRAL_RATES,
        key=lambda rate: statistics.mean(
            bench.central(rate=rate, seed=seed)["validation"] for seed in bench.tuning
        ),
    )
    tuned = summary.references([bench.central(rate=rate, seed=seed) for seed in bench.tuning])
    centrals = [bench.central(rate=rate, seed=seed) for seed in bench.seeds]
    known = summary.references(centrals)
    chosen = {name: tune(bench, method, tuned) for name, method in METHODS.items()}
    runs = {name: [bench.run(method, seed=seed) for seed in bench.seeds] for name, method in chosen.items()}
    curves = {name: summary.mean_curve(rows, known) for name, rows in runs.items()}
    first = {seed: tuned[seed] for seed in bench.tuning[:1]}
    rare = {name: tune(bench, replace(method, name=name), first) for name, method in REMEDIES.items()}
    chosen_rare = best_rare(bench, rare, first)
    rare_runs = {
        name: [bench.run(method, seed=seed) for seed in bench.seeds] for name, method in rare.items()
    }
    if plot is not None:
        summary.plot(curves, plot)
    return {
        "seeds": bench.seeds,
        "tuning_seeds": bench.tuning,
        "target_share_pct": summary.SHARE,
        **summary.figures(curves, runs),
        "ade_gap_10pct": summary.gap(rare_runs[chosen_rare], next(iter(rare_runs.values()))),
        "ade_gap_10pct_of": chosen_rare,
        "centralised": {
            "learning_rate": rate,
            "test_ade": statistics.mean(row["test_last"] for row in centrals),
            "constant_velocity_test_ade": statistics.mean(row["test_start"] for row in centrals),
        },
        "methods": {name: told(runs[name], chosen[name], curves[name]) for name in METHODS},
        "rare": rare_table(rare, rare_runs),
        "seconds": round(sum(row["seconds"] for row in bench.rows.values())),
    }


def best_rare(bench: Bench, methods: Mapping[str, Method], known: Mapping[int, tuple[float, float]]) -> str:
    """Return the way at 10 % participation that is not dense and gained most on the tuning split."""

    def value(name: str) -> float:
        return summary.peak(summary.mean_curve([bench.run(methods[name], seed=s) for s in known], known))

    return max([name for name, method in methods.items() if method.up.value != "float32"], key=value)


def tune(bench: Bench, method: Method, known: Mapping[int, tuple[float, float]]) -> Method:
    """Return the method with the best of its settings: largest mean share on the validation of the known splits."""

    def value(trial: Method) -> float:
        return summary.peak(summary.mean_curve([bench.run(trial, seed=s) for s in known], known))

    best = max(trials(method), key=value)
    return replace(method, learning_rate=best.learning_rate, server_rate=best.server_rate)


def told(rows: list[Row], method: Method, curve: summary.Curve) -> dict[str, Any]:
    """A line of the table."""
    return {
        "learning_rate": method.learning_rate,
        "server_rate": method.server_rate,
        "rounds": method.rounds,
        "up_a_round": curve[-1][2] / curve[-1][0],
        "down_a_round": curve[-1][3] / curve[-1][0],
        "best_share": summary.peak(curve),
        "reached": summary.reached(curve),
        "test_ade": statistics.mean(row["test_last"] for row in rows),
        "test_ade_by_seed": [row["test_last"] for row in rows],
        "curve": [[number, round(share, 2), round(up), round(down)] for number, share, up, down in curve],
    }


def rare_table(methods: Mapping[str, Method], runs: Mapping[str, list[Row]]) -> dict[str, Any]:
    """The ways at 10 % participation, against dense float32 at the same."""
    dense = next(iter(runs.values()))
    return {
        name: {
            "server_rate": methods[name].server_rate,
            "up_a_round": statistics.mean(row["curve"][-1][2] / row["curve"][-1][0] for row in rows),
            "test_ade": statistics.mean(row["test_last"] for row in rows),
            "gap_pct": summary.gap(rows, dense),
            "gap_pct_by_seed": [summary.gap([row], dense) for row in rows],
        }
        for name, rows in runs.items()
    }


@contextmanager
def progress(what: str, total: int) -> Iterator[Tell]:
    """A bar on a terminal, else a line when a run begins."""
    if not sys.stderr.isatty():
        print(f"{time.strftime('%H:%M:%S')} {what}: {total} rounds", file=sys.stderr, flush=True)
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


def main() -> None:
    """Measure and print; without FEDFLEET_DATA and --scenarios there is nothing to learn from, and that is said."""
    parser = argparse.ArgumentParser(description="Accuracy against serialized bytes.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--scenarios", type=Path, help="folder of recordings; argoverse1 of FEDFLEET_DATA")
    parser.add_argument("--work", type=Path, default=Path("out/learning"), help="folder of finished runs")
    parser.add_argument("--plot", type=Path, help="file to draw accuracy against bytes into")
    parser.add_argument("--seconds", type=float, default=3600.0, help="start no run after so many seconds")
    parser.add_argument("--seeds", default="1,2,3", help="splits that are reported")
    parser.add_argument("--tuning-seeds", default="11,12", help="splits that choose the settings")
    given = parser.parse_args()
    data = os.environ.get("FEDFLEET_DATA")
    if given.scenarios is None and not data:
        print(json.dumps({"skipped": "needs FEDFLEET_DATA or --scenarios"}))
        return
    seeds, tuning = (tuple(map(int, text.split(","))) for text in (given.seeds, given.tuning_seeds))
    scenarios = given.scenarios or Path(str(data)) / "argoverse1"
    bench = Bench(scenarios, given.work / "runs.jsonl", time.monotonic() + given.seconds, tuning, seeds)
    try:
        result = measure(bench, given.plot)
    except OutOfTimeError:
        print(f"{len(bench.rows)} runs are done; start again to go on", file=sys.stderr)
        raise SystemExit(3) from None
    print(json.dumps(result, indent=1) if given.json else summary.table(result))


if __name__ == "__main__":
    main()
