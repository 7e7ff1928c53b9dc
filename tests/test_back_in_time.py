"""A store that goes back in time is refused or noticed, in one line that says what to do; no vehicle can fake it."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from server_world import FLEET, configuration, key_of
from test_coordinator import ALL, TASK_ID, World

from fedfleet.fleet_server import store_published, store_rounds
from fedfleet.fleet_server.evidence import Claim, believed, proven
from fedfleet.fleet_server.store import FILE, open_older, open_reader, open_store
from fedfleet.fleet_server.store_ahead import step_beyond
from fedfleet.fleet_server.store_backup import backup, restore
from fedfleet.fleet_server.store_check import problems
from fedfleet.fleet_server.store_postgres import Address
from fedfleet.fleet_server.store_published import Published
from fedfleet.protocol import envelope, messages, topics
from fedfleet.protocol.envelope import Kind
from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.ids import SERVER
from fedfleet.protocol.messages import Lease, Status

TASK = "server_world:TASK"
ROUNDS = {"total": 9, "quorum": 2, "deadline_s": 60.0, "lease_s": 10.0, "start_wait_s": 5.0}
TESTS = Path(__file__).parent


def turn_until(world: World, version: int) -> None:
    for _ in range(100):
        if world.snapshot()["version"] >= version:  # type: ignore[operator]
            return
        world.turn(after_s=20.0)
    pytest.fail(f"version {version} was not published")


@pytest.fixture
def world(tmp_path: Path, address: Address | None) -> Iterator[World]:
    """A server that has published two versions."""
    store = {"url": address.url} if address else {}
    made = World(configuration(tmp_path, store=store, rounds=ROUNDS))
    made.drive(*ALL)
    turn_until(made, 2)
    yield made
    made.parts.close()


def copy_store(folder: Path, copy: Path) -> None:
    """Copy the store's files of a server that stands still."""
    copy.mkdir()
    for name in (FILE, f"{FILE}-wal"):
        if (folder / name).exists():
            shutil.copyfile(folder / name, copy / name)


def numbers(folder: Path) -> Published:
    store = open_reader(folder)
    with store.read() as connection:
        found = store_published.of_store(connection)
    store.close()
    return found


@pytest.mark.parametrize("address", [None])
def test_a_copied_old_store_is_refused_and_goes_on_when_it_is_told_to(world: World, tmp_path: Path) -> None:
    # given a copy of the store of version 2, put back when vehicles have version 4
    folder = world.config.data_dir
    world.kill()
    copy_store(folder, tmp_path / "copy")
    old = numbers(tmp_path / "copy")
    world.start()
    turn_until(world, 4)
    newest = numbers(folder)
    world.kill()
    for path in folder.glob(f"{FILE}*"):
        path.unlink()
    for path in (tmp_path / "copy").iterdir():
        shutil.copyfile(path, folder / path.name)
    # then the server does not start, says why and what to do, and has changed nothing
    words = (
        rf"store .*{FILE} went back in time: .*round \d+ \(the store has \d+\), version 4 \(the store has 2\)"
    )
    with pytest.raises(UsageError, match=words + ".*`fedfleet server ahead`"):
        world.start()
    assert numbers(folder) == old
    # when it is told to go on ahead, then it does where no vehicle has been, and all take part
    store = open_older(folder, fleet=FLEET, task=TASK)
    with store.write() as connection:
        step_beyond(connection, store_published.read(folder), by=100)
    store.close()
    assert numbers(folder).version == 2 + 100 + newest.above(old)
    world.start()
    before = world.snapshot()["version"]
    turn_until(world, before + 2)  # type: ignore[operator]
    assert numbers(folder).above(newest) > 100
    store = open_reader(folder)
    with store.read() as connection:
        assert problems(connection) == []
    store.close()


