import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import agent_world as aw
import pytest

from fedfleet.link.memory import Faults, MemoryBroker
from fedfleet.protocol import messages as msg
from fedfleet.vehicle_agent import actions as act
from fedfleet.vehicle_agent import config as configs
from fedfleet.vehicle_agent import events as ev
from fedfleet.vehicle_agent import runtime
from fedfleet.vehicle_agent.agent import step
from fedfleet.vehicle_agent.fleet import Fleet, World

TRAINER = (sys.executable, str(Path(__file__).with_name("agent_trainer.py")))
VEHICLES = ("v01", "v02", "v03")


class Yard:
    """A fleet and a scripted server at a broker in memory."""

    def __init__(
        self,
        folder: Path,
        *,
        faults: Faults | None = None,
        trainer: str = "work",
        vehicles: tuple[str, ...] = VEHICLES,
        **changes: object,
    ) -> None:
        self.folder = folder
        self.broker = MemoryBroker(3, faults=faults)
        self.server = aw.Server(self.broker.connect)
        self.server.codes = dict.fromkeys(vehicles, aw.CODE)
        self.lines: list[str] = []
        self.now_s = 1000.0
        self.first_bits = 1
        self.actions: dict[str, list[tuple[ev.Event, float, tuple[act.Action, ...]]]] = {}
        data = {name: aw.prepare(folder / "data" / name, seed=i) for i, name in enumerate(vehicles)}
        path = folder / "fleet.json"
        path.write_text(aw.config(folder / "work", data, **changes))
        self.config = configs.load("fleet", path)
        self.fleet = self.new_fleet(trainer)

    def new_fleet(self, trainer: str = "work") -> Fleet:
        bits = iter(range(self.first_bits, 10_000))
        world = World(
            lambda: self.now_s, time.monotonic, lambda n: next(bits) % 2**n, lambda: 1, self.lines.append
        )
        fleet = Fleet(self.config, self.broker.connect, world, trainer=(*TRAINER, trainer))
        for vehicle in fleet.vehicles:
            log = self.actions.setdefault(vehicle.name, [])
            vehicle.observer = lambda *seen, log=log: log.append(seen)
        return fleet

    def run_until(self, condition: Callable[[], object], what: str, *, timeout_s: float = 60.0) -> None:
        end_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end_s, f"not within {timeout_s} s: {what}; {self.lines}"
            self.broker.pump()
            self.server.turn()
            self.broker.pump()
            self.fleet.turn(0.005)
            self.now_s += 0.01


@contextmanager
def yard(folder: Path, **changes: object) -> Iterator[Yard]:
    made = Yard(folder, **changes)  # type: ignore[arg-type]
    try:
        made.fleet.start()
        yield made
    finally:
        made.fleet.stop()


def all_updates(made: Yard, round_: int) -> bool:
    return all((name, round_) in made.server.updates for name in VEHICLES)


def all_have(made: Yard, version: int) -> bool:
    active = [vehicle.state.active for vehicle in made.fleet.vehicles]
    bases = [vehicle.state.base for vehicle in made.fleet.vehicles]
    return all(each is not None and each.version == version for each in (*active, *bases))


@pytest.mark.parametrize(
    "faults", [Faults(), Faults(drop=0.1, duplicate=0.2, disconnect=0.02)], ids=["calm", "storm"]
)
def test_a_fleet_decides_as_the_agent_alone(tmp_path: Path, faults: Faults) -> None:
    with yard(tmp_path, faults=faults, record_events=True) as made:
        first = {vehicle.name: vehicle.state for vehicle in made.fleet.vehicles}
        # given three vehicles of one process that went through two rounds
        made.server.publish_model(0)
        made.server.publish(aw.plan(1, 0))
        made.run_until(lambda: all_updates(made, 1), "updates of round 1")
        made.run_until(lambda: all_have(made, 0), "release of version 0 active")
        fates = {aw.update_id(made.server.updates[name, 1]): "folded" for name in VEHICLES}
        made.server.publish_model(1)
        made.server.publish(aw.settlement(1, fates), aw.plan(2, 1))  # type: ignore[arg-type]
        made.run_until(lambda: all_updates(made, 2), "updates of round 2")
        made.run_until(lambda: all_have(made, 1), "release of version 1 active")
        last = {vehicle.name: vehicle.state for vehicle in made.fleet.vehicles}
    for name in VEHICLES:
        # when each one's recorded events go through the agent alone (the log's first lines were its observer's, too)
        state, decided = first[name], []
        for event, now_s, _ in made.actions[name]:
            state, actions = step(state, *ev.replay(ev.record(event, now_s)))
            decided.append(actions)
        # then it decides the same, and ends the same
        assert decided == [actions for _, _, actions in made.actions[name]]
        assert state == last[name]
        assert any(isinstance(a, act.StartTraining) for actions in decided for a in actions)


