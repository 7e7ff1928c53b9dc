"""Late, carried and buffered updates, regions apart, pacing, clocks that jump: over the memory link."""

from pathlib import Path
from typing import Any

import pytest
from server_world import FLEET, configuration, sealed_update
from test_coordinator import ALL, TASK_ID, World, free_rounds

from fedfleet.fleet_server import store_updates
from fedfleet.fleet_server.config import ServerConfig
from fedfleet.fleet_server.pages import pages, settlement_topics
from fedfleet.fleet_server.store_check import problems
from fedfleet.link.port import MAX_PAYLOAD_BYTES
from fedfleet.protocol import topics
from fedfleet.protocol.envelope import Kind
from fedfleet.protocol.ids import UpdateId
from fedfleet.protocol.messages import Plan, Settlement


def id_of(vehicle: str, round_: int) -> str:
    return f"{vehicle}:abcdef0123456789:{round_}"


def rows(world: World, number: int) -> dict[str, tuple[str, list[str]]]:
    """State and frozen members of a round, by region."""
    shown: Any = world.snapshot()["rounds"]
    return {r["region"]: (r["state"], r["contributors"]) for r in shown if r["round"] == number}


def late_world(folder: Path, **rounds: object) -> World:
    """A world whose first round has closed without n-2, whose update then comes."""
    world = World(free_rounds(folder, **rounds))
    world.drive(*ALL)
    world.vehicles["n-2"].is_mute = True
    world.turn(5)
    world.turn(2, after_s=61.0)
    late = world.vehicles["n-2"]
    late.offer(sealed_update("n-2", late.plans[1]), 1)
    return world


@pytest.mark.parametrize("policy", ["carry", "staleness-weighted"])
def test_a_late_update_is_carried_and_folds_in_the_next_round_of_its_region(
    tmp_path: Path, policy: str
) -> None:
    world = late_world(tmp_path, late=policy)
    # when it has come
    world.turn(2)
    assert [(r.outcome, r.fate, r.reason) for r in world.vehicles["n-2"].receipts] == [
        ("stored", "carried", "late")
    ]
    # then it is folded with the next round
    world.turn(3, after_s=61.0)
    settled = world.vehicles["n-2"].settlements[2]
    assert {id_: fate for id_, fate in settled.fates.items() if fate == "folded"} == {
        id_of("n-0", 2): "folded",
        id_of("n-1", 2): "folded",
        id_of("n-2", 1): "folded",
    }
    # and never again
    world.turn(3, after_s=61.0)
    assert id_of("n-2", 1) not in world.vehicles["n-2"].settlements[3].fates
    world.parts.close()


def test_weighted_by_staleness_it_moves_the_model_less(tmp_path: Path) -> None:
    vectors = {}
    for policy in ("carry", "staleness-weighted"):
        world = late_world(tmp_path / policy, late=policy)
        world.turn(3)
        world.turn(3, after_s=61.0)
        assert world.snapshot()["version"] == 2
        vectors[policy] = world.vector()
        world.parts.close()
    assert vectors["carry"] != vectors["staleness-weighted"]


def test_a_late_second_update_of_a_vehicle_is_dropped(tmp_path: Path) -> None:
    # given a round in which n-0 was counted, and the policy to carry
    world = late_world(tmp_path, late="carry")
    sender = world.vehicles["n-0"]
    # when it sends another one for it, as a vehicle with a new journal would
    second = sealed_update("n-0", sender.plans[1], id=UpdateId("n-0", 5, 1))
    sender.offer(second, 1)
    world.turn(2)
    assert [(r.fate, r.reason) for r in sender.receipts if r.fate] == [("dropped", "second-update")]
    world.parts.close()


def test_after_the_last_round_what_is_late_is_returned(tmp_path: Path) -> None:
    world = late_world(tmp_path, late="carry", total=1)
    world.turn(2)
    assert [(r.fate, r.reason) for r in world.vehicles["n-2"].receipts] == [("returned", "late")]
    world.parts.close()


def test_what_is_too_many_versions_behind_is_returned(tmp_path: Path) -> None:
    # given a late update that may not be behind at all
    world = late_world(tmp_path, late="carry", max_staleness=0)
    world.turn(2)
    assert [(r.fate, r.reason) for r in world.vehicles["n-2"].receipts] == [("returned", "too-stale")]
    world.parts.close()


