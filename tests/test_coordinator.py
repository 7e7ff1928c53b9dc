"""Rounds from opening to publishing, over the memory link, with scripted vehicles and a clock in the test's hand."""

from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from server_world import FLEET, REGIONS, Vehicle, configuration, key_of, sealed_update

from fedfleet.codec import payload
from fedfleet.fleet_server import store_blobs, store_models, store_rounds, store_updates, store_vehicles
from fedfleet.fleet_server.assembly import Parts, assemble, prepare
from fedfleet.fleet_server.config import ServerConfig
from fedfleet.fleet_server.server import Server
from fedfleet.fleet_server.status import snapshot
from fedfleet.link.inbox import Inbox
from fedfleet.link.memory import MemoryBroker
from fedfleet.link.port import Event
from fedfleet.models import bundle, layout
from fedfleet.models.layout import patch
from fedfleet.protocol import envelope, messages, topics
from fedfleet.protocol.ids import SERVER
from fedfleet.protocol.messages import ModelPointer, Release
from fedfleet.protocol.signing import Keyring

TASK_ID = "linear-test"
START_S = 1_000_000.0


class World:
    """A server and its vehicles at one memory broker; `turn` lets everything happen that can."""

    def __init__(self, config: ServerConfig, broker: MemoryBroker | None = None) -> None:
        self.config, self.broker, self.now_s = config, broker or MemoryBroker(), START_S
        self.vehicles: dict[str, Vehicle] = {}
        self.steady_s: float | None = None
        self.start()

    def start(self) -> None:
        self.inbox: Inbox[Event] = Inbox(10_000)
        self.parts: Parts = prepare(self.config, now_s=self.now_s, draw=lambda n: b"k" * n)
        self.enrol()
        link = self.broker.connect(SERVER, self.inbox.put)
        self.server: Server = assemble(self.parts, link)

    def enrol(self) -> None:
        with self.parts.store.write() as connection:
            for region, names in REGIONS.items():
                for name in names:
                    key = key_of(name).public
                    store_vehicles.enrol(connection, name, region=region, public_key=key, now_s=self.now_s)

    def kill(self) -> None:
        """End the server as kill -9 does: nothing that was not committed survives."""
        self.broker.kill(SERVER)
        self.parts.close()

    def drive(self, *names: str) -> None:
        for name in names:
            region = next(region for region, vehicles in REGIONS.items() if name in vehicles)
            vehicle = self.vehicles[name] = Vehicle(name, region, TASK_ID, self.parts.party.key.public)
            vehicle.link = self.broker.connect(name, vehicle.events.append)

    def turn(self, times: int = 1, *, after_s: float = 0.0) -> None:
        self.now_s += after_s
        for _ in range(times):
            self.broker.pump()
            for vehicle in self.vehicles.values():
                vehicle.step()
            self.broker.pump()
            self.server.handle(self.inbox.drain(10_000, 0.0), self.now_s)
            self.server.tick(self.now_s, self.steady_s)

    def snapshot(self) -> Mapping[str, object]:
        return snapshot(self.config.data_dir, self.now_s)

    def vector(self) -> str:
        with self.parts.store.read() as connection:
            model = store_models.newest_model(connection)
        assert model is not None
        return model.vector_sha256

    def region_message(self, topic: str, kind: type[messages.M]) -> messages.M:
        ring = Keyring({SERVER: self.parts.party.key.public})
        opened = envelope.open_sealed(self.broker.retained[topic], ring, fleet=FLEET, limit_bytes=1_000_000)
        return messages.decode(kind, opened.body, sender=SERVER)

    def blob(self, ref: messages.BlobRef) -> bytes:
        retained = self.broker.retained
        return b"".join(retained[topics.blob(FLEET, ref.sha256, n)] for n in range(ref.chunks))


ALL = tuple(name for names in REGIONS.values() for name in names)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(configuration(tmp_path))
    yield made
    made.parts.close()


def free_rounds(folder: Path, **rounds: object) -> ServerConfig:
    settings = {"total": 3, "quorum": 2, "deadline_s": 60.0, "lease_s": 10.0, "start_wait_s": 5.0}
    return configuration(folder, rounds=settings | rounds)


