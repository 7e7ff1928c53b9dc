import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedfleet.codec.delta import Delta
from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.ids import UpdateId
from fedfleet.vehicle_agent.entries import Graph, OutboxEntry, Released
from fedfleet.vehicle_agent.journal import Journal
from fedfleet.vehicle_agent.journal_file import JournalError
from fedfleet.vehicle_agent.state import Base
from fedfleet.vehicle_agent.trusted import Seen


def opened(folder: Path, *, epoch: int = 7, vehicle: str = "v01") -> Journal:
    return Journal(folder, vehicle=vehicle, task="t", epoch=epoch, seed=b"k" * 32)


def entry(journal: Journal, round_: int, sealed: bytes = b"sealed") -> OutboxEntry:
    return OutboxEntry(journal.next_id, sealed, round_, "north")


def vector(*values: float) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
    return np.array(values, dtype=np.float32)


def test_what_was_committed_is_there_after_opening_again(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    assert (journal.next_session(), journal.next_session()) == (1, 2)
    journal.assign("north", b"s" * 32)
    journal.commit_update(entry(journal, 3), vector(1, 2))
    journal.mark(1, stored=True, attempts=2)
    journal.note_seen("north", Seen(3, 1, "x", 2, "ab", 4))
    journal.set_base(Base(5, "cd"), vector(3, 4), Graph("ef", b"layout", b"onnx"))
    journal.close()
    # when it is opened again, with another epoch and seed at hand
    again = Journal(tmp_path, vehicle="v01", task="t", epoch=99, seed=b"z" * 32)
    assert (again.epoch, again.region, again.server_key, again.enrolled) == (7, "north", b"s" * 32, True)
    assert again.key.public == journal.key.public
    assert again.next_session() == 3
    assert again.next_id == UpdateId("v01", 7, 2)
    (pending,) = again.outbox
    assert (pending.sequence, pending.round, pending.stored, pending.attempts) == (1, 3, True, 2)
    assert (again.residual(2) == vector(1, 2)).all()
    assert again.answered == {3}
    assert again.seen == {"north": Seen(3, 1, "", 2, "ab", 4), "": Seen(version=5)}
    assert again.base == Base(5, "cd")
    assert again.graph == Graph("ef", b"layout", b"onnx")
    again.close()


VERSION_1 = """
CREATE TABLE outbox (
  sequence INTEGER PRIMARY KEY, sealed BLOB NOT NULL, sent_sha256 TEXT NOT NULL, update_id TEXT NOT NULL,
  round INTEGER NOT NULL, region TEXT NOT NULL, task TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('waiting', 'stored')), attempts INTEGER NOT NULL DEFAULT 0);
CREATE TABLE base (
  task TEXT PRIMARY KEY, version INTEGER NOT NULL, onnx_sha256 TEXT NOT NULL, vector BLOB NOT NULL,
  graph_sha256 TEXT NOT NULL);
CREATE TABLE release (
  task TEXT NOT NULL, slot TEXT NOT NULL CHECK (slot IN ('active', 'previous')), number INTEGER NOT NULL,
  version INTEGER NOT NULL, onnx_sha256 TEXT NOT NULL, model BLOB NOT NULL, PRIMARY KEY (task, slot));
INSERT INTO outbox VALUES (1, x'ab', 'cd', 'v01:0000000000000007:1', 3, 'north', 't', 'waiting', 1);
INSERT INTO base VALUES ('t', 4, 'ef', x'0000803f', 'aa');
UPDATE meta SET value = '1' WHERE name = 'sequence';
PRAGMA user_version = 1;
"""


def test_a_journal_of_version_1_is_brought_up_to_date(tmp_path: Path) -> None:
    # given a journal as the first version of the program made it
    opened(tmp_path).close()
    with sqlite3.connect(tmp_path / "journal.sqlite") as db:
        gone = ("outbox", "base", "control", "release", "personal", "canary_inputs")
        db.executescript("".join(f"DROP TABLE {table};" for table in gone) + VERSION_1)
    db.close()
    # then it opens with all it had; how its base was reached is not known
    journal = opened(tmp_path)
    assert journal.base == Base(4, "ef", region="", step=False)
    assert journal.base_step is None
    found = journal.sealed(1)
    assert found is not None
    assert (found.sealed, found.coordinates) == (b"\xab", None)
    # and it goes on
    named = np.array([3, 70_000], dtype=np.int64)
    journal.commit_update(OutboxEntry(journal.next_id, b"s", 4, "north", named), vector(1))
    again = journal.sealed(2)
    assert again is not None
    assert again.coordinates is not None
    assert again.coordinates.tolist() == named.tolist()
    journal.set_base(Base(5, "x", "north", step=True), vector(1), Graph("g", b"l", b"o"), step=b"delta")
    assert (journal.base, journal.base_step) == (Base(5, "x", "north", step=True), b"delta")
    journal.close()


def test_the_control_variate_moves_once_with_the_settlement_and_the_servers_with_the_base(
    tmp_path: Path,
) -> None:
    # given a journal that knows of none
    journal = opened(tmp_path)
    assert not journal.controls(2).any()
    journal.commit_update(OutboxEntry(journal.next_id, b"s", 1, "north"), vector(1, 1))
    step = Delta(2, None, vector(0.5, -1))
    # when an update is settled twice, and a base comes with the server's
    assert journal.settle(1, returned=None, control=step)
    assert not journal.settle(1, returned=None, control=step)
    journal.set_base(Base(5, "x"), vector(3, 4), Graph("g", b"l", b"o"), control=vector(7, 8))
    journal.close()
    # then both are there after a restart, and a model of another size has none
    journal = opened(tmp_path)
    assert journal.controls(2).tolist() == [[0.5, -1.0], [7.0, 8.0]]
    assert journal.controls(3).tolist() == [[0.0] * 3] * 2
    # and a base without one forgets the server's
    journal.set_base(Base(6, "y"), vector(3, 4), Graph("g", b"l", b"o"))
    assert journal.controls(2).tolist() == [[0.5, -1.0], [0.0, 0.0]]
    journal.close()


def test_a_journal_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    opened(tmp_path).close()
    with sqlite3.connect(tmp_path / "journal.sqlite") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(UsageError, match="has version 99, this program writes"):
        opened(tmp_path)


def test_the_key_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    opened(tmp_path).close()
    assert stat.S_IMODE((tmp_path / "vehicle.key").stat().st_mode) == 0o600
    (tmp_path / "vehicle.key").write_text("short")
    with pytest.raises(UsageError, match=r"vehicle.key: expected 64 hex digits"):
        opened(tmp_path)


def test_a_returned_update_re_enters_the_residual_exactly_once(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.commit_update(entry(journal, 1), vector(1, 2, 3))
    returned = Delta(3, np.array([1]), vector(10))
    assert journal.settle(1, returned=returned)
    assert not journal.settle(1, returned=returned)
    assert journal.residual(3).tolist() == [1, 12, 3]
    assert journal.outbox == ()
    # a settled sequence number is not used again
    assert journal.next_id.sequence == 2


def test_the_residual_of_a_model_of_another_size_is_gone(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.commit_update(entry(journal, 1), vector(1, 2, 3))
    assert journal.residual(2).tolist() == [0, 0]


def test_a_sequence_number_out_of_order_changes_nothing(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    with pytest.raises(ValueError, match="expected v01:0000000000000007:1"):
        journal.commit_update(OutboxEntry(UpdateId("v01", 7, 2), b"x", 1, "north"), vector(1))
    assert (journal.outbox, journal.next_id.sequence, journal.residual(1).tolist()) == ((), 1, [0.0])


def test_a_full_disk_leaves_the_journal_as_before(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.commit_update(entry(journal, 1), vector(1, 2))
    (pages,) = journal._db.execute("PRAGMA page_count").fetchone()
    journal._db.execute(f"PRAGMA max_page_count={pages + 2}")
    # when neither the update nor a model fits any more
    with pytest.raises(
        JournalError, match=r"^disk-full: vehicle v01: journal .* cannot be written: .*full"
    ) as caught:
        journal.commit_update(entry(journal, 2, bytes(100_000)), vector(5, 6))
    assert caught.value.reason == "disk-full"
    with pytest.raises(JournalError):
        journal.activate(Released(1, 1, "00", bytes(100_000)))
    journal.close()
    # then nothing of it is there, and there is room again after the disk was cleared
    again = opened(tmp_path)
    assert [pending.round for pending in again.outbox] == [1]
    assert (again.next_id.sequence, again.residual(2).tolist(), again.answered) == (2, [1, 2], {1})
    assert again.active is None
    again.commit_update(entry(again, 2, bytes(100_000)), vector(5, 6))


def test_damaged_bytes_of_a_release_never_drive(tmp_path: Path) -> None:
    from hashlib import sha256

    journal = opened(tmp_path)
    for number in (1, 2, 3):
        model = bytes([number]) * 9
        journal.activate(Released(number, number, sha256(model).hexdigest(), model))
    assert journal.active is not None
    assert (journal.active.number, journal.released("previous")) == (
        3,
        Released(2, 2, sha256(b"\x02" * 9).hexdigest(), b"\x02" * 9),
    )
    journal._db.execute("UPDATE release SET model = x'00' WHERE slot = 'active'")
    assert journal.released("active") is None
    assert journal.active.number == 2


def test_a_second_process_another_vehicle_and_another_key_are_one_line_each(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    with pytest.raises(UsageError, match=r"^vehicle v01: journal .* is in use by another process$"):
        opened(tmp_path)
    journal.assign("north", b"s" * 32)
    with pytest.raises(UsageError, match="is pinned to the server key 737373737373…"):
        journal.assign("north", b"t" * 32)
    journal.close()
    with pytest.raises(UsageError, match="is that of vehicle v01, not v02"):
        opened(tmp_path, vehicle="v02")


def no_database(path: Path) -> None:
    path.write_bytes(b"no database at all, but long enough to be looked at" * 100)


def half_of_it(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:12_288])


def noise_in_it(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:12_288] = np.random.default_rng(1).bytes(8192)
    path.write_bytes(data)


def owner_missing(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("DELETE FROM meta WHERE name = 'vehicle'")
    db.close()


def table_missing(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE meta")
    db.close()


@pytest.mark.parametrize("damage", [no_database, half_of_it, noise_in_it, owner_missing, table_missing])
def test_a_damaged_journal_is_kept_aside_and_a_fresh_one_begins_under_another_epoch(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    # given the journal of an enrolled vehicle, and what a fault made of it
    journal = opened(tmp_path)
    journal.assign("north", b"s" * 32)
    journal.commit_update(entry(journal, 3, bytes(50_000)), vector(1, 2))
    journal.close()
    damage(tmp_path / "journal.sqlite")
    broken = (tmp_path / "journal.sqlite").read_bytes()
    # when it is opened
    again = opened(tmp_path, epoch=8)
    # then nothing of it is read, nothing is lost, and it is another epoch of the same vehicle with the same server
    assert again.salvaged == tmp_path / "journal.damaged-1.sqlite"
    assert len(again.salvaged.read_bytes()) == len(broken)
    assert (again.epoch, again.outbox, again.next_id) == (8, (), UpdateId("v01", 8, 1))
    known = (again.key.public, again.server_key, again.enrolled, again.region)
    assert known == (journal.key.public, b"s" * 32, True, "")
    again.commit_update(entry(again, 4), vector(1, 2))
    again.close()
    # and a second fault has another name
    no_database(tmp_path / "journal.sqlite")
    third = opened(tmp_path, epoch=9)
    assert (third.salvaged, third.epoch) == (tmp_path / "journal.damaged-2.sqlite", 9)
    third.close()
    assert opened(tmp_path).salvaged is None


def test_a_journal_that_cannot_be_opened_now_is_not_taken_for_damaged(tmp_path: Path) -> None:
    (tmp_path / "journal.sqlite").mkdir()
    with pytest.raises(UsageError, match=r"^vehicle v01: journal .* cannot be opened: unable to open"):
        opened(tmp_path)
    assert [path.name for path in tmp_path.glob("journal*")] == ["journal.sqlite"]


def test_the_previous_release_comes_back_and_the_failed_one_is_gone(tmp_path: Path) -> None:
    from hashlib import sha256

    journal = opened(tmp_path)
    assert journal.revert() is None
    for number in (1, 2):
        model = bytes([number]) * 9
        journal.activate(Released(number, number, sha256(model).hexdigest(), model))
    assert journal.revert() == journal.released("active")
    assert journal.active is not None
    assert (journal.active.number, journal.released("previous"), journal.revert()) == (1, None, None)


WRITER = """
import sys, numpy as np
from pathlib import Path
from fedfleet.vehicle_agent.entries import OutboxEntry
from fedfleet.vehicle_agent.journal import Journal
journal = Journal(Path(sys.argv[1]), vehicle="v01", task="t", epoch=7, seed=b"k" * 32)
while True:
    id_ = journal.next_id
    entry = OutboxEntry(id_, b"%d" % id_.sequence, id_.sequence, "north")
    journal.commit_update(entry, np.full(999, id_.sequence, np.float32))
    print(id_.sequence, flush=True)
"""


@pytest.mark.parametrize("after", [1, 4, 9])
def test_a_kill_at_any_point_leaves_outbox_residual_and_sequence_in_step(tmp_path: Path, after: int) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = [int(process.stdout.readline()) for _ in range(after)][-1]
        os.kill(process.pid, signal.SIGKILL)
        process.wait(10)
    journal = opened(tmp_path)
    last = journal.next_id.sequence - 1
    assert last >= told
    assert [pending.sequence for pending in journal.outbox] == list(range(1, last + 1))
    assert (journal.residual(999) == last).all()
    sealed = journal.sealed(last)
    assert sealed is not None
    assert json.loads(sealed.sealed) == last
