"""kill -9 of the server and of a real broker at random points, vehicles publishing all the while.

``python benchmarks/crash.py --kills 200 --json [--broker nats]``: 200 kills of the server and half as many of the
broker; rounds close by fixed contributor lists, so that an undisturbed run of the same fleet must give the same
bytes. Keys: ``kills`` and ``broker_kills``, ``lost`` and ``doubled`` updates (must be 0), ``byte_equal`` (every
version of the model, and the last vector, against the undisturbed run; must be true). The machinery is that of the
tests (``tests/crash_site.py``).
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from child_processes import Processes
from crash_site import ALL, Plan, Site, Told, shake, tell

Kind = Literal["mosquitto", "nats"]
KILLS_PER_ROUND = 1.5


@contextmanager
def site(folder: Path, *, rounds: int, kind: Kind, seed: int) -> Iterator[Site]:
    """A site, closed at the end with all its processes."""
    logs = folder / "logs"
    logs.mkdir(parents=True)
    processes = Processes(logs)
    try:
        made = Site(folder, processes, rounds=rounds, kind=kind, seed=seed)
        try:
            yield made
        finally:
            made.close()
    finally:
        processes.stop()


def progress(text: str) -> None:
    """Say on stderr how far it is."""
    sys.stderr.write(f"crash: {text}\n")


def calm(folder: Path, *, rounds: int, kind: Kind) -> Told:
    """The same fleet undisturbed."""
    with site(folder, rounds=rounds, kind=kind, seed=0) as quiet:
        quiet.drive()
        quiet.finish()
        return tell(quiet)


def measure(folder: Path, plan: Plan, *, kind: Kind, seed: int) -> dict[str, Any]:
    """Run undisturbed, then with the kills, and compare."""
    rounds = max(2, int(plan.total / KILLS_PER_ROUND))
    begun = time.monotonic()
    expected = calm(folder / "calm", rounds=rounds, kind=kind)
    calm_s = time.monotonic() - begun
    progress(f"undisturbed: {rounds} rounds in {calm_s:.0f} s")
    begun = time.monotonic()

    def heard(kills: int) -> None:
        if kills % 10 == 0 or kills == plan.total:
            progress(f"{kills} of {plan.total} kills, {time.monotonic() - begun:.0f} s")

    with site(folder / "storm", rounds=rounds, kind=kind, seed=seed) as shaken:
        points = shake(shaken, plan, heard=heard)
        found = tell(shaken)
        duplicates = shaken.shown()["counters"].get("duplicates", 0)
    return {
        "broker": kind,
        "kills": plan.server,
        "broker_kills": plan.broker,
        "rounds": rounds,
        "updates": rounds * len(ALL),
        "lost": found.lost,
        "doubled": found.doubled,
        "byte_equal": (found.versions, found.vector) == (expected.versions, expected.vector),
        "duplicates_absorbed": duplicates,
        "points": dict(sorted(points.items())),
        "calm_s": round(calm_s, 1),
        "seconds": round(time.monotonic() - begun, 1),
    }


def main() -> int:
    """Print the figures; 1 when something was lost, doubled or different."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200, help="kills of the server")
    parser.add_argument("--broker-kills", type=int, help="kills of the broker; half as many when not given")
    parser.add_argument(
        "--broker", choices=("mosquitto", "nats"), default="mosquitto", help="which real broker"
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the moments and of the order")
    parser.add_argument("--json", action="store_true", help="print JSON")
    told = parser.parse_args()
    broker_kills = told.kills // 2 if told.broker_kills is None else told.broker_kills
    with tempfile.TemporaryDirectory(prefix="fedfleet-crash-") as folder:
        plan = Plan(server=told.kills, broker=broker_kills)
        figures = measure(Path(folder), plan, kind=told.broker, seed=told.seed)
    if told.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:20} {value}")
    return 0 if not figures["lost"] and not figures["doubled"] and figures["byte_equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