def test_a_region_below_its_quorum_is_carried_and_folds_with_the_next_round(tmp_path: Path) -> None:
    # given two vehicles in the south, of which one answers, quorum two, and the policy to carry
    world = World(free_rounds(tmp_path, below_quorum="carry"))
    world.drive(*ALL)
    world.vehicles["s-1"].is_mute = True
    world.turn(5)
    world.turn(3, after_s=61.0)
    world.turn(2)
    # then its update waits
    settled = world.vehicles["s-0"].settlements[1]
    assert (settled.outcome, settled.fates) == ("abandoned", {id_of("s-0", 1): "carried"})
    # and makes up the quorum with that of the other vehicle, which answers the next round
    world.vehicles["s-0"].is_mute = True
    world.vehicles["s-0"].outbox.clear()
    world.vehicles["s-1"].reply(world.vehicles["s-1"].plans[2])
    world.turn(3, after_s=61.0)
    assert rows(world, 2)["south"][0] == "published"
    told = world.vehicles["s-0"].settlements[2].fates
    assert told[id_of("s-0", 1)] in {"folded", "returned"}
    assert told[id_of("s-1", 2)] == "folded"
    world.parts.close()


def test_a_region_that_nobody_can_help_holds_the_others_up_for_a_lease_only(tmp_path: Path) -> None:
    # given a round of both regions, in which the south has one vehicle and a quorum of two
    world = World(free_rounds(tmp_path))
    world.drive("n-0", "n-1", "n-2", "s-0")
    world.turn(3)
    world.turn(5, after_s=6.0)
    assert world.snapshot()["version"] == 0
    # when the time of a lease is over, long before the deadline
    world.turn(3, after_s=10.0)
    # then the north's version is published
    assert world.snapshot()["version"] == 1
    world.turn(1)
    assert "no one else to wait for" in world.vehicles["s-0"].settlements[1].reason
    world.parts.close()


def buffered(folder: Path, **rounds: object) -> ServerConfig:
    return free_rounds(folder, **{"mode": "buffered", "buffer": 2, "total": 0, "quorum": 1} | rounds)


def test_a_full_buffer_makes_a_version_at_once_and_the_others_wait_in_theirs(tmp_path: Path) -> None:
    # given a buffered server; two vehicles of the north answer, and one of the south
    world = World(buffered(tmp_path))
    world.drive("n-0", "n-1", "s-0", "s-1")
    world.vehicles["s-1"].is_mute = True
    world.turn(4)
    for vehicle in world.vehicles.values():
        vehicle.is_mute = True
    world.turn(1)
    # then the north's buffer was flushed, and the south's update waits
    assert rows(world, 1) == {"north": ("published", ["n-0", "n-1"]), "south": ("carried", [])}
    assert world.vehicles["s-0"].settlements[1].fates == {id_of("s-0", 1): "carried"}
    assert world.vehicles["s-0"].plans[2].base_version == 1
    # and it is folded with the next one of its region, though older
    world.vehicles["s-1"].reply(world.vehicles["s-1"].plans[2])
    world.turn(3)
    assert world.vehicles["s-0"].settlements[2].fates[id_of("s-0", 1)] == "folded"
    world.parts.close()


def test_a_buffer_that_does_not_fill_is_flushed_at_its_time_limit(tmp_path: Path) -> None:
    world = World(buffered(tmp_path, buffer=5))
    world.drive(*ALL)
    world.turn(3)
    assert world.snapshot()["version"] == 0
    world.turn(2, after_s=61.0)
    assert world.snapshot()["version"] == 1
    world.parts.close()


def test_a_buffered_server_killed_at_any_turn_counts_nothing_twice(tmp_path: Path) -> None:
    world = World(buffered(tmp_path, total=6))
    world.drive(*ALL)
    for _ in range(8):
        world.turn(1)
        world.kill()
        world.start()
        for vehicle in world.vehicles.values():
            vehicle.resend()
    world.turn(40, after_s=1.0)
    with world.parts.store.read() as connection:
        query = "select m.update_id from member m join round r on r.round = m.round and r.region = m.region"
        folded = connection.exec_driver_sql(f"{query} where r.state = 'published'").scalars().all()
        stored = connection.exec_driver_sql("select id from \"update\" where fate = 'folded'").scalars().all()
    assert sorted(folded) == sorted(stored)
    assert len(set(folded)) == len(folded) > 6
    world.parts.close()


@pytest.mark.parametrize("modes", [("sync", "buffered"), ("buffered", "sync")])
def test_the_mode_can_be_changed_between_two_starts(tmp_path: Path, modes: tuple[str, str]) -> None:
    # given a server that is killed while a round runs, and one vehicle's update is on its way
    configs = {"sync": free_rounds(tmp_path, total=0), "buffered": buffered(tmp_path)}
    world = World(configs[modes[0]])
    world.drive(*ALL)
    world.turn(6)
    late = world.vehicles["n-2"]
    late.is_mute = True
    world.turn(1)
    before = world.snapshot()["version"]
    late.offer(sealed_update("n-2", late.plans[max(late.plans)]), max(late.plans))
    world.kill()
    # when it starts again in the other mode
    world.config = configs[modes[1]]
    world.start()
    late.is_mute = False
    for vehicle in world.vehicles.values():
        vehicle.resend()
    for _ in range(6):
        world.turn(2, after_s=20.0)
    # then it makes versions in that mode, and each update has one fate, in the store and in the settlements
    assert world.snapshot()["version"] >= before + 2  # type: ignore[operator]
    assert late.plans[max(late.plans)].mode == modes[1]
    with world.parts.store.read() as connection:
        assert problems(connection) == []
        assert store_updates.audit_head(connection)[0] > len(ALL)
    world.parts.close()


