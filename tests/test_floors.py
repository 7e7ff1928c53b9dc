"""What never goes back on a vehicle: numbers and whom it trusts, whatever becomes of its journal."""

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import agent_world as aw
import numpy as np
import pytest
import server_world as sw
from both_sides import Both
from test_trusted import TRUSTED, refusal, take

from fedfleet.fleet_server import store_vehicles
from fedfleet.protocol import messages as msg
from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.ids import UpdateId
from fedfleet.vehicle_agent.entries import OutboxEntry, Released
from fedfleet.vehicle_agent.floors import Floors, FloorsFile
from fedfleet.vehicle_agent.journal import Journal
from fedfleet.vehicle_agent.trusted import Seen

ROUNDS = {"total": 8, "quorum": 1, "deadline_s": 9.0, "lease_s": 9.0, "start_wait_s": 1.0}
FILES = {"": "a" * 64, "int8": "b" * 64}


def opened(folder: Path, *, epoch: int = 7) -> Journal:
    return Journal(folder, vehicle="v01", task="t", epoch=epoch, seed=b"k" * 32)


def commit(journal: Journal, round_: int) -> None:
    entry = OutboxEntry(journal.next_id, b"sealed", round_, "north")
    journal.commit_update(entry, np.zeros(2, dtype=np.float32))


# --- what is refused ---


def test_an_old_model_of_another_region_does_not_come_after_a_newer_one() -> None:
    # given a vehicle that has seen version 9 and release 8, and moved to a region in which it never was
    trusted, _ = take(TRUSTED, aw.pointer(9))
    trusted, _ = take(trusted, aw.release(8, 9))
    moved = replace(trusted, region="south")
    old, new = ({"region": "south"}, {"region": "south", "model": aw.pointer(9, region="south")})
    # when the broker hands out what was published there long ago
    assert refusal(moved, aw.pointer(5, **old)) == "stale"
    model = aw.pointer(5, region="south")
    assert refusal(moved, aw.release(7, 5, region="south", model=model)) == "stale"
    # then only what is as new is taken
    assert take(moved, aw.pointer(9, **old))[0].seen["south"].version == 9
    assert take(moved, aw.release(8, 9, **new))[0].seen["south"].release == 8


def test_the_same_release_with_another_model_is_conflicting() -> None:
    trusted, _ = take(TRUSTED, aw.release(4, 3))
    other = aw.pointer(2)
    assert refusal(trusted, aw.release(4, 3, model=other)) == "conflicting"
    assert take(trusted, aw.release(4, 3))[0] == trusted
    assert take(trusted, aw.release(5, 3, model=other))[0].seen[aw.REGION].release == 5


def test_a_variant_may_come_after_its_release_but_not_change() -> None:
    blob = aw.blob_of(b"file")

    def variant(digest: str) -> msg.Variant:
        return msg.Variant(
            kind="int8", onnx_sha256=digest, size_bytes=9, file=blob, canary=blob, tolerance=0.1
        )

    trusted, _ = take(TRUSTED, aw.release(4, 3))
    trusted, _ = take(trusted, aw.release(4, 3, variants=(variant("1" * 64),)))
    assert refusal(trusted, aw.release(4, 3, variants=(variant("2" * 64),))) == "conflicting"
    # and it is remembered when the release comes without it for a while
    trusted, _ = take(trusted, aw.release(4, 3))
    assert refusal(trusted, aw.release(4, 3, variants=(variant("2" * 64),))) == "conflicting"


# --- the file ---


def test_floors_outlive_a_journal_that_is_lost(tmp_path: Path) -> None:
    # given a vehicle that was enrolled, connected three times, and saw much
    journal = opened(tmp_path)
    for _ in range(3):
        journal.next_session()
    journal.assign("north", b"s" * 32)
    seen = Seen(5, 2, "x", 9, "c" * 64, 8, FILES)
    journal.note_seen("north", seen)
    journal.note_seen("south", Seen(release=3))
    journal.close()
    # when the journal is gone
    for file in tmp_path.glob("journal.sqlite*"):
        file.unlink()
    again = opened(tmp_path, epoch=8)
    # then a fresh one begins no lower, with the same server
    assert (again.server_key, again.enrolled, again.region) == (b"s" * 32, True, "")
    assert again.next_session() == 4
    assert again.seen["north"] == replace(seen, plan_sha256="")
    assert again.seen["south"] == Seen(release=3)
    again.close()