def test_the_rounds_that_are_to_run_are_counted_without_the_numbers_left_out(
    world: World, tmp_path: Path
) -> None:
    # given a server that is to run nine rounds, restored after two with its numbers far beyond nine
    backup(world.config.data_dir, tmp_path / "backup", now_s=7.0)
    world.kill()
    restore(tmp_path / "backup", tmp_path / "restored", ahead=1000)
    changes = {"data_dir": tmp_path / "restored", "store": type(world.config.store)()}
    world.config = world.config.model_copy(update=changes)
    # when it starts, then it runs those that are left, and no more
    world.start()
    first = world.snapshot()["version"]
    turn_until(world, first + 5)  # type: ignore[operator]
    world.turn(40, after_s=20.0)
    ran = world.snapshot()["version"] - first  # type: ignore[operator]
    assert 5 <= ran <= 7


def test_a_database_that_went_back_is_refused_too(world: World, address: Address | None) -> None:
    # given numbers that were published, and a store that does not know them: whatever brought it back
    folder = world.config.data_dir
    world.kill()
    store_published.note(folder, Published(round=70, version=30, release=3))
    with pytest.raises(UsageError, match=r"went back in time.*version 30 \(the store has 2\)"):
        world.start()
    assert (address is None) == (folder / FILE).exists()


@pytest.mark.parametrize("address", [None])
def test_a_lost_store_does_not_begin_anew_in_silence(world: World) -> None:
    # given a folder whose store was removed
    folder = world.config.data_dir
    world.kill()
    newest = numbers(folder)
    for path in folder.glob(f"{FILE}*"):
        path.unlink()
    with pytest.raises(UsageError, match=r"went back in time.*version 2 \(the store has none\)"):
        world.start()
    # when it is told to go on ahead, then its first model has a number that no vehicle has seen
    store = open_older(folder, fleet=FLEET, task=TASK)
    with store.write() as connection:
        step_beyond(connection, store_published.read(folder), by=100)
    store.close()
    world.start()
    assert numbers(folder).version > newest.version + 100
    begun = numbers(folder).version
    turn_until(world, begun + 1)
    assert numbers(folder).round > newest.round + 100
    # and at its next start it is not taken for one that went back
    world.kill()
    world.start()


def test_what_was_published_is_noted_before_it_can_be_seen(world: World) -> None:
    folder = world.config.data_dir
    noted = store_published.read(folder)
    assert noted == numbers(folder)
    plans = [max(vehicle.plans) for vehicle in world.vehicles.values()]
    assert max(plans) <= noted.round
    assert (folder / store_published.FILE).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read"),
        (b'{"format": "fedfleet published numbers", "version": 2, "newest": {}}', "version 2, expected"),
        (b'{"format": "fedfleet published numbers", "version": 1, "newest": {"round": -7}}', "number -7"),
        (b'{"format": "fedfleet published numbers", "version": 1, "newest": {}}', "remove this file"),
    ],
)
def test_a_broken_note_is_one_line(content: bytes, words: str, tmp_path: Path) -> None:
    open_store(tmp_path, fleet=FLEET, task="t").close()
    (tmp_path / store_published.FILE).write_bytes(content)
    with pytest.raises(UsageError, match=words):
        open_store(tmp_path, fleet=FLEET, task="t")


def test_noted_numbers_never_fall(tmp_path: Path) -> None:
    store_published.note(tmp_path, Published(5, 3, 2))
    store_published.note(tmp_path, Published(4, 9, -1))
    assert store_published.read(tmp_path) == Published(5, 9, 2)


