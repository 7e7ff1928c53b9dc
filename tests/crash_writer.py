"""A store process to be watched: ``python crash_writer.py FOLDER MARKER BATCHES`` stores updates and says when.

After every commit it appends the number of stored updates to MARKER with one write: what a broker would be told. One
update of a batch is large, and so in a file; old ones are settled and their files forgotten.
"""

import logging
import os
import sys
from pathlib import Path

import numpy as np
import structlog
from server_world import EPOCH, FLEET, key_of
from test_ingest import SERVER_KEY, TASK, plan_of, to_topic

from fedfleet.codec import payload
from fedfleet.codec.settings import Settings
from fedfleet.fleet_server import store_retention, store_rounds, store_updates, store_vehicles
from fedfleet.fleet_server.admission import Limits
from fedfleet.fleet_server.config_store import RetentionConfig
from fedfleet.fleet_server.ingest import Ingest
from fedfleet.fleet_server.rate import Limiter, Rate
from fedfleet.fleet_server.requests import Party
from fedfleet.fleet_server.store import Store, open_store
from fedfleet.fleet_server.store_rounds import Round
from fedfleet.protocol import envelope, update
from fedfleet.protocol.envelope import Kind
from fedfleet.protocol.ids import UpdateId

VEHICLES = tuple(f"v-{number}" for number in range(4))
UPDATES, JUNK, JUNK_BYTES = 4, 3, 16_384
"""In a batch: good updates, and refused messages, with which the log soon fills up and is carried into the file."""
PARAMETERS = 25_500
"""Of the model: a dense update is just large enough for a file."""
FORGET_EVERY, FORGET_AFTER = 5, 10
"""Batches."""
SETTINGS = (Settings("rice", "sign", 0.001), Settings("dense", "float32"))


def update_ids(count: int) -> list[UpdateId]:
    """The updates in the order in which they are stored."""
    return [UpdateId(VEHICLES[n % len(VEHICLES)], EPOCH, n // len(VEHICLES)) for n in range(count)]


def sealed_update(id_: UpdateId, round_: int, *, is_large: bool) -> bytes:
    """An update for a round."""
    delta = np.random.default_rng(id_.sequence).normal(size=PARAMETERS).astype(np.float32)
    data = payload.encode(delta, SETTINGS[is_large], steps=5, examples=10)
    manifest = update.Manifest(id_, TASK, "north", round=round_, base_version=plan_of(round_).base_version)
    name = id_.vehicle
    body = update.pack(manifest, data)
    return envelope.seal(body, key_of(name), kind=Kind.UPDATE, sender=name, fleet=FLEET)


def forget(store: Store, ids: list[UpdateId]) -> None:
    """Settle these updates, and forget their bytes, as the server does some rounds later."""
    with store.write() as connection:
        store_updates.set_fates(connection, dict.fromkeys(ids, ("folded", "")))
        store_retention.retire(connection, RetentionConfig(), oldest_round=10_000, newest_version=1)


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
    party, limits = Party(FLEET, TASK, SERVER_KEY, {}), Limits(200_000, PARAMETERS, 100)
    told = os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    ids = update_ids(batches * UPDATES)
    for number in range(batches):
        if number == batches // 2:
            store.close()
            store = opened(folder)
        round_ = number + 1  # a vehicle fills a bounded part of one
        with store.write() as connection:
            store_rounds.add_round(connection, Round(plan_of(round_), "open", frozenset(), None, 1.0))
        good = ids[number * UPDATES : (number + 1) * UPDATES]
        sealed = [sealed_update(one, round_, is_large=n == number % UPDATES) for n, one in enumerate(good)]
        batch = [to_topic(id_.vehicle, one, round_=round_) for id_, one in zip(good, sealed, strict=True)]
        junk = [to_topic("v-0", bytes([number % 256]) * JUNK_BYTES) for _ in range(JUNK)]
        Ingest(store, party, limits, Limiter(Rate(1e6, 1e6))).receive(batch + junk, 2.0)
        os.write(told, f"{(number + 1) * UPDATES}\n".encode())
        if number % FORGET_EVERY == FORGET_EVERY - 1:
            forget(store, ids[: max(0, number - FORGET_AFTER) * UPDATES])
    store.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
