"""Accuracy against real serialized bytes, on Argoverse motion forecasting.

    FEDFLEET_DATA=FOLDER python benchmarks/learning.py --json [--work DIR] [--plot FILE] [--seconds N]

Every method tries the same number of settings (`learning_methods.py`) on two splits of their own and keeps the one
that stays highest on validation over the last third of a trial; then it runs on other splits. The target is 97 % of
what centralised training (one set of all samples, as many passes, equally tuned) gains over constant velocity on
validation drives, in the mean over the splits. Bytes are codec payloads, of one vehicle that takes part in every
round. A method that never gets there is told with the bytes that it had spent: a lower bound. Test drives are looked
at after the last round only.

Each finished run is a line of a file in `--work`, from which the script resumes.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import learning_data
import learning_summary as summary
from learning_methods import CENTRAL_RATES, METHODS, REMEDIES, trials
from learning_runs import Method, train

Row = Mapping[str, Any]
Run = tuple[Method | float, int]
"""A federated training, or the rate of a centralised one; and the seed of its split."""
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
    jobs: int = 1
    make: Callable[[Path, Method | float, int], dict[str, Any]] = field(default_factory=lambda: made)
    digest: Callable[[Path, int, int], str] = field(default_factory=lambda: digest_of)

    def __post_init__(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        text = self.file.read_text(encoding="utf-8") if self.file.exists() else ""
        whole = [
            line for line in text.splitlines(keepends=True) if line.endswith("\n")
        ]  # a kill may cut the last
        self.rows = {row["key"]: row for row in map(json.loads, whole)}
        self.used: set[str] = set()
        self._digests: dict[tuple[int, int], str] = {}
        if text and not text.endswith("\n"):
            self.file.write_text("".join(whole), encoding="utf-8")

    def row(self, what: Method | float, seed: int) -> Row:
        """A run's result, from the file when it is there."""
        self.fill([(what, seed)])
        return self.rows[self._key(what, seed)]

    def fill(self, runs: Iterable[Run], title: str = "run") -> None:
        """Make those runs that are not in the file, so many at a time as there are jobs."""
        listed = {self._key(*run): run for run in runs}
        self.used |= set(listed)
        missing = [run for key, run in listed.items() if key not in self.rows]
        if not missing:
            return
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.jobs, mp_context=spawn) as pool, progress(title, len(missing)) as tell:
            at_work: set[Future[dict[str, Any]]] = set()
            for run in missing:
                if time.monotonic() > self.end:
                    break
                at_work.add(pool.submit(self.make, self.scenarios, *run))
                if len(at_work) == self.jobs:
                    finished, at_work = wait(at_work, return_when=FIRST_COMPLETED)
                    self._keep(finished, tell)
            self._keep(wait(at_work).done, tell)
        if any(key not in self.rows for key in listed):
            raise OutOfTimeError

    def _key(self, what: Method | float, seed: int) -> str:
        vehicles = vehicles_of(what)
        if (vehicles, seed) not in self._digests:
            self._digests[vehicles, seed] = self.digest(self.scenarios, vehicles, seed)
        return key_of(described(what, seed, data=self._digests[vehicles, seed]))

    def _keep(self, finished: Iterable[Future[dict[str, Any]]], tell: Callable[[str], None]) -> None:
        for future in finished:
            row = future.result()
            with self.file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
            self.rows[row["key"]] = row
            tell(f"{row.get('name', 'centralised')} seed {row['seed']}: {row['seconds']:.0f} s")


def digest_of(scenarios: Path, vehicles: int, seed: int) -> str:
    """The SHA-256 of a split's samples."""
    return learning_data.split(scenarios, vehicles=vehicles, seed=seed).sha256


def vehicles_of(what: Method | float) -> int:
    """The vehicles of a run's split."""
    return RARE_VEHICLES if isinstance(what, Method) and what.share < 1 else VEHICLES


def described(what: Method | float, seed: int, *, data: str) -> dict[str, Any]:
    """What makes a run, its samples by their SHA-256: runs of equal description have equal results."""
    split = {"seed": seed, "vehicles": vehicles_of(what), "data": data}
    if isinstance(what, Method):
        return {"kind": "run", **split, **asdict(what)}
    return {"kind": "centralised", **split, "rate": what, "passes": PASSES}


def key_of(description: Mapping[str, Any]) -> str:
    """The name of a row."""
    return sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]


def made(scenarios: Path, what: Method | float, seed: int) -> dict[str, Any]:
    """Make a run, in whatever process."""
    start = time.perf_counter()
    data = learning_data.split(scenarios, vehicles=vehicles_of(what), seed=seed)
    description = described(what, seed, data=data.sha256)
    if isinstance(what, Method):
        result = train(data, what, seed=seed, every=5 if what.rounds > 200 or what.share < 1 else 1)
    else:
        x = learning_data.centralised(data, learning_rate=what, passes=PASSES, seed=seed)
        result = {
            "start": learning_data.ade(data.first, data.validation),
            "validation": learning_data.ade(x, data.validation),
            "test_start": learning_data.ade(data.first, data.test),
            "test_last": learning_data.ade(x, data.test),
        }
    seconds = round(time.perf_counter() - start, 1)
    return {"key": key_of(description), **description, **result, "seconds": seconds}