def test_every_vehicle_ends_with_the_server_s_model_and_drives_on(tmp_path: Path) -> None:
    with yard(tmp_path) as made:
        for version in range(3):
            made.server.publish_model(version)
            made.run_until(lambda v=version: all_have(made, v), f"version {version} here")
        # and then drives on: the scores are those of the active model alone
        figures = [vehicle.parts.replay.figures for vehicle in made.fleet.vehicles]
        made.run_until(
            lambda: all("error" in each().scores for each in figures), "scores of the active model"
        )
        made.run_until(lambda: all(each().frames >= 10 for each in figures), "ten frames each")
        for vehicle in made.fleet.vehicles:
            # then the journal holds the whole file, its predecessor, and weights reached by deltas
            active, previous = (
                vehicle.parts.journal.released("active"),
                vehicle.parts.journal.released("previous"),
            )
            assert active is not None
            assert previous is not None
            assert active.model == aw.file_of(2)
            assert previous.model == aw.file_of(1)
            assert (vehicle.parts.journal.base_vector == aw.vector(2)).all()
            told = vehicle.parts.replay.figures()
            assert told.swaps == 2
            assert told.scores["error"][1] > 0


def test_a_fleet_that_stops_says_offline_and_resumes_without_the_server(tmp_path: Path) -> None:
    with yard(tmp_path) as made:
        made.server.publish_model(0)
        made.run_until(lambda: all_have(made, 0), "version 0 here")
        # when it stops, and starts again with a broker that is down
        made.fleet.stop()
        made.broker.pump()
        made.server.turn()
        assert [status.state for status in made.server.statuses[-3:]] == ["OFFLINE"] * 3
        made.broker.stop()
        made.fleet = made.new_fleet()
        made.fleet.start()
        made.run_until(
            lambda: all(v.parts.replay.figures().frames >= 3 for v in made.fleet.vehicles),
            "frames without a broker",
        )
        # and the broker comes back
        made.broker.start()
        made.run_until(lambda: all(v.state.connected for v in made.fleet.vehicles), "connected")
        made.server.publish(aw.plan(1, 0))
        made.run_until(lambda: all_updates(made, 1), "updates after the restart")
        assert made.fleet.vehicles[0].state.session == 2


def test_a_vehicle_whose_journal_is_damaged_begins_anew_tells_the_server_and_learns_again(
    tmp_path: Path,
) -> None:
    with yard(tmp_path) as made:
        made.server.publish_model(0)
        made.server.publish(aw.plan(1, 0))
        made.run_until(lambda: all_updates(made, 1), "updates of round 1")
        made.fleet.stop()
        before = {name: aw.update_id(made.server.updates[name, 1]) for name in VEHICLES}
        # when one of three journals is noise
        (tmp_path / "work" / "v02" / "journal.sqlite").write_bytes(b"noise" * 5000)
        made.first_bits = 5000
        made.fleet = made.new_fleet()
        made.fleet.start()
        made.run_until(lambda: all(v.state.connected for v in made.fleet.vehicles), "connected")
        # then a person and the server are told
        (line,) = [line for line in made.lines if "damaged" in line]
        assert line.startswith(
            "vehicle v02: journal is damaged, kept as journal.damaged-1.sqlite; beginning anew"
        )

        def told() -> bool:
            said = [metrics for metrics in made.server.metrics if metrics.vehicle == "v02"]
            return bool(said) and "journal-corrupt" in said[-1].refusals

        made.run_until(told, "the server knows")
        status = next(one for one in reversed(made.server.statuses) if one.vehicle == "v02")
        assert status.epoch == made.fleet.vehicles[1].parts.journal.epoch > 5000
        # and it takes part as the others do, without a code, under ids that never were
        made.server.publish_model(1)
        made.server.publish(aw.plan(2, 1))
        made.run_until(lambda: all_updates(made, 2), "updates of round 2")
        after = {name: aw.update_id(made.server.updates[name, 2]) for name in VEHICLES}
        assert after["v02"].rpartition(":")[0] != before["v02"].rpartition(":")[0]
        assert all(after[n].rpartition(":")[0] == before[n].rpartition(":")[0] for n in ("v01", "v03"))


