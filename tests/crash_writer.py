"""A store process to be watched: ``python crash_writer.py FOLDER MARKER BATCHES`` stores updates and says when.

After every commit it appends the number of stored updates to MARKER with one write: what a broker would be told.
"""

import logging
import os
import sys
from pathlib import Path

import structlog
from server_world import EPOCH, FLEET, SIZE, key_of, sealed_update
from test_ingest import PLAN, SERVER_KEY, TASK, to_topic

from fedfleet.fleet_server import store_rounds, store_vehicles
from fedfleet.fleet_server.admission import Limits
from fedfleet.fleet_server.ingest import Ingest
from fedfleet.fleet_server.rate import Limiter, Rate
from fedfleet.fleet_server.requests import Party
from fedfleet.fleet_server.store import Store, open_store
from fedfleet.fleet_server.store_rounds import Round
from fedfleet.protocol.ids import UpdateId

VEHICLES = tuple(f"v-{number}" for number in range(4))
UPDATES, JUNK, JUNK_BYTES = 4, 3, 16_384
"""In a batch: good updates, and refused messages, with which the log soon fills up and is carried into the file."""


def update_ids(count: int) -> list[UpdateId]:
    """The updates in the order in which they are stored."""
    return [UpdateId(VEHICLES[n % len(VEHICLES)], EPOCH, n // len(VEHICLES)) for n in range(count)]


def opened(folder: Path) -> Store:
    """The store, as a server opens it."""
    return open_store(folder, fleet=FLEET, task="linear_test")


def main(folder: Path, marker: Path, batches: int) -> None:
    """Store, and close and open the store again half-way."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    store = opened(folder)
    with store.write() as connection:
        for name in VEHICLES:
            store_vehicles.enrol(connection, name, region="north", public_key=key_of(name).public, now_s=1.0)
        store_rounds.add_round(connection, Round(PLAN, "open", frozenset(), None, 1.0))
    party, limits = Party(FLEET, TASK, SERVER_KEY, {}), Limits(100_000, SIZE, 100)
    told = os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    ids = update_ids(batches * UPDATES)
    for number in range(batches):
        if number == batches // 2:
            store.close()
            store = opened(folder)
        good = ids[number * UPDATES : (number + 1) * UPDATES]
        batch = [to_topic(one.vehicle, sealed_update(one.vehicle, PLAN, id=one)) for one in good]
        junk = [to_topic("v-0", bytes([number % 256]) * JUNK_BYTES) for _ in range(JUNK)]
        Ingest(store, party, limits, Limiter(Rate(1e6, 1e6))).receive(batch + junk, 2.0)
        os.write(told, f"{(number + 1) * UPDATES}\n".encode())
    store.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
