"""An update that is much too long, or that ruins a round: named, left out, and the rest goes on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_world import EPOCH, FLEET, SIZE, TRUTH, Vehicle, configuration, key_of, sealed_update
from test_coordinator import ALL, TASK_ID, World

from fedfleet.codec import payload
from fedfleet.codec.delta import Delta
from fedfleet.codec.settings import Settings
from fedfleet.fleet_server import (
    store_norms,
    store_quarantine,
    store_updates,
    store_vehicles,
    store_waiting,
)
from fedfleet.fleet_server.config import ServerConfig
from fedfleet.fleet_server.norms import ABSURD, Recent
from fedfleet.fleet_server.outliers import MOST_TRIES, Suspect, suspects, tries
from fedfleet.fleet_server.store_check import problems
from fedfleet.models.task import Floats
from fedfleet.protocol import envelope, update
from fedfleet.protocol.envelope import Kind
from fedfleet.protocol.ids import UpdateId
from fedfleet.protocol.messages import Plan

FREE = {"total": 3, "quorum": 1, "deadline_s": 60.0, "lease_s": 10.0, "start_wait_s": 5.0}
HONEST = tuple(name for name in ALL if name != "n-2")


def crafted(vehicle: str, plan: Plan, delta: Floats) -> bytes:
    """A vehicle's sealed update that says just this, dense and exact or as the plan tells."""
    manifest = update.Manifest(
        UpdateId(vehicle, EPOCH, plan.round), plan.task, plan.region, plan.round, plan.base_version
    )
    settings = Settings(plan.codec.index, plan.codec.value, plan.codec.density)
    body = update.pack(manifest, payload.encode(delta, settings, steps=5, examples=12))
    return envelope.seal(body, key_of(vehicle), kind=Kind.UPDATE, sender=vehicle, fleet=FLEET)


def world_of(folder: Path, **changes: Any) -> World:
    config: ServerConfig = configuration(
        folder,
        **(
            {
                "codec": {"index": "dense", "value": "float32"},
                "strategy": {"rule": "mean", "server_learning_rate": 1.0},
                "gate": {"tolerance": 0.1, "step_factor": None},
                "rounds": FREE,
            }
            | changes
        ),
    )
    return World(config)


def attack(world: World, delta: Floats, *, turns: int = 30, after_s: float = 7.0) -> None:
    """Let n-2 send this in every round instead of what it learned, until time for all rounds is over."""
    evil = world.vehicles["n-2"]
    evil.is_mute = True
    for _ in range(turns):
        world.turn(1, after_s=after_s)
        for number in sorted(set(evil.plans) - evil.answered):
            evil.answered.add(number)
            evil.offer(crafted("n-2", evil.plans[number], delta), number)


def rows(world: World) -> dict[str, list[tuple[int, str, str]]]:
    with world.parts.store.read() as connection:
        found = connection.exec_driver_sql('select vehicle, round, fate, reason from "update" order by round')
        by_vehicle: dict[str, list[tuple[int, str, str]]] = {}
        for vehicle, round_, fate, reason in found.all():
            by_vehicle.setdefault(vehicle, []).append((round_, fate, reason))
    return by_vehicle


@pytest.mark.parametrize("size", [1e30, 1e12, -1e30])
def test_an_absurd_update_is_refused_at_the_door_and_its_vehicle_named(
    tmp_path: Path, size: float, capsys: pytest.CaptureFixture[str]
) -> None:
    # given a fleet with the plain mean, and a vehicle that sends one huge number in the first round
    world = world_of(tmp_path)
    world.drive(*ALL)
    delta = np.zeros(SIZE, np.float32)
    delta[3] = size
    attack(world, delta, turns=60)
    # then it is refused by name, put aside and counted, and nobody else loses anything
    refused = [one for one in world.vehicles["n-2"].receipts if one.outcome == "refused"]
    assert {one.reason for one in refused} == {"norm-too-large"}
    with world.parts.store.read() as connection:
        kept = store_quarantine.quarantined(connection, limit=10, reason="norm-too-large")
        counted = store_updates.counters(connection)["refused:norm-too-large"]
    assert {one.vehicle for one in kept} == {"n-2"}
    assert "update n-2:" in kept[0].detail
    assert "limit" in kept[0].detail
    assert counted == len(kept) >= 1
    assert "vehicle=n-2" in capsys.readouterr().out
    assert world.snapshot()["version"] == 3
    assert all(fate == "folded" for name in HONEST for _, fate, _ in rows(world)[name])
    world.parts.close()


def test_what_is_fifty_times_as_long_as_usual_is_refused_also_after_a_restart(tmp_path: Path) -> None:
    # given two folded rounds
    world = world_of(tmp_path, rounds=FREE | {"total": 4})
    world.drive(*ALL)
    while world.snapshot()["version"] < 2:  # type: ignore[operator]
        world.turn(2, after_s=6.0)
    plan = world.vehicles["n-2"].plans[max(world.vehicles["n-2"].plans)]
    with world.parts.store.read() as connection:
        before = store_norms.recent(connection, plan.codec)
    assert before.usual == pytest.approx(float(np.linalg.norm(TRUTH)) * 0.15, rel=0.5)
    # when the server was killed
    world.kill()
    world.start()
    # then it bounds by the same
    with world.parts.store.read() as connection:
        assert store_norms.recent(connection, plan.codec) == before
        longest = world.parts.ingest.view(connection).longest(plan)
    assert before.usual is not None
    assert longest == 50.0 * before.usual
    world.parts.close()