def test_floors_only_rise(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.note_seen("north", Seen(5, 2, "", 9, "c" * 64, 8, FILES))
    for lower in (Seen(), Seen(5, 1, "", 3, "d" * 64, 7, {"": "e" * 64}), Seen(4, 9)):
        journal.note_seen("north", lower)
    assert journal.seen["north"] == Seen(5, 2, "", 9, "c" * 64, 8, FILES)
    journal.close()


def test_an_older_copy_of_the_journal_is_found_out_and_goes_on_under_a_new_epoch(tmp_path: Path) -> None:
    # given a copy that was taken after the second update, and three more updates
    journal = opened(tmp_path)
    for round_ in (1, 2):
        commit(journal, round_)
    journal.close()
    shutil.copy(tmp_path / "journal.sqlite", tmp_path / "copy")
    journal = opened(tmp_path)
    assert journal.restored is None
    for round_ in (3, 4, 5):
        commit(journal, round_)
    journal.close()
    # when the copy is put back
    for file in tmp_path.glob("journal.sqlite*"):
        file.unlink()
    shutil.copy(tmp_path / "copy", tmp_path / "journal.sqlite")
    again = opened(tmp_path, epoch=8)
    # then no number is used twice, and what waits keeps its id
    assert again.restored == (2, 5)
    assert again.next_id == UpdateId("v01", 8, 6)
    assert [one.update for one in again.outbox] == [str(UpdateId("v01", 7, n)) for n in (1, 2)]
    commit(again, 6)
    again.close()
    # and it is told once
    third = opened(tmp_path, epoch=9)
    assert (third.restored, third.next_id) == (None, UpdateId("v01", 8, 7))
    third.close()


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]


