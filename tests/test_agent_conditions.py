"""A car that drives off in the middle of a training, and parks again: the agent's process, real broker and trainer."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import agent_world as aw
import numpy as np
import pytest
from child_processes import Processes

from fedfleet.codec import payload
from fedfleet.link import embedded
from fedfleet.link.paho import Loop
from fedfleet.protocol import envelope, update
from fedfleet.vehicle_agent.agent import training_seed
from fedfleet.vehicle_agent.jobs import Job
from fedfleet.vehicle_agent.journal import Journal

TESTS = str(Path(__file__).parent)
VEHICLE = "v01"
TRAINING: dict[str, int | float | str] = {"epochs": 900, "batch_size": 4}


class Car:
    """The agent's process; its speed comes through a named pipe."""

    def __init__(self, folder: Path, processes: Processes, port: int) -> None:
        self.folder, self.data, pipe = folder, aw.prepare(folder / "data"), folder / "speed"
        os.mkfifo(pipe)
        self._pipe = os.open(pipe, os.O_RDWR)
        rule = {"signal": "Vehicle.Speed", "op": "==", "value": 0, "reason": "not-parked"}
        told = {
            "fleet": aw.FLEET,
            "task": "agent_world:TASK",
            "work_dir": str(folder / "work"),
            "vehicle": VEHICLE,
            "data_dir": str(self.data),
            "enrolment_code": aw.CODE,
            "broker": {"port": port},
            "rules": [rule],
            "conditions_command": ["cat", str(pipe)],
            "metrics_interval_s": 0.3,
            "checkpoint_s": 0.05,
            "record_events": True,
            "guard": {"enabled": False},
            "nice": 0,
        }
        config = folder / "agent.json"
        config.write_text(json.dumps(told))
        command = [sys.executable, "-m", "fedfleet.vehicle_agent", "--config-json", config]
        self.process = processes.start(command, env={"PYTHONPATH": TESTS})

    def speed(self, value: float) -> None:
        os.write(self._pipe, json.dumps({"Vehicle.Speed": value}).encode() + b"\n")

    def checkpoint(self) -> Path:
        return self.folder / "work" / VEHICLE / "training" / "round-1.checkpoint"

    def steps(self) -> list[int]:
        """What the trainer told of its progress, in order."""
        lines = (self.folder / "work" / VEHICLE / "events.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines if '"TrainingProgress"' in line]
        return [event["event"]["steps"] for event in events]

    def trainer_s(self) -> float:
        """CPU seconds of the trainer; 0 without one."""
        found = 0.0
        for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            if b"vehicle_agent.trainer" in Path(f"/proc/{pid}/cmdline").read_bytes():
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                found += int(fields[11]) + int(fields[12])
        return found / os.sysconf("SC_CLK_TCK")

    def undisturbed(self) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
        """What the training gives when nothing comes between."""
        from fedfleet.vehicle_agent.trainer import perform

        base, out = self.folder / "base.npy", self.folder / "delta.npy"
        np.save(base, aw.vector(0))
        job = Job(
            id="again",
            task="agent_world:TASK",
            data_dir=str(self.data),
            base=str(base),
            settings=TRAINING,
            seed=training_seed(aw.TASK_ID, 1, VEHICLE),
            out=str(out),
        )
        assert perform(job, lambda _: None).kind == "done"
        return np.load(out)  # type: ignore[no-any-return]

    def close(self) -> None:
        os.close(self._pipe)


@pytest.fixture
def world(tmp_path: Path, mosquitto_binary: Path, processes: Processes) -> Iterator[tuple[Car, aw.Server]]:
    assert mosquitto_binary.exists()
    with embedded.start(tmp_path / "broker", kind="mosquitto") as broker:
        loop = Loop().start()
        where = (broker.host, broker.port)
        server = aw.Server(lambda name, sink: loop.connect(*where, client_id=name, sink=sink))
        server.codes = {VEHICLE: aw.CODE}
        car = Car(tmp_path, processes, broker.port)
        yield car, server
        car.close()
        loop.stop()


def test_a_car_that_drives_off_stops_training_says_why_and_goes_on_where_it_was(
    world: tuple[Car, aw.Server], wait_until: Callable[..., None]
) -> None:
    car, server = world

    def until(condition: Callable[[], Any], what: str) -> None:
        wait_until(lambda: server.turn() or condition(), what, timeout_s=90)

    def says(*, eligible: bool, reason: str, leased: bool) -> Callable[[], bool]:
        def check() -> bool:
            said = server.statuses[-1] if server.statuses else None
            told = said and (said.eligible, said.reason, said.lease is not None)
            return told == (eligible, reason, leased)

        return check

    # given a car of which nothing is known yet
    until(says(eligible=False, reason="signal-missing", leased=False), "nothing is known")
    server.publish_model(0)
    server.publish(aw.plan(1, 0, opened_at_s=time.time(), training=TRAINING))
    # when it is parked
    car.speed(0)
    until(says(eligible=True, reason="", leased=True), "it trains")
    until(car.checkpoint().exists, "a checkpoint")
    # and drives off
    car.speed(13.5)
    until(says(eligible=False, reason="not-parked", leased=False), "the server knows why it stopped")
    spent = [-1.0]

    def still() -> bool:
        before, spent[0] = spent[0], car.trainer_s()
        return before == spent[0]

    until(still, "the trainer does nothing any more")
    assert (VEHICLE, 1) not in server.updates
    until(lambda: server.metrics and "training-interrupted" in server.metrics[-1].refusals, "it is counted")
    # and parks again
    car.speed(0)
    until(lambda: (VEHICLE, 1) in server.updates, "the update")
    # then it went on from its checkpoint: its steps never went back, and the result is that of one piece
    steps = car.steps()
    assert steps == sorted(steps)
    car.process.send_signal(signal.SIGTERM)
    assert car.process.wait(30) == 0
    sealed = server.updates[VEHICLE, 1]
    header = envelope.peek(sealed, limit_bytes=len(sealed))
    _, body = update.unpack(sealed[header.body_start :], sender=VEHICLE)
    sent = payload.decode(body, size=aw.NETWORK_SIZE).delta.dense()
    work = car.folder / "work" / VEHICLE
    journal = Journal(work, vehicle=VEHICLE, task=aw.TASK_ID, epoch=1, seed=b"k" * 32)
    assert np.allclose(sent + journal.residual(aw.NETWORK_SIZE), car.undisturbed(), atol=1e-6)
    journal.close()
