"""The fleet simulation of the tests, over thousands of seeds: the real server and agents in virtual time.

``python benchmarks/simulate.py --seeds 10000 --json [--first N] [--processes 2] [--resume FILE]``. Keys: ``seeds``,
``violations`` (must be empty: seed and what did not hold), ``same_bytes`` (every hundredth seed was run twice),
``counts`` (what happened: kills, jumps, fates), ``ms_per_seed`` of CPU. With ``--resume`` finished chunks are read
from, and written to, a file of JSON lines.
"""

import argparse
import json
import logging
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import structlog

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from sim_checks import simulate
from sim_scenario import draw
from sim_world import Template

CHUNK = 50
TWICE = 100
MEMORY = Path("/dev/shm")  # noqa: S108 - a disk would only measure its syncs


def chunk(first: int, count: int) -> dict[str, Any]:
    """Run some seeds; every hundredth twice."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    started_s, counts, violations, differ = time.process_time(), Counter[str](), [], []
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as name:
        template = Template(Path(name) / "template")
        for seed in range(first, first + count):
            try:
                with tempfile.TemporaryDirectory(dir=name) as folder:
                    found = simulate(draw(seed), template, Path(folder))
                counts += found.counts
                if seed % TWICE == 0:
                    with tempfile.TemporaryDirectory(dir=name) as folder:
                        again = simulate(draw(seed), template, Path(folder))
                    if again != found:
                        differ.append(seed)
            except Exception as error:  # noqa: BLE001 - every seed is told
                violations.append([seed, f"{type(error).__name__}: {error}"[:300]])
    cpu_s = time.process_time() - started_s
    return {
        "first": first,
        "count": count,
        "counts": counts,
        "violations": violations,
        "differ": differ,
        "cpu_s": cpu_s,
    }


def finished(path: Path | None) -> dict[tuple[int, int], dict[str, Any]]:
    """Return the chunks that an earlier run has written down."""
    if path is None or not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {(each["first"], each["count"]): each for each in lines}


def measure(first: int, seeds: int, *, processes: int, resume: Path | None) -> dict[str, Any]:
    """Run all seeds, chunk by chunk."""
    ends = first + seeds
    wanted = [(start, min(CHUNK, ends - start)) for start in range(first, ends, CHUNK)]
    done = {key: each for key, each in finished(resume).items() if key in wanted}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn) as pool:
        waiting = [pool.submit(chunk, *key) for key in wanted if key not in done]
        for future in as_completed(waiting):
            told = future.result()
            done[told["first"], told["count"]] = told
            if resume is not None:
                with resume.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(told) + "\n")
            run, wrong = (
                sum(count for _, count in done),
                sum(len(each["violations"]) for each in done.values()),
            )
            sys.stderr.write(f"simulate: {run} of {seeds} seeds, {wrong} violations\n")
    return {
        "seeds": seeds,
        "violations": sorted(each for told in done.values() for each in told["violations"]),
        "same_bytes": not any(told["differ"] for told in done.values()),
        "counts": dict(
            sorted(sum((Counter(told["counts"]) for told in done.values()), Counter[str]()).items())
        ),
        "ms_per_seed": round(1000 * sum(told["cpu_s"] for told in done.values()) / seeds, 1),
    }


def main() -> int:
    """Print the figures; exit code 1 when something did not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--json", action="store_true", help="print JSON (the default prints it indented)")
    told = parser.parse_args()
    result = measure(told.first, told.seeds, processes=told.processes, resume=told.resume)
    print(json.dumps(result, indent=None if told.json else 2))
    return 1 if result["violations"] or not result["same_bytes"] else 0


if __name__ == "__main__":
    sys.exit(main())