def test_an_update_without_receipt_is_sent_again_with_the_same_bytes(tmp_path: Path) -> None:
    with yard(tmp_path) as made:
        made.server.silent = True
        made.server.publish_model(0)
        made.server.publish(aw.plan(1, 0))
        made.run_until(lambda: len(made.server.copies) >= 6, "every update twice")
        made.server.silent = False
        made.run_until(lambda: all_updates(made, 1), "stored at last")
        assert len(set(made.server.copies)) == 3


def test_a_returned_update_re_enters_the_residual_once(tmp_path: Path) -> None:
    with yard(tmp_path) as made:
        made.server.publish_model(0)
        made.server.publish(aw.plan(1, 0))
        made.run_until(lambda: all_updates(made, 1), "updates")
        journal = made.fleet.vehicles[0].parts.journal
        before = journal.residual(aw.NETWORK_SIZE)
        id_ = aw.update_id(made.server.updates["v01", 1])
        told = aw.settlement(1, {id_: "returned"}, reasons={id_: "late"})
        for _ in range(2):
            made.server.publish(told)
            made.run_until(lambda: not journal.outbox, "settled")
        # then residual and sent values are the whole delta again
        delta = journal.residual(aw.NETWORK_SIZE) - before
        assert (delta != 0).sum() == 3
        assert made.fleet.vehicles[0].refusals["update-returned-late"] == 1


def test_a_trainer_that_crashes_is_counted_and_the_vehicle_drives_on(tmp_path: Path) -> None:
    with yard(tmp_path, trainer="crash", vehicles=("v01",)) as made:
        made.server.publish_model(0)
        made.server.publish(aw.plan(1, 0))
        (vehicle,) = made.fleet.vehicles
        made.run_until(lambda: vehicle.refusals["trainer-died"] >= 3, "three attempts")
        frames = vehicle.parts.replay.figures().frames
        made.run_until(lambda: vehicle.parts.replay.figures().frames > frames, "still driving")
        assert any("round 1: trainer-died: trainer-died: trainer " in line for line in made.lines)
        assert vehicle.state.training is None


def test_a_model_that_is_not_its_pointer_s_is_refused(tmp_path: Path) -> None:
    with yard(tmp_path, vehicles=("v01",)) as made:
        made.server.publish_model(0)
        made.run_until(lambda: all_have(made, 0), "version 0 here")
        (vehicle,) = made.fleet.vehicles
        # when a pointer's digest is not that of its model, reached by deltas or in full
        for blob in aw.blobs_of(1):
            made.server.publish_blob(blob)
        made.server.publish(aw.pointer(1, onnx_sha256="0" * 64))
        made.run_until(lambda: vehicle.refusals["model-mismatch"], "refusal")
        # then the base is as before
        assert vehicle.parts.journal.base is not None
        assert vehicle.parts.journal.base.version == 0