@pytest.mark.parametrize("damage", [cut, flipped, lambda _: b"", lambda _: b"\xff" * 300])
def test_a_damaged_file_is_kept_aside_and_the_journal_holds_the_floor(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    journal = opened(tmp_path)
    journal.assign("north", b"s" * 32)
    journal.note_seen("north", Seen(release=9))
    journal.activate(Released(9, 8, "ab", b"model"))
    journal.close()
    damaged = damage((tmp_path / "floors").read_bytes())
    (tmp_path / "floors").write_bytes(damaged)
    # when
    again = opened(tmp_path)
    # then nothing of it is lost or read, and what the journal knows holds
    assert again.floors.damaged == tmp_path / "floors.damaged-1"
    assert again.floors.damaged.read_bytes() == damaged
    assert again.server_key == b"s" * 32
    assert (
        max(one.release for one in again.seen.values()) == -1
    )  # the file of release 9 is not what its digest says
    again.close()
    assert opened(tmp_path).floors.damaged is None


def test_the_release_that_drives_is_a_floor_even_without_the_file(tmp_path: Path) -> None:
    from hashlib import sha256

    journal = opened(tmp_path)
    journal.activate(Released(9, 8, sha256(b"model").hexdigest(), b"model"))
    journal.close()
    (tmp_path / "floors").unlink()
    again = opened(tmp_path)
    assert replace(TRUSTED, seen=again.seen).release_floor == 9
    again.close()


def test_a_file_of_a_newer_program_is_refused(tmp_path: Path) -> None:
    opened(tmp_path).close()
    data = (tmp_path / "floors").read_bytes()
    (tmp_path / "floors").write_bytes(data.replace(b"fedfleet floors 1 ", b"fedfleet floors 2 "))
    with pytest.raises(UsageError, match="floors has version 2, this program writes 1"):
        opened(tmp_path)


def test_what_an_older_program_kept_is_taken_over(tmp_path: Path) -> None:
    # given a pin of its own, and the newest of each kind in the journal
    opened(tmp_path).close()
    (tmp_path / "floors").unlink()
    (tmp_path / "server.pin").write_text((b"s" * 32).hex() + "\n")
    with sqlite3.connect(tmp_path / "journal.sqlite") as db:
        db.execute("INSERT INTO seen VALUES ('t', 'north', 5, 2, 9, 'ab', 8)")
    db.close()
    # when
    journal = opened(tmp_path)
    # then
    assert (journal.server_key, journal.enrolled) == (b"s" * 32, True)
    assert journal.seen["north"] == Seen(5, 2, "", 9, "ab", 8)
    assert not (tmp_path / "server.pin").exists()
    journal.close()


CHANGES = """
import resource, signal, sys
from pathlib import Path
from fedfleet.vehicle_agent.floors import Floors, FloorsFile
file = FloorsFile(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    file.change(Floors(server_key="ab" * 32, session=9))
except OSError as error:
    sys.exit(3 if file.now.session == 1 else 4)
"""


@pytest.mark.parametrize("room", [0, 1, 100])
def test_a_write_that_fails_leaves_the_floors_as_before(tmp_path: Path, room: int) -> None:
    FloorsFile(tmp_path).change(Floors(session=1))
    # when there is room for so many bytes only
    done = subprocess.run([sys.executable, "-c", CHANGES, str(tmp_path), str(room)], check=False, timeout=60)
    # then the change is refused, the file is whole, and the next one is written
    assert done.returncode == 3
    file = FloorsFile(tmp_path)
    assert (file.now, file.damaged) == (Floors(session=1), None)
    file.change(Floors(session=2))
    assert FloorsFile(tmp_path).now.session == 2


def test_so_many_epochs_are_kept_as_copies_may_come_back(tmp_path: Path) -> None:
    floors = Floors()
    for epoch in range(100):
        floors = floors.counting(epoch, 3)
    assert len(floors.sequences) == 16
    assert floors.counting(99, 1).sequences[f"{99:016x}"] == 3
    assert FloorsFile(tmp_path).now == Floors()


# --- with both sides ---


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Both]:
    made = Both(tmp_path, regions={"north": ("v01",)}, server={"rounds": ROUNDS})
    yield made
    made.close()


def learned(both: Both) -> Any:
    return both.vehicles["v01"].parts.journal.residual(sw.SIZE).copy()


def test_a_folder_that_was_put_back_loses_no_update(both: Both) -> None:
    # given a copy of the whole folder, taken after some rounds, and more rounds
    both.run_until(lambda: both.version == 2)
    both.fleet.stop()
    folder = both.folder / "vehicles" / "v01"
    shutil.copytree(folder, both.folder / "copy")
    both.broker.kill("v01")
    both.fleet = both.start_fleet()
    both.run_until(lambda: both.version == 4)
    # when it is put back, floors and all: the journal cannot know that its numbers were used
    both.fleet.stop()
    both.broker.kill("v01")
    shutil.rmtree(folder)
    shutil.copytree(both.folder / "copy", folder)
    both.fleet = both.start_fleet()
    vehicle = both.vehicles["v01"]
    epoch = vehicle.parts.journal.epoch
    said: list[str] = []
    vehicle._report = said.append
    both.run_until(lambda: vehicle.refusals["update-returned-replayed-id"] > 0)
    # then what it learned is back in the residual, it goes on under another epoch, and says so
    assert np.abs(learned(both)).sum() > 0
    assert vehicle.parts.journal.epoch != epoch
    (line,) = [line for line in said if "has another update as" in line]
    assert (
        "an older copy of this vehicle's folder was put back, or a second vehicle uses its identity" in line
    )
    # and the server folds what comes now
    version = both.version
    both.run_until(lambda: both.version > version)
    assert vehicle.refusals["update-returned-replayed-id"] == 1
    with both.parts.store.read() as connection:
        (presence,) = store_vehicles.presences(connection)
    assert presence.online