def test_regions_apart_run_their_own_rounds(tmp_path: Path) -> None:
    # given a south that says nothing
    world = World(free_rounds(tmp_path, regions="apart", quorum=1))
    world.drive(*ALL)
    world.vehicles["s-0"].is_mute = world.vehicles["s-1"].is_mute = True
    # when there is time for all rounds of the north
    world.turn(20)
    # then they are over, while the south's first one is open
    assert rows(world, 3) == {"north": ("published", ["n-0", "n-1", "n-2"])}
    assert rows(world, 1)["south"][0] == "open"
    # and what the south trained from the older version still folds
    late = world.vehicles["s-0"]
    late.reply(late.plans[1])
    world.turn(3, after_s=61.0)
    assert world.vehicles["s-0"].settlements[1].version == 4
    world.parts.close()


def test_plans_tell_when_to_come_back_and_no_round_opens_before(tmp_path: Path) -> None:
    world = World(configuration(tmp_path, rounds={"total": 2, "quorum": 1, "interval_s": 100.0}))
    world.drive(*ALL)
    world.turn(10)
    plan = world.vehicles["n-0"].plans[1]
    assert plan.next_round_at_s == plan.opened_at_s + 100.0
    assert (world.snapshot()["version"], world.snapshot()["round"]) == (1, 1)
    world.turn(2, after_s=100.0)
    assert world.snapshot()["round"] == 2
    world.parts.close()


@pytest.mark.parametrize("jump_s", [-3600.0, 3600.0])
def test_a_clock_that_is_set_anew_neither_ends_a_round_nor_makes_it_endless(
    tmp_path: Path, jump_s: float
) -> None:
    # given a round that was opened a moment ago and waits for one vehicle, until its deadline in 60 s
    world = World(free_rounds(tmp_path))
    world.drive(*ALL)
    world.vehicles["n-2"].is_mute = True
    world.steady_s = 0.0
    while world.snapshot()["round"] < 1:  # type: ignore[operator]
        world.turn(1)
    # when the server's clock is set, before it has looked at the round again
    world.now_s += jump_s
    world.turn(5)
    assert rows(world, 1)["north"][0] == "open"
    # then the deadline moves with it
    world.steady_s = 59.0
    world.turn(2)
    assert rows(world, 1)["north"][0] == "open"
    world.steady_s = 60.0
    world.turn(2)
    assert rows(world, 1)["north"][0] == "published"
    world.parts.close()


# --- pages ---


def large(count: int) -> Settlement:
    ids = [f"vehicle-with-a-rather-long-name-{n:04d}:0123456789abcdef:{n}" for n in range(count)]
    return Settlement(
        task=TASK_ID,
        region="north",
        round=7,
        outcome="published",
        version=3,
        closed_at_s=1.0,
        fates=dict.fromkeys(ids, "returned"),
        reasons=dict.fromkeys(ids, "late"),
    )


def test_a_settlement_that_is_too_large_for_a_message_comes_in_pages(tmp_path: Path) -> None:
    world = World(configuration(tmp_path))
    told = large(10_000)
    parts = pages(told)
    assert len(parts) > 3
    assert [(part.page, part.pages) for part in parts] == [(n, len(parts)) for n in range(len(parts))]
    assert {id_: fate for part in parts for id_, fate in part.fates.items()} == told.fates
    assert {id_: why for part in parts for id_, why in part.reasons.items()} == told.reasons
    sizes = [len(world.parts.party.seal(part, Kind.SETTLEMENT)) for part in parts]
    assert max(sizes) <= MAX_PAYLOAD_BYTES
    # and each has a topic, the first one the same as before there were pages
    where = settlement_topics(told, fleet=FLEET)
    assert where[0] == topics.settlement(FLEET, "north", TASK_ID, 7)
    assert [topics.parse(topic).number for topic in where] == list(range(len(parts)))
    assert [topics.parse(topic).round for topic in where] == [7] * len(parts)
    world.parts.close()


def test_a_small_settlement_is_one_page() -> None:
    told = large(3)
    assert pages(told) == [told]
    assert pages(large(0)) == [large(0)]


def test_an_old_vehicle_s_plan_and_settlement_are_read_without_the_new_fields() -> None:
    told = large(1).model_dump_json(exclude={"page", "pages"})
    assert Settlement.model_validate_json(told) == large(1)
    assert (Plan.model_fields["next_round_at_s"].default, Plan.model_fields["mode"].default) == (0.0, "sync")