def test_a_journal_that_cannot_be_written_costs_the_training_only(tmp_path: Path) -> None:
    with yard(tmp_path, vehicles=("v01",)) as made:
        made.server.publish_model(0)
        made.run_until(lambda: all_have(made, 0), "version 0 here")
        (vehicle,) = made.fleet.vehicles
        journal = vehicle.parts.journal
        journal._db.execute("PRAGMA query_only=ON")
        made.server.publish(aw.plan(1, 0))
        made.run_until(lambda: 1 in vehicle.state.answered, "given up")
        frames = vehicle.parts.replay.figures().frames
        made.run_until(lambda: vehicle.parts.replay.figures().frames > frames, "still driving")
        # then nothing was sent or kept, and a person was told once about the journal
        assert made.server.updates == {}
        assert (journal.outbox, journal.next_id.sequence) == ((), 1)
        assert sum("cannot be written" in line for line in made.lines) == 1
        journal._db.execute("PRAGMA query_only=OFF")
        made.server.publish(aw.plan(2, 0))
        made.run_until(lambda: ("v01", 2) in made.server.updates, "the next round works")


def test_each_class_of_link_sends_what_its_plan_says_and_nothing_when_nothing_fits(tmp_path: Path) -> None:
    links = {
        "metered": msg.LinkPlan(value="sign", density=0.1),
        "wifi": msg.LinkPlan(budget_bytes=50),
    }
    classes = {"v01": "metered", "v02": "wifi"}
    with yard(tmp_path, link_classes=classes) as made:
        made.server.publish_model(0)
        made.server.publish(aw.plan(1, 0, codec=msg.CodecPlan(value="int8", density=0.5, links=links)))
        vehicles = {vehicle.name: vehicle for vehicle in made.fleet.vehicles}
        made.run_until(lambda: vehicles["v02"].refusals["over-budget"], "v02 gives up")
        made.run_until(
            lambda: all((name, 1) in made.server.updates for name in ("v01", "v03")), "the others' updates"
        )
        told = lambda: {each.vehicle: each for each in made.server.metrics}  # noqa: E731 - the newest of each
        made.run_until(lambda: all(one.update_bytes for n, one in told().items() if n != "v02"), "metrics")
        assert told()["v01"].update_codec == "rice sign 0.1"
        assert told()["v03"].update_codec == "rice int8 0.5"
        assert told()["v03"].update_bytes == len(made.server.updates["v03", 1])
        assert ("v02", 1) not in made.server.updates
        assert told()["v02"].link_class == "wifi"


def test_a_vehicle_a_hundred_versions_behind_catches_up_in_one_download(tmp_path: Path) -> None:
    # given a vehicle with version 0, and a server that has no full vector of version 100 to give
    with yard(tmp_path, vehicles=("v01",)) as made:
        (vehicle,) = made.fleet.vehicles
        journal = vehicle.parts.journal
        made.server.publish_model(0)
        made.run_until(lambda: journal.base and journal.base.version == 0, "version 0")
        pointer, blobs = aw.chained(100)
        for digest, blob in blobs.items():
            if digest != aw.pointer(100).full.sha256:
                made.server.publish_blob(blob)
        # when the pointer comes
        made.server.publish(pointer)
        made.run_until(lambda: journal.base and journal.base.version == 100, "version 100")
        # then its weights are the published ones to the last bit, and one download brought them
        assert journal.base_vector is not None
        assert sha256(journal.base_vector.tobytes()).hexdigest() == pointer.vector_sha256
        fetches = [
            a for _, _, actions in made.actions["v01"] for a in actions if isinstance(a, act.FetchBase)
        ]
        assert [fetch.pointer.version for fetch in fetches] == [0, 100]


@pytest.mark.parametrize("vehicles", [VEHICLES[:1], VEHICLES])
def test_inference_asks_to_go_first_where_it_is_alone_and_a_refusal_reaches_a_person(
    vehicles: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[str] = []

    def refuse() -> str:
        asked.append(threading.current_thread().name)
        return "not here"

    monkeypatch.setattr(runtime.scheduling, "to_front", refuse)
    with yard(tmp_path, vehicles=vehicles) as here:
        here.run_until(lambda: all(v.state.enrolled for v in here.fleet.vehicles), "all enrolled")
        if len(vehicles) == 1:
            here.run_until(lambda: any("priority" in line for line in here.lines), "the line")
    told = [line for line in here.lines if "priority" in line]
    alone = [f"vehicle {vehicles[0]}: inference runs at normal priority: real-time refused (not here)"]
    assert (asked, told) == ((["inference"], alone) if len(vehicles) == 1 else ([], []))
