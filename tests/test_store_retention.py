"""What the store forgets after its time, and what it must not: releases, carried updates, the audit chain."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from server_world import configuration, sealed_update
from sqlalchemy import Connection, event, func, select
from test_coordinator import ALL, World

from fedfleet.fleet_server import schema, store_models, store_retention, store_rounds, store_updates
from fedfleet.fleet_server.config_store import RetentionConfig
from fedfleet.fleet_server.round_view import look
from fedfleet.fleet_server.store_check import problems
from fedfleet.fleet_server.store_models import ReleaseRow
from fedfleet.fleet_server.store_postgres import Address

ROUNDS, KEPT = 14, 10
SHORT = {"payload_rounds": 2, "record_rounds": KEPT, "score_versions": KEPT}


@pytest.fixture
def world(tmp_path: Path, address: Address | None) -> Iterator[World]:
    """A server that has run 14 rounds and keeps records for ten; its vehicles' first plan is theirs to answer again."""
    rounds = {"total": ROUNDS, "quorum": 2, "deadline_s": 60.0, "lease_s": 10.0, "start_wait_s": 5.0}
    store = {"url": address.url} if address else {}
    made = World(configuration(tmp_path, rounds=rounds, retention=SHORT, store=store))
    made.drive(*ALL)
    made.turn(5 * ROUNDS)
    assert made.snapshot()["version"] == ROUNDS
    yield made
    made.parts.close()


def test_what_is_over_long_enough_is_forgotten_and_the_store_is_whole(world: World) -> None:
    with world.parts.store.read() as connection:
        # then bytes are there for the last rounds only, records for ten, the chain for all
        column = schema.update.c.round
        with_bytes = select(func.min(column)).where(schema.update.c.payload.is_not(None))
        assert connection.execute(with_bytes).scalar_one() == ROUNDS - SHORT["payload_rounds"]
        for table in (schema.round_, schema.update, schema.settlement, schema.member):
            oldest = connection.execute(select(func.min(table.c.round))).scalar_one()
            assert oldest == ROUNDS - KEPT, table.name
        assert store_updates.audit_head(connection)[0] == len(ALL) * ROUNDS
        # and versions for ten, besides the first, which the gains are told against
        versions = sorted(connection.execute(select(schema.model.c.version)).scalars())
        assert versions == [0, *range(ROUNDS - 1 - KEPT, ROUNDS + 1)]
        assert problems(connection) == []


def test_an_update_whose_record_is_gone_does_not_count_again(world: World) -> None:
    # given the update of round 1, of which only the audit chain knows
    sender = world.vehicles["n-0"]
    sender.receipts.clear()
    # when it comes again
    sender.offer(sealed_update("n-0", sender.plans[1]), 1)
    world.turn(2)
    # then it is refused
    assert [(r.outcome, r.reason) for r in sender.receipts] == [("refused", "round-unknown")]
    with world.parts.store.read() as connection:
        assert store_updates.audit_head(connection)[0] == len(ALL) * ROUNDS


def test_what_drives_keeps_its_hashes_and_its_scores(world: World) -> None:
    # given version 6 as what drives, before it version 5
    with world.parts.store.write() as connection:
        for number, version in ((90, 5), (91, 6)):
            row = ReleaseRow(number, version, "0" * 64, "by hand", version, 1.0)
            store_models.add_release(connection, row)
        scored = store_models.scores(connection, 6)
        # when much newer versions push all others out
        config = RetentionConfig.model_validate(SHORT)
        store_retention.retire(connection, config, oldest_round=ROUNDS, newest_version=100)
        # then its scores, which the next candidates are compared with, are there
        assert scored
        assert store_models.scores(connection, 6) == scored
        assert [
            version for version in range(1, ROUNDS + 1) if store_models.has_version(connection, version)
        ] == [5, 6]


def explained(connection: Connection, act: Callable[[], object]) -> list[str]:
    """How SQLite goes about what ``act`` asks."""
    said: list[tuple[str, Any]] = []

    def note(*told: Any) -> None:
        said.append((told[2], told[3]))

    event.listen(connection, "before_cursor_execute", note)
    act()
    event.remove(connection, "before_cursor_execute", note)
    steps = [connection.exec_driver_sql(f"explain query plan {asked}", given) for asked, given in said]
    return [row[3] for step in steps for row in step]


@pytest.mark.parametrize("address", [None])
def test_what_is_asked_again_and_again_does_not_read_all_there_ever_was(world: World) -> None:
    rounds, retention = world.config.rounds, world.config.retention
    with world.parts.store.write() as connection:
        one = store_rounds.current(connection)["north"]
        # when the coordinator looks at a round, and forgets what is old
        looks = explained(
            connection, lambda: look(connection, one, [], rounds=rounds, version=ROUNDS, holds_up=False)
        )
        retires = explained(
            connection,
            lambda: store_retention.retire(connection, retention, oldest_round=ROUNDS, newest_version=ROUNDS),
        )
    # then no step goes through all updates or all members
    assert any("update_pending" in step for step in looks)
    assert any("update_carried" in step for step in looks)
    assert any("update_payload" in step for step in retires)
    assert [step for step in looks + retires if step.startswith(("SCAN update", "SCAN member"))] == []


def test_a_round_with_a_carried_update_stays(world: World) -> None:
    # given an old round of whose updates one is carried
    number = ROUNDS - KEPT
    with world.parts.store.write() as connection:
        of = schema.update.c
        mine = (of.round == number) & (of.vehicle == "n-0")
        connection.execute(schema.update.update().where(mine).values(fate="carried", payload=b"bytes"))
        # when its time is over
        config = RetentionConfig.model_validate(SHORT)
        store_retention.retire(connection, config, oldest_round=3 * ROUNDS, newest_version=ROUNDS)
        # then its round and its bytes are there, and those of the other region are not
        assert store_rounds.find(connection, number=number, region="north") is not None
        assert store_rounds.find(connection, number=number, region="south") is None
        assert connection.execute(select(of.payload).where(mine)).scalar_one() == b"bytes"
