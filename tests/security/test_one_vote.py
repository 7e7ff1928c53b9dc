"""One vehicle, one vote: whatever was carried, a fold has at most one member of each vehicle."""

from collections import Counter
from pathlib import Path

import pytest
from server_world import Vehicle, configuration, key_of, sealed_update
from test_coordinator import ALL, TASK_ID, World, free_rounds

from fedfleet.fleet_server import store_vehicles
from fedfleet.fleet_server.settlement import Waiting, late_fate, superseded
from fedfleet.fleet_server.store_check import problems
from fedfleet.protocol.ids import UpdateId

TEN = {"north": tuple(f"n-{number}" for number in range(10))}


def id_of(vehicle: str, round_: int) -> str:
    return f"{vehicle}:abcdef0123456789:{round_}"


def members(world: World) -> dict[tuple[int, str], Counter[str]]:
    """How many members each vehicle has, by round and region."""
    found: dict[tuple[int, str], Counter[str]] = {}
    with world.parts.store.read() as connection:
        rows = connection.exec_driver_sql("select round, region, update_id from member").all()
    for round_, region, update_id in rows:
        found.setdefault((round_, region), Counter())[update_id.partition(":")[0]] += 1
    return found


def fates_of(world: World, vehicle: str) -> dict[int, tuple[str | None, str]]:
    """Fate and reason of a vehicle's updates in the store, by round."""
    with world.parts.store.read() as connection:
        query = 'select round, fate, reason from "update" where vehicle = ?'
        rows = connection.exec_driver_sql(query, (vehicle,)).all()
    return {round_: (fate, reason) for round_, fate, reason in rows}


def told(world: World, vehicle: str) -> dict[str, tuple[str, str]]:
    """The last word that a vehicle has heard of each of its updates, by settlement or receipt."""
    one = world.vehicles[vehicle]
    heard: dict[str, tuple[str, str]] = {
        receipt.update: (receipt.fate, receipt.reason) for receipt in one.receipts if receipt.fate
    }
    for _, settled in sorted(one.settlements.items()):
        heard |= {
            id_: (fate, settled.reasons.get(id_, ""))
            for id_, fate in settled.fates.items()
            if id_.startswith(f"{vehicle}:")
        }
    return heard


class Ten(World):
    """A region of ten vehicles."""

    def enrol(self) -> None:
        with self.parts.store.write() as connection:
            for name in TEN["north"]:
                key = key_of(name).public
                store_vehicles.enrol(connection, name, region="north", public_key=key, now_s=self.now_s)

    def drive(self, *names: str) -> None:
        for name in names:
            vehicle = self.vehicles[name] = Vehicle(name, "north", TASK_ID, self.parts.party.key.public)
            vehicle.link = self.broker.connect(name, vehicle.events.append)


def ten(folder: Path, **rounds: object) -> Ten:
    settings = {"total": 0, "quorum": 2, "deadline_s": 60.0, "lease_s": 10.0, "start_wait_s": 5.0}
    settings |= {"late": "carry", "max_staleness": 100} | rounds
    return Ten(configuration(folder, regions=TEN, rounds=settings, enrolment=[]))


@pytest.mark.parametrize(
    "mode",
    [
        {"late": "carry"},
        {"late": "staleness-weighted"},
        {"late": "carry", "regions": "apart"},
        {"late": "carry", "below_quorum": "carry"},
        {"mode": "buffered", "buffer": 9, "late": "return"},
    ],
    ids=lambda mode: "-".join(map(str, mode.values())),
)
@pytest.mark.parametrize("order", ["oldest first", "newest first"])
def test_a_silent_vehicle_that_answers_ten_past_rounds_at_once_has_one_vote(
    tmp_path: Path, mode: dict[str, object], order: str
) -> None:
    # given ten vehicles of which one hears ten plans and says nothing
    world = ten(tmp_path, **mode)
    world.drive(*TEN["north"])
    silent = world.vehicles["n-9"]
    silent.is_mute = True
    world.turn(3, after_s=6.0)
    while max(silent.plans, default=0) < 11:
        world.turn(3, after_s=31.0)
    # when it answers all of them at once
    for number in sorted(silent.plans, reverse=order == "newest first")[:11]:
        silent.reply(silent.plans[number])
    for _ in range(6):
        world.turn(3, after_s=31.0)
    # then no fold has more than one member of it, nor of anyone
    counted = members(world)
    assert max(max(one.values()) for one in counted.values()) == 1
    assert sum(one["n-9"] for one in counted.values()) >= 1
    # and the others come back to it: it hears so, and the store has no more than one fate of each
    returned = {
        id_ for id_, (fate, why) in told(world, "n-9").items() if (fate, why) == ("returned", "superseded")
    }
    stored = {
        id_of("n-9", n) for n, found in fates_of(world, "n-9").items() if found == ("returned", "superseded")
    }
    assert returned == stored
    assert len(stored) >= 8
    with world.parts.store.read() as connection:
        assert problems(connection) == []
    world.parts.close()