def test_a_round_that_one_update_ruins_is_folded_without_it(tmp_path: Path) -> None:
    # given a vehicle that sends something forty times too long, which the door lets in
    world = world_of(tmp_path)
    world.drive(*ALL)
    attack(world, (-6.0 * TRUTH).astype(np.float32))
    # then every version is made without it, and it is named
    found = rows(world)
    assert world.snapshot()["version"] == 3
    assert found["n-2"][0] == (1, "dropped", "outlier")
    assert all(fate == "folded" for name in HONEST for _, fate, _ in found[name])
    with world.parts.store.read() as connection:
        kept = store_quarantine.quarantined(connection, limit=10, reason="outlier")
        assert store_updates.counters(connection)["refused:outlier"] == len(kept)
        assert problems(connection) == []
    assert kept[-1].vehicle == "n-2"
    assert "without update n-2:" in kept[-1].detail
    # and the vehicle hears of it
    settled = world.vehicles["n-2"].settlements[1]
    assert settled.outcome == "published"
    assert settled.reasons[f"n-2:{EPOCH:016x}:1"] == "outlier"
    world.parts.close()


def test_who_goes_the_other_way_is_left_out_too_and_its_update_comes_back(tmp_path: Path) -> None:
    # given a vehicle whose update is hardly longer than the others, but points away, and a gate that takes no loss
    world = world_of(tmp_path, gate={"tolerance": 0.0, "step_factor": None})
    north = ("n-0", "n-1", "n-2")
    world.drive(*north)
    attack(world, (-0.42 * TRUTH).astype(np.float32))
    found = rows(world)
    assert found["n-2"][0] == (1, "returned", "outlier")
    assert all(fate == "folded" for name in north[:2] for _, fate, _ in found[name])
    world.parts.close()


def test_when_nothing_helps_the_updates_come_back(tmp_path: Path) -> None:
    # given a gate that nobody can please
    world = world_of(
        tmp_path, strategy={"rule": "mean", "server_learning_rate": 100.0}, gate={"tolerance": 0.0}
    )
    world.drive(*ALL)
    world.turn(30)
    assert {(fate, why) for found in rows(world).values() for _, fate, why in found} == {
        ("returned", "refused-by-gate")
    }
    world.parts.close()


def test_a_server_that_is_killed_leaves_out_the_same(tmp_path: Path) -> None:
    vectors = []
    for name in ("calm", "shaken"):
        world = world_of(tmp_path / name)
        world.drive(*ALL)
        for turn in range(40):
            attack(world, (-6.0 * TRUTH).astype(np.float32), turns=1)
            if name == "shaken" and turn % 3 == 2:
                world.kill()
                world.start()
                for vehicle in world.vehicles.values():
                    vehicle.resend()
        assert world.snapshot()["version"] == 3
        assert {why for _, fate, why in rows(world)["n-2"] if fate == "dropped"} == {"outlier"}
        vectors.append(world.vector())
        world.parts.close()
    assert vectors[0] == vectors[1]


def test_a_rule_that_leaves_some_out_gives_the_fates_of_the_fold_that_counts(tmp_path: Path) -> None:
    # given krum, which keeps one of five, a hostile one in disguise: two that agree with each other and point away
    regions = {"north": tuple(f"n-{number}" for number in range(5))}
    world = Five(
        configuration(
            tmp_path,
            regions=regions,
            enrolment=[],
            codec={"index": "dense", "value": "float32"},
            strategy={"rule": "krum", "server_learning_rate": 1.0},
            gate={"tolerance": 0.0, "step_factor": None},
            rounds={"total": 1, "quorum": 5, "contributors": {"north": list(regions["north"])}},
        )
    )
    world.drive(*regions["north"])
    world.turn(4)
    for vehicle in world.vehicles.values():
        assert 1 in vehicle.plans
    world.turn(4)
    # then whatever fold counts, the fates in the store are those of its settlement
    told = world.vehicles["n-0"].settlements[1]
    stored = {
        f"{name}:{EPOCH:016x}:{round_}": (fate, why)
        for name, found in rows(world).items()
        for round_, fate, why in found
    }
    assert {id_: (fate, told.reasons.get(id_, "")) for id_, fate in told.fates.items()} == stored
    world.parts.close()


class Five(World):
    """A region of five vehicles."""

    def enrol(self) -> None:
        with self.parts.store.write() as connection:
            for name in self.config.rounds.contributors["north"]:  # type: ignore[index]
                key = key_of(name).public
                store_vehicles.enrol(connection, name, region="north", public_key=key, now_s=self.now_s)

    def drive(self, *names: str) -> None:
        for name in names:
            vehicle = self.vehicles[name] = Vehicle(name, "north", TASK_ID, self.parts.party.key.public)
            vehicle.link = self.broker.connect(name, vehicle.events.append)


