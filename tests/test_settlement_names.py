"""What all vehicles of a region read names none of them."""

import json
from hashlib import sha256
from pathlib import Path

import pytest
from server_world import FLEET, configuration, sealed_update
from test_coordinator import ALL, TASK_ID, World, free_rounds

from fedfleet.fleet_server.store_check import problems
from fedfleet.protocol import envelope, topics
from fedfleet.protocol.messages import Settlement, digest_key
from fedfleet.protocol.packing import unpack
from fedfleet.protocol.signing import Keyring

GOLDEN = json.loads((Path(__file__).parent / "golden/protocol/settlements.json").read_text())


@pytest.mark.parametrize("version", ["by_id", "by_digest"])
def test_golden_settlements_tell_a_vehicle_the_fate_of_its_update(version: str) -> None:
    told = Settlement.model_validate(GOLDEN[version])
    assert told.told(GOLDEN["update"], GOLDEN["sealed_sha256"]) == ("dropped", "not-finite")
    # and nothing of one that is not its
    assert told.told("v09:0123456789abcdef:7", "0" * 64) is None


def test_golden_settlements_are_written_as_they_were() -> None:
    told = Settlement.model_validate(GOLDEN["by_digest"])
    assert json.loads(told.model_dump_json()) == GOLDEN["by_digest"]


def test_an_id_is_no_key_where_digests_are() -> None:
    told = Settlement.model_validate(GOLDEN["by_id"] | {"named_by": "digest"})
    assert told.told(GOLDEN["update"], GOLDEN["sealed_sha256"]) is None


@pytest.mark.parametrize("policy", [{}, {"late": "carry", "below_quorum": "carry"}, {"regions": "apart"}])
def test_nothing_that_a_region_retains_names_a_vehicle(tmp_path: Path, policy: dict[str, object]) -> None:
    # given rounds with folded, late, refused and abandoned updates
    world = World(free_rounds(tmp_path, **policy))
    world.drive(*ALL)
    world.vehicles["n-2"].is_mute = world.vehicles["s-1"].is_mute = True
    world.turn(5)
    world.turn(3, after_s=61.0)
    late = world.vehicles["n-2"]
    late.offer(sealed_update("n-2", late.plans[1]), 1)
    world.turn(5, after_s=61.0)
    # when everything under the regions' topics is read
    ring = Keyring({"fleet-server": world.parts.party.key.public})
    read = {
        topic: unpack(envelope.open_sealed(sealed, ring, fleet=FLEET, limit_bytes=10**6).body).decode()
        for topic, sealed in world.broker.retained.items()
        if sealed and f"/{FLEET}/r/" in topic
    }
    # then there are settlements, plans and models, and no vehicle's name
    assert {topic.split("/")[5] for topic in read} == {"round", "settlement", "model", "release"}
    for topic, text in read.items():
        assert not [name for name in ALL if f'"{name}' in text or f"{name}:" in text], topic
    # and the store still knows whose they are
    with world.parts.store.read() as connection:
        assert problems(connection) == []
    world.parts.close()


def test_a_settlement_names_an_update_by_what_its_vehicle_sent(tmp_path: Path) -> None:
    world = World(configuration(tmp_path))
    world.drive(*ALL)
    world.turn(8)
    sealed = sealed_update("s-0", world.vehicles["s-0"].plans[1])
    told = world.region_message(topics.settlement(FLEET, "south", TASK_ID, 1), Settlement)
    assert told.named_by == "digest"
    assert told.told("", sha256(sealed).hexdigest()) == ("folded", "")
    assert digest_key(sha256(sealed).hexdigest()) in told.fates
    world.parts.close()