def test_three_rounds_are_published_and_the_error_falls(world: World) -> None:
    # given all vehicles
    world.drive(*ALL)
    # when nothing hinders them
    world.turn(30)
    # then three versions are published, and every vehicle's updates were folded
    shown = world.snapshot()
    assert (shown["version"], shown["rounds_run"], shown["is_done"]) == (3, 3, True)
    for vehicle in world.vehicles.values():
        assert sorted(vehicle.settlements) == [1, 2, 3]
        assert not vehicle.outbox
        for round_, settled in vehicle.settlements.items():
            assert settled.fates[f"{vehicle.name}:abcdef0123456789:{round_}"] == "folded"
            assert settled.version == round_
    history = [entry["scores"]["north"] for entry in shown["history"]]  # type: ignore[index,attr-defined]
    assert history == sorted(history, reverse=True)


def test_what_is_published_is_what_a_vehicle_computes(tmp_path: Path) -> None:
    # given three published versions, whose deltas are together smaller than the full vector
    world = World(configuration(tmp_path, downlink={"value": "sign", "density": 0.1}))
    world.drive(*ALL)
    world.turn(30)
    # when a vehicle takes the graph and the full vector, or goes along the chain of deltas from version 0
    pointer = world.region_message(topics.model(FLEET, "south", TASK_ID), ModelPointer)
    layout_json, onnx = bundle.unpack_graph(world.blob(pointer.graph), limit_bytes=10**6)
    full = bundle.unpack_vector(world.blob(pointer.full), size=pointer.parameters)
    chained = np.zeros(pointer.parameters, np.float32)
    assert [delta.to_version for delta in pointer.deltas] == [1, 2, 3]
    for delta in pointer.deltas:
        chained = chained + payload.decode(world.blob(delta.blob), size=pointer.parameters).delta.dense()
    # then both are the published model, and so is the file that the server wrote
    file = patch(onnx, layout.read(layout_json), full)
    assert full.tobytes() == chained.tobytes()
    assert sha256(full.tobytes()).hexdigest() == pointer.vector_sha256
    assert sha256(file).hexdigest() == pointer.onnx_sha256
    assert (world.config.data_dir / "model.onnx").read_bytes() == file
    assert (world.config.data_dir / "models" / "3.onnx").read_bytes() == file
    # and the release names it, with a canary
    release = world.region_message(topics.release(FLEET, "south", TASK_ID), Release)
    assert (release.number, release.model.version) == (4, 3)
    assert release.canary_inputs is not None
    blobs = [world.blob(ref) for ref in (release.canary, release.canary_inputs)]
    inputs, outputs = bundle.unpack_canary(*blobs, limit_bytes=10**6)
    assert (inputs.shape, outputs.shape) == ((8, 8), (8, 3))


@pytest.mark.parametrize("turns", [1, 2, 3, 5, 7])
def test_a_server_killed_at_any_turn_ends_with_the_same_model(tmp_path: Path, turns: int) -> None:
    # given the vector of an undisturbed run
    calm = World(configuration(tmp_path / "calm"))
    calm.drive(*ALL)
    calm.turn(30)
    # when another server is killed, and started again, every few turns
    shaken = World(configuration(tmp_path / "shaken"))
    shaken.drive(*ALL)
    for _ in range(4):
        shaken.turn(turns)
        shaken.kill()
        shaken.start()
        for vehicle in shaken.vehicles.values():
            vehicle.resend()
    shaken.turn(30)
    # then both have the same vector, and no update is there twice
    assert shaken.vector() == calm.vector()
    with shaken.parts.store.read() as connection:
        assert store_updates.audit_head(connection)[0] == len(ALL) * 3
    for made in (calm, shaken):
        made.parts.close()


def test_of_many_vehicles_the_rounds_are_looked_at_less_often(tmp_path: Path) -> None:
    # given 1,000 vehicles more, which are away, and a round whose last two updates are awaited
    world = World(free_rounds(tmp_path))
    with world.parts.store.write() as connection:
        for number in range(1000):
            key = key_of(str(number)).public
            store_vehicles.enrol(connection, f"v-{number}", region="north", public_key=key, now_s=START_S)
    world.drive(*ALL)
    slow = [world.vehicles[name] for name in ("n-1", "n-2")]
    for vehicle in slow:
        vehicle.is_mute = True
    for _ in range(8):
        world.turn(after_s=0.2)
    # when they come one right after the other
    for vehicle in slow:
        vehicle.reply(vehicle.plans[1])
        world.turn()
    world.turn()
    assert [receipt.outcome for vehicle in slow for receipt in vehicle.receipts] == ["stored", "stored"]
    # then both are stored at once, and the round closes at the next look, a fifth of a second later
    assert world.snapshot()["version"] == 0
    for _ in range(4):
        world.turn(after_s=0.11)
    assert world.snapshot()["version"] == 1
    world.parts.close()