def measure(bench: Bench, plot: Path | None) -> dict[str, Any]:
    """Tune, run and sum up; what is in the file is not run again."""
    bench.fill([(rate, seed) for rate in CENTRAL_RATES for seed in bench.tuning], "centralised, settings")
    rate = min(
        CENTRAL_RATES,
        key=lambda rate: statistics.mean(bench.row(rate, seed)["validation"] for seed in bench.tuning),
    )
    bench.fill([(rate, seed) for seed in bench.seeds], "centralised")
    tuned = summary.references([bench.row(rate, seed) for seed in bench.tuning])
    centrals = [bench.row(rate, seed) for seed in bench.seeds]
    known = summary.references(centrals)
    chosen, runs = compared(bench, METHODS, tuned)
    curves = {name: summary.mean_curve(rows, known) for name, rows in runs.items()}
    named = {name: replace(method, name=name) for name, method in REMEDIES.items()}
    first = {seed: tuned[seed] for seed in bench.tuning[:1]}
    rare, rare_runs = compared(bench, named, first)
    chosen_rare = best_rare(bench, rare, first)
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
        "seconds": round(sum(bench.rows[key]["seconds"] for key in bench.used)),
        "jobs": bench.jobs,
    }


def compared(
    bench: Bench, methods: Mapping[str, Method], known: Mapping[int, tuple[float, float]]
) -> tuple[dict[str, Method], dict[str, list[Row]]]:
    """Choose every method's settings on the known splits, then run it on those that are reported."""
    trying = [(trial, seed) for method in methods.values() for trial in trials(method) for seed in known]
    bench.fill(trying, "settings")
    chosen = {name: tune(bench, method, known) for name, method in methods.items()}
    bench.fill([(method, seed) for method in chosen.values() for seed in bench.seeds], "runs")
    return chosen, {
        name: [bench.row(method, seed) for seed in bench.seeds] for name, method in chosen.items()
    }


def best_rare(bench: Bench, methods: Mapping[str, Method], known: Mapping[int, tuple[float, float]]) -> str:
    """Return the way at 10 % participation that is not dense and gained most on the tuning split."""

    def value(name: str) -> float:
        return summary.steady(summary.mean_curve([bench.row(methods[name], s) for s in known], known))

    return max([name for name, method in methods.items() if method.up.value != "float32"], key=value)


def tune(bench: Bench, method: Method, known: Mapping[int, tuple[float, float]]) -> Method:
    """Return the method with the best of its settings: where it stays on the validation of the known splits."""

    def value(trial: Method) -> float:
        return summary.steady(summary.mean_curve([bench.row(trial, s) for s in known], known))

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
def progress(title: str, total: int) -> Iterator[Callable[[str], None]]:
    """A bar over the runs on a terminal, else a line for each that is done."""
    if not sys.stderr.isatty():
        yield lambda text: print(f"{time.strftime('%H:%M:%S')} {title}: {text}", file=sys.stderr, flush=True)
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda text: bar.update(task, advance=1, description=f"{title}: {text}")


def main() -> None:
    """Measure and print; without FEDFLEET_DATA and --scenarios there is nothing to learn from, and that is said."""
    parser = argparse.ArgumentParser(description="Accuracy against serialized bytes.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--scenarios", type=Path, help="folder of recordings; argoverse1 of FEDFLEET_DATA")
    parser.add_argument("--work", type=Path, default=Path("out/learning"), help="folder of finished runs")
    parser.add_argument("--plot", type=Path, help="file to draw accuracy against bytes into")
    parser.add_argument("--seconds", type=float, default=3600.0, help="start no run after so many seconds")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="runs at a time")
    parser.add_argument("--seeds", default="1,2,3", help="splits that are reported")
    parser.add_argument("--tuning-seeds", default="11,12", help="splits that choose the settings")
    given = parser.parse_args()
    data = os.environ.get("FEDFLEET_DATA")
    if given.scenarios is None and not data:
        print(json.dumps({"skipped": "needs FEDFLEET_DATA or --scenarios"}))
        return
    seeds, tuning = (tuple(map(int, text.split(","))) for text in (given.seeds, given.tuning_seeds))
    scenarios = given.scenarios or Path(str(data)) / "argoverse1"
    bench = Bench(
        scenarios, given.work / "runs.jsonl", time.monotonic() + given.seconds, tuning, seeds, given.jobs
    )
    try:
        result = measure(bench, given.plot)
    except OutOfTimeError:
        print(f"{len(bench.rows)} runs are done; start again to go on", file=sys.stderr)
        raise SystemExit(3) from None
    print(json.dumps(result, indent=1) if given.json else summary.table(result))


if __name__ == "__main__":
    main()
