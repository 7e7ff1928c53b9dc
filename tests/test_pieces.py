"""Pieces of updates: nothing is kept for anyone before its sender is proven and there is room for all of it."""

from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from server_world import EPOCH, FLEET, SIZE, key_of, sealed_update
from test_ingest import NOW_S, PLAN, SERVER_KEY, TASK, frames, plan_of, quarantined, stored, to_topic, told

from fedfleet.fleet_server import store_rounds, store_updates, store_vehicles
from fedfleet.fleet_server.admission import Limits
from fedfleet.fleet_server.config_rounds import RoundsConfig
from fedfleet.fleet_server.ingest import Ingest
from fedfleet.fleet_server.pieces import Pieces, Room
from fedfleet.fleet_server.requests import Party
from fedfleet.fleet_server.store import Store, StoreFailed, open_store
from fedfleet.fleet_server.store_rounds import Round
from fedfleet.link.port import Delivery
from fedfleet.protocol import chunks, envelope, topics
from fedfleet.protocol.chunks import Chunk, Split
from fedfleet.protocol.envelope import Kind
from fedfleet.protocol.errors import PeerError
from fedfleet.protocol.ids import UpdateId


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Vehicles v-1 and v-2 in the north; round 4 is over, round 5 open. v-2 is denied."""
    made = open_store(tmp_path, fleet=FLEET, task="linear_test")
    with made.write() as connection:
        for name in ("v-1", "v-2"):
            store_vehicles.enrol(connection, name, region="north", public_key=key_of(name).public, now_s=1.0)
        store_vehicles.deny(connection, "v-2")
        for number, state in ((4, "published"), (5, "open")):
            one = Round(plan_of(number, base=number - 1), state, frozenset(), None, NOW_S)  # type: ignore[arg-type]
            store_rounds.add_round(connection, one)
    yield made
    made.close()


LIMITS = Limits(100_000, SIZE, 100)


def ingest_of(store: Store, limits: Limits = LIMITS, **rounds: object) -> Ingest:
    made = Ingest(store, Party(FLEET, TASK, SERVER_KEY, {}), limits)
    made.rounds = RoundsConfig.model_validate(rounds)
    return made


def kept(store: Store) -> list[Path]:
    """All files of pieces."""
    return [path for path in (store.folder / "incomplete").rglob("*") if path.is_file()]


def large(name: str = "v-1", *, size: int = 50_000, number: int = 0, by: str = "") -> bytes:
    """A sealed message that claims to be an update; what is in its body is never looked at before it is whole."""
    body = number.to_bytes(4, "big") + bytes(size)
    return envelope.seal(body, key_of(by or name), kind=Kind.UPDATE, sender=name, fleet=FLEET)


def pieces_of(
    sealed: bytes, name: str = "v-1", *, round_: int = 5, chunk_bytes: int = 10_000
) -> list[Delivery]:
    cut = chunks.split(sealed, chunk_bytes=chunk_bytes)
    return [to_topic(name, frame, round_=round_, number=number) for number, frame in enumerate(cut)]


@pytest.mark.parametrize(
    ("reason", "made"),
    [
        ("unknown-sender", lambda: pieces_of(large("v-8"), "v-8")),
        ("denied-sender", lambda: pieces_of(large("v-2"), "v-2")),
        ("bad-signature", lambda: pieces_of(large(by="thief"))),
        ("wrong-sender", lambda: pieces_of(large("v-1", by="v-1"), "v-3")),
        ("from-the-future", lambda: pieces_of(large(), round_=6)),
        ("from-the-future", lambda: pieces_of(large(), round_=4_294_967_295)),
        ("round-unknown", lambda: pieces_of(large(), round_=3)),
        ("late", lambda: pieces_of(large(), round_=4)),
        ("too-large", lambda: pieces_of(large(size=100_000))),
        ("too-many-chunks", lambda: pieces_of(large(size=90_000), chunk_bytes=120)[:1]),
    ],
)
def test_pieces_that_cannot_count_are_refused_before_a_byte_is_kept(
    reason: str, made: object, store: Store
) -> None:
    # given pieces of a message that is nobody's, or of a round that takes no updates
    with store.write() as connection:
        store_vehicles.enrol(connection, "v-3", region="north", public_key=key_of("v-3").public, now_s=1.0)
    pieces = made()  # type: ignore[operator]
    # when all of them come
    ingest_of(store).receive(pieces, NOW_S)
    # then the first is refused, the others are ignored, and nothing is kept
    assert set(quarantined(store)) == {reason}
    assert kept(store) == []
    assert stored(store) == []


def test_a_round_number_that_no_manifest_has_is_no_topic(store: Store) -> None:
    frame = chunks.split(large(), chunk_bytes=10_000)[0]
    topic = topics.update(FLEET, "v-1", TASK, round_=9_999_999_999, number=0)
    ingest_of(store).receive([Delivery(topic, frame, 1, retain=False, duplicate=False, token=1)], NOW_S)
    assert quarantined(store) == ["malformed-topic"]
    assert kept(store) == []


def test_pieces_without_the_first_are_not_kept_and_not_put_aside(store: Store) -> None:
    # when the first piece was lost, and a stranger sends pieces in a vehicle's name
    ingest = ingest_of(store)
    assert ingest.receive(pieces_of(large())[1:], NOW_S) == []
    # then nothing is kept; the next attempt of the vehicle completes
    assert kept(store) == []
    assert quarantined(store) == []
    with store.read() as connection:
        assert store_updates.counters(connection) == {"ignored:chunk-unannounced": 5}
    (receipt,) = told(ingest.receive(frames(sealed_update("v-1", PLAN)), NOW_S))
    assert receipt.outcome == "stored"


def test_the_refusal_of_a_first_piece_names_the_whole_message(store: Store) -> None:
    # given an update in pieces that comes after its round was closed
    sealed = large()
    # when it is offered
    outgoing = ingest_of(store).receive(pieces_of(sealed, round_=4), NOW_S)
    # then its vehicle hears which message it was, and why
    (receipt,) = told(outgoing)
    assert (receipt.outcome, receipt.reason) == ("refused", "late")
    assert receipt.sealed_sha256 == sha256(sealed).hexdigest()


def test_late_pieces_are_taken_where_a_later_round_folds_them(store: Store) -> None:
    plan = plan_of(4, base=3)
    sealed = sealed_update("v-1", plan)
    late = [replace(each, topic=each.topic.replace("/5/", "/4/")) for each in frames(sealed)]
    (receipt,) = told(ingest_of(store, late="carry").receive(late, NOW_S))
    assert (receipt.outcome, receipt.fate) == ("stored", "carried")
    # but not once the model has gone on too far
    with store.read() as connection:
        assert store_updates.known(connection, UpdateId("v-1", EPOCH, 4)) is not None


def test_one_vehicle_has_room_for_three_updates_and_the_newest_stay(store: Store) -> None:
    # when a vehicle begins ten updates and finishes none
    ingest = ingest_of(store)
    for number in range(10):
        ingest.receive(pieces_of(large(number=number, size=90_000))[:-1], NOW_S + number)
    # then it keeps the newest, within the bound
    size = sum(path.stat().st_size for path in kept(store))
    assert 0 < size <= 3 * LIMITS.update_bytes
    digests = {path.name[:64] for path in kept(store)}
    assert sha256(large(number=9, size=90_000)).hexdigest() in digests


def test_all_vehicles_together_have_a_bound_and_what_was_begun_is_finished(store: Store) -> None:
    # given room for three updates, which three vehicles have begun
    names = [f"w-{number}" for number in range(4)]
    with store.write() as connection:
        for name in names:
            store_vehicles.enrol(connection, name, region="north", public_key=key_of(name).public, now_s=1.0)
    ingest = ingest_of(store, replace(LIMITS, incomplete_bytes=0))
    begun = {name: pieces_of(large(name, size=70_000), name) for name in names}
    for name in names[:3]:
        ingest.receive(begun[name][:2], NOW_S)
    # when a fourth comes
    assert ingest.receive(begun["w-3"], NOW_S) == []
    # then it is not kept, and counted; those that were begun are finished (and judged: they are no updates)
    with store.read() as connection:
        assert store_updates.counters(connection)["ignored:no-room"] == 1
    assert {path.parent.name for path in kept(store)} == set(names[:3])
    for name in names[:3]:
        ingest.receive(begun[name][2:], NOW_S)
    assert kept(store) == []
    # and then there is room for the fourth
    ingest.receive(begun["w-3"][:1], NOW_S)
    assert len(kept(store)) == 1


def test_what_waits_too_long_is_forgotten_and_so_is_what_a_denied_vehicle_began(store: Store) -> None:
    ingest = ingest_of(store)
    ingest.receive(pieces_of(large())[:2], NOW_S)
    # while pieces come, it stays; then it goes
    ingest.receive(pieces_of(large())[2:3], NOW_S + 800)
    ingest.receive([to_topic("v-8", b"x")], NOW_S + 1600)
    assert len(kept(store)) == 1
    ingest.receive([to_topic("v-8", b"x")], NOW_S + 1701)
    assert kept(store) == []
    # and at once when its vehicle is denied
    ingest.receive(pieces_of(large())[:2], NOW_S + 1702)
    with store.write() as connection:
        store_vehicles.deny(connection, "v-1")
    ingest.receive([to_topic("v-8", b"x")], NOW_S + 1703)
    assert kept(store) == []


def test_an_update_cut_in_another_way_begins_anew(store: Store) -> None:
    # given some pieces of an update
    ingest, sealed = ingest_of(store), sealed_update("v-1", PLAN)
    ingest.receive(pieces_of(sealed, chunk_bytes=112)[:2], NOW_S)
    # when its vehicle has another connection, with larger pieces
    (receipt,) = told(ingest.receive(pieces_of(sealed, chunk_bytes=130), NOW_S))
    assert receipt.outcome == "stored"
    assert kept(store) == []


# The folder itself.

ROOM = Room(vehicle_bytes=100_000, total_bytes=200_000, age_s=60.0)
MESSAGE = bytes(range(256)) * 40
SPLIT = Split(sha256(MESSAGE).hexdigest(), len(MESSAGE), 4096)


def piece(number: int, data: bytes | None = None) -> Chunk:
    whole = MESSAGE[number * 4096 : (number + 1) * 4096]
    return Chunk(SPLIT.digest, number, SPLIT.count, len(MESSAGE), whole if data is None else data)


def test_what_was_written_to_its_end_is_there_after_a_restart(tmp_path: Path) -> None:
    # given two of three pieces, a third of which a kill left only a part, and what is none of ours
    first = Pieces(tmp_path, ROOM)
    first.announce("v-1", 5, SPLIT, now_s=1.0)
    first.put("v-1", piece(0), now_s=1.0)
    first.put("v-1", piece(1), now_s=1.0)
    (place,) = tmp_path.glob("v-1/*")
    with place.open("r+b") as file:
        file.seek(2 * 4096)
        file.write(b"half")
    (tmp_path / "v-1" / "other").write_bytes(b"none of it")
    (tmp_path / "v-1" / f"{'0' * 64}-5-10240-4096").mkdir()  # as an earlier version kept them
    (tmp_path / "v-1" / f"{'1' * 64}-5-10240-4096").write_bytes(bytes(10_240))  # no byte behind it
    # when another process opens the folder
    again = Pieces(tmp_path, ROOM)
    # then the two count, and the third completes the message
    assert again.knows("v-1", 5, SPLIT)
    assert list(tmp_path.glob("v-1/*")) == [place]
    assert again.reserved_bytes == first.reserved_bytes == 3 * 4096
    assert again.put("v-1", piece(2), now_s=2.0)
    assert again.join("v-1", SPLIT.digest) == MESSAGE
    again.drop("v-1", SPLIT.digest)
    assert again.reserved_bytes == 0
    assert list(tmp_path.iterdir()) == []


def test_pieces_of_another_message_are_dropped_at_the_join(tmp_path: Path) -> None:
    pieces = Pieces(tmp_path, ROOM)
    pieces.announce("v-1", 5, SPLIT, now_s=1.0)
    for number in (0, 1):
        pieces.put("v-1", piece(number), now_s=1.0)
    pieces.put("v-1", piece(2, bytes(SPLIT.size_of(2))), now_s=1.0)
    with pytest.raises(PeerError, match="digest-mismatch"):
        pieces.join("v-1", SPLIT.digest)
    assert not pieces.knows("v-1", 5, SPLIT)
    assert list(tmp_path.iterdir()) == []


def test_pieces_that_someone_removed_are_a_message_that_must_come_again(tmp_path: Path) -> None:
    pieces = Pieces(tmp_path, ROOM)
    pieces.announce("v-1", 5, SPLIT, now_s=1.0)
    for number in range(3):
        pieces.put("v-1", piece(number), now_s=1.0)
    next(tmp_path.glob("v-1/*")).unlink()
    # then nobody is blamed for it: a refusal would make the vehicle give the update up
    assert pieces.join("v-1", SPLIT.digest) is None
    assert not pieces.knows("v-1", 5, SPLIT)


def test_what_a_power_cut_left_wrong_must_come_again_too(tmp_path: Path) -> None:
    # given pieces of which an earlier process wrote two, and the disk kept one as zeros
    first = Pieces(tmp_path, ROOM)
    first.announce("v-1", 5, SPLIT, now_s=1.0)
    for number in (0, 1):
        first.put("v-1", piece(number), now_s=1.0)
    with next(tmp_path.glob("v-1/*")).open("r+b") as file:
        file.write(bytes(4096))
    # when another process gets the last one
    again = Pieces(tmp_path, ROOM)
    again.put("v-1", piece(2), now_s=2.0)
    assert again.join("v-1", SPLIT.digest) is None
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_cannot_be_written_is_the_stores_failure(tmp_path: Path) -> None:
    # given a folder in whose place a file stands
    (tmp_path / "incomplete").write_bytes(b"")
    pieces = Pieces(tmp_path / "incomplete", ROOM)
    pieces.announce("v-1", 5, SPLIT, now_s=1.0)
    with pytest.raises(StoreFailed, match="pieces of updates"):
        pieces.put("v-1", piece(0), now_s=1.0)


def test_a_clock_that_was_ahead_does_not_keep_pieces_for_ever(tmp_path: Path) -> None:
    pieces = Pieces(tmp_path, ROOM)
    pieces.announce("v-1", 5, SPLIT, now_s=1e9)
    pieces.expire(100.0)
    assert pieces.knows("v-1", 5, SPLIT)
    pieces.expire(161.0)
    assert not pieces.knows("v-1", 5, SPLIT)