def test_a_vehicle_whose_journal_is_new_has_one_vote_too(tmp_path: Path) -> None:
    # given a vehicle whose update of round 1 was carried, and that answers round 2 with another journal
    world = World(free_rounds(tmp_path, late="carry"))
    world.drive(*ALL)
    late = world.vehicles["n-2"]
    late.is_mute = True
    world.turn(5)
    world.turn(2, after_s=61.0)
    late.offer(sealed_update("n-2", late.plans[1]), 1)
    world.turn(2)
    late.offer(sealed_update("n-2", late.plans[2], id=UpdateId("n-2", 5, 1)), 2)
    # when round 2 is folded
    world.turn(3, after_s=61.0)
    # then the newer one counts, and the older one comes back
    assert members(world)[2, "north"] == {"n-0": 1, "n-1": 1, "n-2": 1}
    settled = late.settlements[2]
    assert settled.fates["n-2:0000000000000005:1"] == "folded"
    assert (settled.fates[id_of("n-2", 1)], settled.reasons[id_of("n-2", 1)]) == ("returned", "superseded")
    world.parts.close()


def test_one_vehicle_alone_never_makes_up_a_quorum_of_two(tmp_path: Path) -> None:
    # given one vehicle in the south, quorum two, and the policy to carry
    world = World(free_rounds(tmp_path, below_quorum="carry", total=0))
    world.drive("n-0", "n-1", "n-2", "s-0")
    world.turn(3)
    world.turn(5, after_s=6.0)
    # when it answers round after round
    for _ in range(4):
        world.turn(3, after_s=61.0)
    # then its newest update waits, the older ones have come back, and nothing of it was folded
    found = fates_of(world, "s-0")
    newest = max(number for number, (fate, _) in found.items() if fate == "carried")
    returned = dict.fromkeys(range(1, newest), ("returned", "superseded"))
    assert {number: why for number, why in found.items() if number < newest} == returned
    assert not any(region == "south" for _, region in members(world))
    world.parts.close()


def test_a_full_buffer_is_so_many_vehicles_not_updates(tmp_path: Path) -> None:
    # given a buffer of three in the north, and two vehicles that answer plan after plan of the south's versions
    world = World(free_rounds(tmp_path, mode="buffered", buffer=3, quorum=1, total=0, deadline_s=1000.0))
    world.drive("n-0", "n-1", "s-0", "s-1")
    world.turn(3)
    world.turn(20, after_s=6.0)
    # then the north has not closed before a third vehicle answers
    assert all(len(one) == 3 for (_, region), one in members(world).items() if region == "north")
    world.parts.close()


@pytest.mark.parametrize("regions", ["together", "apart"])
def test_a_vehicle_that_has_moved_counts_in_one_region_of_a_version(tmp_path: Path, regions: str) -> None:
    # given a vehicle that answers round 1 in the north and is then moved to the south, where round 1 is open too
    world = World(free_rounds(tmp_path, regions=regions, quorum=1))
    world.drive(*ALL)
    for name in ALL:
        world.vehicles[name].is_mute = True
    world.turn(4)
    moved = world.vehicles["n-0"]
    moved.reply(moved.plans[1])
    world.turn(2)
    with world.parts.store.write() as connection:
        store_vehicles.enrol(
            connection, "n-0", region="south", public_key=key_of("n-0").public, now_s=world.now_s
        )
    # when it answers there as well, and both regions close
    plan = world.vehicles["s-0"].plans[1]
    moved.offer(sealed_update("n-0", plan, id=UpdateId("n-0", 5, 1)), 1)
    world.turn(2)
    world.turn(6, after_s=61.0)
    # then it is a member once, and the other one comes back
    counted = members(world)
    assert sum(one["n-0"] for one in counted.values()) == 1
    with world.parts.store.read() as connection:
        rows = connection.exec_driver_sql(
            "select fate, reason from \"update\" where vehicle = 'n-0' order by fate"
        ).all()
        assert [tuple(row) for row in rows] == [("folded", ""), ("returned", "counted-elsewhere")]
        assert problems(connection) == []
    world.parts.close()


# --- the decisions ---


def waits(vehicle: str, round_: int, sequence: int = 0) -> Waiting:
    return Waiting(UpdateId(vehicle, 1, sequence or round_), round_, base_version=0)


def test_of_those_that_wait_the_newest_of_each_vehicle_stays() -> None:
    old, new, other = waits("va", 3), waits("va", 5), waits("vb", 1)
    assert superseded([old, new, other]) == {old.id: "superseded"}
    # and none that is not newer than the vehicle's member
    assert superseded([old, new, other], {"va": 5}) == {old.id: "superseded", new.id: "superseded"}
    assert superseded([old, new, other], {"va": 4}) == {old.id: "superseded"}


def test_of_two_for_one_round_the_smaller_id_stays() -> None:
    assert superseded([waits("va", 3, 9), waits("va", 3, 7)]) == {UpdateId("va", 1, 9): "superseded"}


def test_what_is_late_and_older_than_what_waits_comes_back_at_once() -> None:
    found = late_fate(carries=True, staleness=1, max_staleness=10, has_other=False, has_newer=True)
    assert found == ("returned", "superseded")