def test_an_open_round_goes_on_with_the_same_plan(world: World) -> None:
    # given an open round that waits for one vehicle
    world.drive(*ALL[:-1])
    world.turn(5)
    plan = world.vehicles["n-0"].plans[1]
    before = world.snapshot()["regions"]
    # when the server is killed and another one starts later
    world.kill()
    world.now_s += 20.0
    world.start()
    world.turn(5)
    # then the round is the same, with the same deadline and revision, and the stored updates are there
    again = world.snapshot()
    assert again["resumed_round"] == 1
    assert world.vehicles["n-0"].plans == {1: plan}
    assert again["regions"]["north"]["received"] == before["north"]["received"] == 3  # type: ignore[index]
    # and it closes when the last one comes
    world.drive(ALL[-1])
    world.turn(30)
    assert world.snapshot()["version"] == 3


def test_everything_is_published_again_after_the_broker_lost_it(world: World) -> None:
    # given a broker that retains all
    world.drive(*ALL)
    world.turn(30)
    retained = {t: p for t, p in world.broker.retained.items() if "/v/" not in t}
    # when it loses everything
    world.broker.stop(lose=True)
    world.broker.start()
    world.turn(5)
    # then it retains the same again
    assert {t: p for t, p in world.broker.retained.items() if "/v/" not in t} == retained


def test_no_message_names_a_blob_that_the_broker_does_not_hold(tmp_path: Path) -> None:
    # given a server whose messages are handled one by one
    world = World(configuration(tmp_path, rounds=_contributors(8)))
    world.drive(*ALL)
    for _ in range(3000):
        # when any one message was handled
        world.broker.pump(1)
        for vehicle in world.vehicles.values():
            vehicle.step()
        world.server.handle(world.inbox.drain(1, 0.0), world.now_s)
        world.server.tick(world.now_s)
        # then every pointer that is retained leads to retained chunks
        retained = world.broker.retained
        if (topic := topics.model(FLEET, "north", TASK_ID)) in retained:
            pointer = world.region_message(topic, ModelPointer)
            for ref in (pointer.graph, pointer.full, *(delta.blob for delta in pointer.deltas)):
                assert sha256(world.blob(ref)).hexdigest() == ref.sha256
    assert world.snapshot()["version"] == 8
    world.parts.close()


def _contributors(total: int) -> dict[str, object]:
    return {"total": total, "quorum": 1, "contributors": {name: list(v) for name, v in REGIONS.items()}}


def test_old_blobs_and_settlements_are_cleared_also_by_the_next_server(tmp_path: Path) -> None:
    # given eight rounds
    world = World(configuration(tmp_path, rounds=_contributors(8)))
    world.drive(*ALL)
    world.turn(60)
    # then the broker retains: graph, inputs of all canaries, canaries and vectors of the last versions within the
    # grace, and the deltas, of which two are smaller than the full vector
    with world.parts.store.read() as connection:
        live = connection.exec_driver_sql("select kind, count(*) from blob group by kind").all()
        waiting = store_blobs.to_clear(connection)
    kinds = {row[0]: row[1] for row in live}
    assert kinds == {"graph": 1, "inputs": 1, "full": 3, "canary": 3, "delta": 4}
    assert waiting == []
    blobs = [topic for topic in world.broker.retained if "/blob/" in topic]
    assert len(blobs) == sum(kinds.values())
    settled = sorted(t.rpartition("/")[2] for t in world.broker.retained if "/north/settlement/" in t)
    assert settled == ["6", "7", "8"]
    # and a topic that was not cleared yet is cleared by a server that starts later
    with world.parts.store.write() as connection:
        store_blobs.to_clear(connection, [topics.settlement(FLEET, "north", TASK_ID, 6)])
    with world.parts.store.write() as connection:
        connection.exec_driver_sql("update settlement set retired = 1 where round = 6 and region = 'north'")
    world.kill()
    world.start()
    world.turn(5)
    assert topics.settlement(FLEET, "north", TASK_ID, 6) not in world.broker.retained
    world.parts.close()