def test_a_restore_goes_beyond_what_is_noted_and_does_not_pretend_that_nothing_happened(
    world: World, tmp_path: Path
) -> None:
    # given a server that published more after its backup, and whose store is moved away
    backup(world.config.data_dir, tmp_path / "backup", now_s=7.0)
    turn_until(world, 4)
    world.kill()
    folder = tmp_path / "restored"
    folder.mkdir()
    store_published.note(folder, Published(round=5000, version=4, release=4))
    # then a restore as if nothing had happened is refused
    with pytest.raises(UsageError, match=r"published since the backup: .*version 4 \(the store has 2\)"):
        restore(tmp_path / "backup", folder, ahead=0)
    assert not (folder / FILE).exists()
    # and any other goes beyond
    restore(tmp_path / "backup", folder, ahead=100)
    assert numbers(folder).round > 5000
    open_store(folder, fleet=FLEET, task=TASK).close()


@pytest.mark.parametrize("address", [None])
def test_a_restore_that_is_killed_anywhere_leaves_nothing_or_all(world: World, tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("no strace installed")
    backup(world.config.data_dir, tmp_path / "backup", now_s=7.0)
    version = numbers(tmp_path / "backup").version
    code = (
        "import sys; from pathlib import Path\n"
        "from fedfleet.fleet_server.store_backup import restore\n"
        "restore(Path(sys.argv[1]), Path(sys.argv[2]), ahead=1000)"
    )
    seen, ends = set(), []
    for call, numbered in (
        ("rename", range(1, 6)),
        ("fsync", range(1, 12, 2)),
        ("pwrite64", range(1, 60, 15)),
    ):
        for number in numbered:
            # given a restore that is killed at its n-th such call
            target = tmp_path / f"{call}-{number}"
            inject = f"inject={call}:signal=KILL:when={number}"
            command = ["strace", "-f", "-qq", "-e", f"trace={call}", "-e", inject, "-o", os.devnull]
            run = [sys.executable, "-c", code, str(tmp_path / "backup"), str(target)]
            ended = subprocess.run([*command, *run], check=False, timeout=60)
            ends.append(ended.returncode)
            # then there is no store, and the same may be done again; or it is there, and ahead
            is_there = (target / FILE).exists()
            seen.add(is_there)
            if not is_there:
                restore(tmp_path / "backup", target, ahead=1000)
            assert numbers(target).version == version + 1000
            store = open_store(target, fleet=FLEET, task=TASK)
            with store.read() as connection:
                assert problems(connection) == []
            store.close()
            if ended.returncode == 0:
                break
    assert seen == {False, True}
    assert -signal.SIGKILL in ends or 128 + signal.SIGKILL in ends


def sealed(message: messages.Message, kind: Kind, world: World, *, key: object = None) -> bytes:
    party = world.parts.party
    signing = party.key if key is None else key
    return envelope.seal(messages.encode(message), signing, kind=kind, sender=SERVER, fleet=FLEET)  # type: ignore[arg-type]


def retain(world: World, topic: str, payload: bytes) -> None:
    """Leave a message at the broker, whoever may have sent it."""
    link = world.broker.connect("someone", lambda _: None)
    link.publish(topic, payload, retain=True)
    world.broker.pump()
    link.close()


@pytest.mark.parametrize("address", [None])
def test_its_own_newer_message_at_the_broker_stops_a_server(world: World) -> None:
    # given a broker that retains a plan with the server's signature which the store does not know
    topic = topics.round_plan(FLEET, "north", TASK_ID)
    plan = next(iter(world.vehicles["n-0"].plans.values())).model_copy(update={"round": 700})
    world.kill()
    retain(world, topic, sealed(plan, Kind.PLAN, world))
    # when the server comes, then it stops, and says why and what to do
    world.start()
    words = r"went back in time: .*the broker retains round 700 \(the store has \d\).*`fedfleet server ahead`"
    with pytest.raises(UsageError, match=words):
        world.turn(3)
    # and does not start again as if nothing had been
    world.kill()
    with pytest.raises(UsageError, match="round 700"):
        world.start()


FORGERIES: dict[str, Callable[[World, messages.Plan], bytes]] = {
    "signed by another": lambda world, plan: sealed(plan, Kind.PLAN, world, key=key_of("n-0")),
    "no envelope": lambda _world, _plan: b"round 700",
    "of another task": lambda world, plan: sealed(
        plan.model_copy(update={"task": "other"}), Kind.PLAN, world
    ),
    "no message": lambda world, _plan: envelope.seal(
        b"{}", world.parts.party.key, kind=Kind.PLAN, sender=SERVER, fleet=FLEET
    ),
}


@pytest.mark.parametrize("what", FORGERIES)
@pytest.mark.parametrize("address", [None])
def test_what_does_not_bear_its_signature_proves_nothing(what: str, world: World) -> None:
    plan = next(iter(world.vehicles["n-0"].plans.values())).model_copy(update={"round": 700})
    assert proven(sealed(plan, Kind.PLAN, world), world.parts.party).round == 700
    assert proven(FORGERIES[what](world, plan), world.parts.party) == Published()


def tell_status(world: World, name: str, *, version: int, round_: int = 0) -> None:
    """A vehicle's status, as it would send it."""
    vehicle = world.vehicles[name]
    vehicle.session += 1
    lease = Lease(task=TASK_ID, round=round_, until_s=1e9) if round_ else None
    status = Status(
        vehicle=name,
        state="ONLINE",
        session=vehicle.session,
        at_s=float(vehicle.session),
        active_version=version,
        lease=lease,
    )
    vehicle.link.publish(topics.status(FLEET, name), vehicle.seal(status, Kind.STATUS), retain=True)


@pytest.mark.parametrize("address", [None])
def test_most_vehicles_ahead_stop_a_server_and_one_does_not(world: World) -> None:
    # given one vehicle of five that claims to have seen version 10^9
    tell_status(world, "n-0", version=10**9, round_=10**9)
    world.turn(3)
    world.turn(after_s=11.0)
    before = world.snapshot()["version"]
    # then the server goes on, and nothing is noted of it
    turn_until(world, before + 1)  # type: ignore[operator]
    assert store_published.read(world.config.data_dir).version < 100
    # when two honest ones come that have seen version 50, then it stops at what the middle one says
    tell_status(world, "n-1", version=50)
    tell_status(world, "s-0", version=51, round_=60)
    world.turn(2)
    words = r"most vehicles online have seen .*version 51 \(the store has \d\).*`fedfleet server ahead`"
    with pytest.raises(UsageError, match=words):
        world.turn(3, after_s=11.0)
    assert store_published.read(world.config.data_dir).version == 51


def test_who_is_believed() -> None:
    def ahead(count: int) -> list[Claim]:
        return [Claim(f"v-{number}", 9 + number, 20) for number in range(count)]

    nobody = Published()
    assert believed(ahead(0), online=0, enrolled=10) == nobody
    # one in a fleet of one is, one of two is not
    assert believed(ahead(1), online=1, enrolled=1) == Published(20, 9)
    assert believed(ahead(1), online=1, enrolled=2) == nobody
    # half of those online are not, more are
    assert believed(ahead(2), online=4, enrolled=10) == nobody
    assert believed(ahead(3), online=5, enrolled=10) == Published(20, 10)
    # but not two that are alone at night in a large fleet
    assert believed(ahead(2), online=2, enrolled=100) == nobody


def test_what_a_signature_proves(world: World) -> None:
    party = world.parts.party
    for topic, expected in (
        (topics.round_plan(FLEET, "north", TASK_ID), "round"),
        (topics.model(FLEET, "north", TASK_ID), "version"),
        (topics.release(FLEET, "north", TASK_ID), "release"),
    ):
        found = proven(world.broker.retained[topic], party)
        assert getattr(found, expected) >= 1
        assert not found.above(numbers(world.config.data_dir))
    settled = next(topic for topic in world.broker.retained if "/settlement/" in topic)
    assert proven(world.broker.retained[settled], party) == Published()
    with world.parts.store.read() as connection:
        assert store_rounds.newest(connection) >= 2