def test_what_a_first_fold_set_aside_counts_again_in_a_second(tmp_path: Path) -> None:
    # given a member that was dropped, and one that had been carried from round 1 and was returned
    world = World(configuration(tmp_path))
    world.drive(*ALL)
    world.turn(6)
    with world.parts.store.write() as connection:
        ids = [UpdateId("n-0", EPOCH, 1), UpdateId("n-1", EPOCH, 1)]
        store_updates.set_fates(connection, {ids[0]: ("dropped", "x"), ids[1]: ("returned", "y")})
        # when they are taken back for a fold of round 1, and of round 2
        store_waiting.take_back(connection, ids[:1], number=1)
        store_waiting.take_back(connection, ids[1:], number=2)
        known = store_updates.known_of(connection, ids)
    assert [(known[id_].fate, known[id_].reason) for id_ in ids] == [(None, ""), ("carried", "")]
    world.parts.close()


# --- the default rule ---


def test_the_default_rule_bounds_what_one_vehicle_can_do(tmp_path: Path) -> None:
    # given the default rule, no gate to speak of, and a vehicle that sends what the door lets in
    steps = {}
    for rule in (None, "mean"):
        strategy = {"server_learning_rate": 1.0} | ({"rule": rule} if rule else {})
        gate = {"tolerance": 1.0, "step_factor": None}
        world = world_of(tmp_path / str(rule), strategy=strategy, gate=gate)
        world.drive(*ALL)
        attack(world, (-3.0 * TRUTH).astype(np.float32))
        steps[rule] = float(np.linalg.norm(world.parts.coordinator.model.vector - TRUTH))
        world.parts.close()
    # then the model is nearer to the truth than with the mean
    assert steps[None] < 0.7 * steps["mean"]


# --- the decisions ---


def test_the_bound_is_so_many_times_the_usual_and_widens_while_nothing_is_folded() -> None:
    recent = Recent((1.0, 2.0, 3.0, 4.0, 100.0), round=7)
    assert recent.usual == 3.0
    widths = [recent.limit(factor=50.0, parameters=10**6, round_=number) for number in (3, 7, 8, 9, 11)]
    assert widths == [150.0, 150.0, 150.0, 300.0, 1200.0]
    # but never above what no training makes
    assert recent.limit(factor=50.0, parameters=100, round_=10**6) == ABSURD * 10


@pytest.mark.parametrize("lengths", [(), (1.0, 2.0), (0.0,) * 9])
def test_with_nothing_to_compare_with_only_the_absurd_is_refused(lengths: tuple[float, ...]) -> None:
    assert Recent(lengths, 3).limit(factor=50.0, parameters=100, round_=4) == ABSURD * 10


def suspect(name: str, ratio: float, agreement: float) -> Suspect:
    return Suspect(UpdateId(name, 1, 1), "north", ratio, ratio, agreement)


def test_the_long_ones_are_tried_first_then_who_agrees_least() -> None:
    members = [suspect(f"v{n}", 1.0, 0.9 - n / 100) for n in range(8)]
    members += [suspect("long", 9.0, 1.0), suspect("away", 1.0, -0.8)]
    sets = [sorted(id_.vehicle for id_ in one) for one in tries(members)]
    assert sets == [["long"], ["away", "long"], ["away", "long", "v7"], ["away", "long", "v5", "v6", "v7"]]


def test_no_try_leaves_out_more_than_half_and_there_are_few() -> None:
    assert tries([suspect("a", 1.0, 0.0)]) == []
    for count in (2, 3, 5, 200):
        sets = tries([suspect(f"v{n}", 9.0 if n < count else 1.0, 0.0) for n in range(count)])
        assert all(2 * len(one) <= count for one in sets)
        assert len(sets) <= MOST_TRIES


def test_a_suspect_is_measured_against_the_others() -> None:
    # given four that agree, and one that goes the other way, ten times as far
    rows_ = [np.array([1.0, 0.1 * n], np.float32) for n in range(4)] + [np.array([-10.0, 0.0], np.float32)]
    found = suspects(
        [(UpdateId(f"v{n}", 1, 1), Delta(2, None, row), 1.0) for n, row in enumerate(rows_)],
        size=2,
        region="r",
    )
    assert [one.is_long for one in found] == [False] * 4 + [True]
    assert found[-1].agreement < -0.9
    assert min(one.agreement for one in found[:4]) > 0.9


def test_an_honest_update_still_passes(tmp_path: Path) -> None:
    world = World(configuration(tmp_path))
    world.drive(*ALL)
    world.turn(30)
    assert world.snapshot()["version"] == 3
    assert all(fate == "folded" for found in rows(world).values() for _, fate, _ in found)
    assert sealed_update("n-0", world.vehicles["n-0"].plans[1])
    world.parts.close()
