"""Everything that a vehicle could send, through the server's real ingest and store: nothing may stop it.

    python benchmarks/fuzz_ingest.py --json [--payloads 1000000] [--messages 100000] [--store sqlite|postgresql]
        [--state FILE] [--seed 1]

Mutated payloads (`fuzz.py`) in updates that are sound in all else, and messages of every kind (`fuzz_messages.py`), a
batch of 250 in a transaction. Between chunks all that is stored is read as `status`, `server vehicles`, the metrics
endpoint and `quarantine list` do. A *stop* is an exception out of the ingest or a reader; an *internal error* a message
that was put aside because its handling raised. `--state` keeps what is done, in chunks. Exit code 1 when there is one
of either. PostgreSQL is a private server in a temporary folder.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import fuzz
import structlog
from fuzz_messages import KINDS, NAMES, NOW_S, ROUNDS, TASK, WAITING, Maker
from postgres_cluster import Cluster, binaries
from server_world import FLEET, code, key_of
from test_ingest import SERVER_KEY, plan_of

from fedfleet.fleet_server import gauges, store_quarantine, store_rounds, store_updates, store_vehicles, views
from fedfleet.fleet_server.admission import Limits
from fedfleet.fleet_server.ingest import Ingest
from fedfleet.fleet_server.rate import Limiter, Rate
from fedfleet.fleet_server.requests import Code, Party
from fedfleet.fleet_server.store import Store, open_store
from fedfleet.fleet_server.store_postgres import Address
from fedfleet.fleet_server.store_rounds import Round
from fedfleet.link.port import Delivery

CHUNK, BATCH = 5_000, 250
LIMIT_BYTES = 100_000


class Door:
    """The real ingest over one store, once for each way in which a receiver divides a payload."""

    def __init__(self, store: Store) -> None:
        self.store = store
        codes = {name: Code(code(name), "north") for name in WAITING}
        party = Party(FLEET, TASK, SERVER_KEY, codes)
        self.ingests = {
            (divided, control): Ingest(
                store,
                party,
                Limits(LIMIT_BYTES, fuzz.SIZE, 100, parts=fuzz.PARTS if divided else None, control=control),
                Limiter(Rate(1e12, 1e12)),
            )
            for divided in (False, True)
            for control in (False, True)
        }

    def take(self, batch: list[Delivery], of: tuple[bool, bool], now_s: float) -> str:
        """Give a batch to the ingest; return what it raised, empty when nothing."""
        try:
            self.ingests[of].receive(batch, now_s)
        except Exception as error:  # noqa: BLE001 (whatever it is, it is the finding)
            return repr(error)[:500]
        return ""

    def look(self) -> str:
        """Read all that is stored, as the views do; return what that raised, empty when nothing."""
        try:
            with self.store.read() as connection:
                list(gauges.read(connection, ["north"]))
                json.dumps(views.vehicles(connection))
                json.dumps(views.rounds(connection, NOW_S))
                for one in store_quarantine.quarantined(connection, limit=2000):
                    json.dumps([one.reason, one.detail, one.vehicle, one.topic])
        except Exception as error:  # noqa: BLE001 (as above)
            return f"reader: {error!r}"[:500]
        return ""

    def counters(self) -> dict[str, int]:
        """Return what the store counted."""
        with self.store.read() as connection:
            return store_updates.counters(connection)


@contextmanager
def opened(kind: str) -> Iterator[Door]:
    """A fresh store with vehicles, a round that is over and an open one."""
    folder = Path(tempfile.mkdtemp(prefix="fedfleet-fuzz-"))
    programs = binaries() if kind == "postgresql" else None
    if kind == "postgresql" and programs is None:
        raise SystemExit("fuzz_ingest: no PostgreSQL installed")
    cluster = Cluster(programs) if programs else None
    address = Address(cluster.database()) if cluster else None
    store = open_store(folder, fleet=FLEET, task="linear_test", address=address)
    try:
        with store.write() as connection:
            for name in NAMES:
                key = key_of(name).public
                store_vehicles.enrol(connection, name, region="north", public_key=key, now_s=1.0)
            for number, state in zip(ROUNDS, ("published", "open"), strict=True):
                plan = plan_of(number, base=number - 1)
                store_rounds.add_round(connection, Round(plan, state, frozenset(), None, 1.0))  # type: ignore[arg-type]
        yield Door(store)
    finally:
        store.close()
        if cluster is not None:
            cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def payloads(door: Door, number: int, seed: int, found: list[fuzz.Source]) -> list[str]:
    """One chunk of mutated payloads, each in a sound update; return what stopped."""
    rng = random.Random(f"{seed}/{number}")
    maker = Maker(f"payloads {seed}/{number}", lambda _: b"")
    by_kind: dict[tuple[bool, bool], list[Delivery]] = {of: [] for of in door.ingests}
    for _ in range(CHUNK):
        source, other = rng.choice(found), rng.choice(found)
        one = maker.update_of(fuzz.mutated(source, other, rng))
        by_kind[source.parts is not None, source.control].append(one)
    stops = [
        door.take(deliveries[start : start + BATCH], of, NOW_S + number)
        for of, deliveries in by_kind.items()
        for start in range(0, len(deliveries), BATCH)
    ]
    return [stop for stop in stops if stop]


def messages(door: Door, number: int, seed: int, found: list[fuzz.Source]) -> list[str]:
    """One chunk of messages of every kind; return what stopped."""

    def payload(rng: random.Random) -> bytes:
        return fuzz.mutated(rng.choice(found), rng.choice(found), rng)

    maker = Maker(f"messages {seed}/{number}", payload)
    stops = []
    for start in range(0, CHUNK, BATCH):
        batch = [maker.delivery(KINDS[n % len(KINDS)]) for n in range(start, start + BATCH)]
        maker.rng.shuffle(batch)
        stops.append(door.take(batch, (False, False), NOW_S + number * 10))
    return [stop for stop in stops if stop]


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Return the sums over all chunks; progress on stderr."""
    empty: dict[str, Any] = {"payloads": 0, "messages": 0, "stops": [], "counters": {}, "seconds": 0.0}
    empty |= {"seed": given.seed, "store": given.store}
    state: Path | None = given.state
    done = json.loads(state.read_text()) if state and state.is_file() else empty
    if (done["seed"], done["store"]) != (given.seed, given.store):
        raise SystemExit(f"fuzz_ingest: {state} is of seed {done['seed']} and {done['store']}")
    found = fuzz.sources()
    with opened(given.store) as door:
        before: Counter[str] = Counter()
        for what, act in (("messages", messages), ("payloads", payloads)):
            wanted = -(-getattr(given, what) // CHUNK)
            for number in range(done[what] // CHUNK, wanted):
                begun = time.perf_counter()
                stops = act(door, number, given.seed, found)
                stops += [stop] if (stop := door.look()) else []
                counted = Counter(door.counters())
                done["counters"] = dict(Counter(done["counters"]) + (counted - before))
                before = counted
                done[what] += CHUNK
                done["stops"] = (done["stops"] + stops)[:20]
                done["seconds"] += time.perf_counter() - begun
                if state:
                    spare = state.with_suffix(".new")
                    spare.write_text(json.dumps(done))
                    spare.replace(state)
                if number % 10 == 9 or number == wanted - 1:
                    told = f"{done[what]:,} {what}, {len(done['stops'])} stops, {done['seconds']:.0f} s"
                    sys.stderr.write(f"fuzz_ingest: {given.store}: {told}\n")
    counters = done.pop("counters")
    refused = {
        name.partition(":")[2]: n for name, n in sorted(counters.items()) if name.startswith("refused:")
    }
    return {
        **done,
        "seconds": round(done["seconds"], 1),
        "stops": len(done["stops"]),
        "first_stops": done["stops"][:5],
        "internal_errors": refused.get("internal-error", 0),
        "reasons": len(refused),
        "refused": refused,
        "others": {name: n for name, n in sorted(counters.items()) if not name.startswith("refused:")},
    }


def main() -> int:
    """Run, print, and say by the exit code whether nothing stopped and nothing failed inside."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--payloads", type=int, default=1_000_000)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--store", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--state", type=Path, help="what is done is kept here, to go on after a stop")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    figures = run(given)
    print(json.dumps(figures, indent=None if given.json else 2))
    return int(figures["stops"] > 0 or figures["internal_errors"] > 0)


if __name__ == "__main__":
    sys.exit(main())