def test_a_round_closes_at_its_deadline_without_the_missing(tmp_path: Path) -> None:
    # given a round that asks three vehicles of the north and two of the south, of whom one says nothing
    world = World(free_rounds(tmp_path))
    world.drive(*ALL)
    world.vehicles["n-2"].is_mute = True
    world.turn(5)
    assert world.snapshot()["regions"]["north"]["state"] == "open"  # type: ignore[index]
    # when the deadline has come
    world.turn(2, after_s=61.0)
    # then it closed without it, and the version is published
    rows = [row for row in world.snapshot()["rounds"] if row["round"] == 1]  # type: ignore[attr-defined]
    assert [(r["region"], r["reason"], r["contributors"]) for r in rows] == [
        ("north", "deadline", ["n-0", "n-1"]),
        ("south", "target", ["s-0", "s-1"]),
    ]
    # and its late update is stored, and returned
    late = world.vehicles["n-2"]
    late.offer(sealed_update("n-2", late.plans[1]), 1)
    world.turn(3)
    assert [(r.outcome, r.fate, r.reason) for r in late.receipts] == [("stored", "returned", "late")]
    world.parts.close()


def test_a_region_below_its_quorum_is_abandoned_and_the_other_goes_on(tmp_path: Path) -> None:
    # given a region of which one vehicle is there, quorum two
    world = World(free_rounds(tmp_path))
    world.drive("n-0", "n-1", "n-2", "s-0")
    world.turn(3)
    assert world.snapshot()["round"] == 0
    # when the wait for the start is over, and later the deadline
    world.turn(5, after_s=6.0)
    world.turn(3, after_s=61.0)
    # then the south's update is returned, and version 1 is the north's
    settled = world.vehicles["s-0"].settlements[1]
    assert (settled.outcome, settled.version) == ("abandoned", 0)
    assert "1 updates at the deadline, quorum 2" in settled.reason
    assert list(settled.fates.values()) == ["returned"]
    assert world.vehicles["n-0"].settlements[1].version == 1
    world.parts.close()


def test_a_version_that_the_gate_refuses_changes_nothing(tmp_path: Path) -> None:
    # given a gate that takes no loss, and a strategy that overshoots by far
    strategy = {"name": "fedavg", "server_learning_rate": 100.0}
    world = World(configuration(tmp_path, strategy=strategy, gate={"tolerance": 0.0}))
    before = world.vector()
    world.drive(*ALL)
    # when the rounds are run
    world.turn(30)
    # then no version came, the vector is the same, and the updates came back
    shown = world.snapshot()
    assert (shown["version"], shown["rounds_run"], shown["rounds_published"]) == (0, 3, 0)
    assert world.vector() == before
    settled = world.vehicles["n-0"].settlements[3]
    assert settled.outcome == "abandoned"
    assert "distance" in settled.reason
    assert set(settled.fates.values()) == {"returned"}
    assert set(settled.reasons.values()) == {"refused-by-gate"}
    world.parts.close()


def test_a_round_whose_model_is_not_there_any_more_is_abandoned(world: World) -> None:
    # given an open round whose plan names a version that the store does not have
    world.drive(*ALL)
    for vehicle in world.vehicles.values():
        vehicle.is_mute = True
    world.turn(4)
    with world.parts.store.write() as connection:
        number = store_rounds.newest(connection)
        for one in store_rounds.current(connection).values():
            assert one.state == "open"
            plan = one.plan.model_copy(update={"base_version": 99})
            store_rounds.replan(connection, plan, now_s=world.now_s)
    # when the server looks at it
    world.turn(2, after_s=60.0)
    for vehicle in world.vehicles.values():
        vehicle.is_mute = False
    world.turn(8)
    # then it is over, with the reason, and the next one is published
    with world.parts.store.read() as connection:
        ended = store_rounds.rounds(connection, number=number)
    assert {one.state for one in ended} == {"abandoned"}
    assert ended[0].reason == "version 99, which it trains from, is not there any more"
    assert world.snapshot()["rounds_published"] != 0
