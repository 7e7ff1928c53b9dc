"""One agent process at a real broker, killed again and again, while a server of the tests' own judges its updates.

Deltas are known beforehand (the seed of a round gives them), so that what entered the residual, what left it and what
came back can be added up to the last number.
"""

import json
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import agent_world as aw
import numpy as np
from agent_trainer import delta_of
from child_processes import Processes
from kill_judge import VEHICLE, Judge

from fedfleet.codec import payload
from fedfleet.link import embedded
from fedfleet.link.options import Backoff, Options
from fedfleet.link.paho import Loop
from fedfleet.models.task import Floats
from fedfleet.protocol import envelope, update
from fedfleet.protocol.ids import UpdateId
from fedfleet.vehicle_agent.agent import training_seed
from fedfleet.vehicle_agent.jobs import Job
from fedfleet.vehicle_agent.journal import Journal

__all__ = ["MOMENTS", "Yard"]

TESTS = Path(__file__).parent
PATIENCE_S = 180.0
PAUSE_S = 0.005
MOMENTS = ("starting", "receiving", "training", "committing", "sending", "settling", "swapping")
Moment = Literal["starting", "receiving", "training", "committing", "sending", "settling", "swapping"]
WITHIN_S = {
    "starting": 2.0,
    "receiving": 0.25,
    "training": 0.5,
    "committing": 0.15,
    "sending": 0.05,
    "settling": 0.1,
    "swapping": 0.4,
}
"""A kill comes so many seconds at most after the moment began."""
REAL_TRAINING_S = 4.0
"""The same for the product's own trainer, which has to start first."""


class Yard:
    """The broker, the judge and one agent process. ``real`` has it train with the product's own trainer."""

    def __init__(self, folder: Path, processes: Processes, *, seed: int, real: bool, epochs: int = 2) -> None:
        self.folder, self.processes, self.rng, self.real = folder, processes, random.Random(seed), real
        self.training = {"epochs": epochs, "batch_size": 8}
        self.broker = embedded.start(folder / "broker", kind="mosquitto")
        self.loop = Loop(rng=self.rng).start()
        options = Options(backoff=Backoff(cap_s=0.5))
        where = (self.broker.host, self.broker.port)
        self.judge = Judge(
            lambda name, sink: self.loop.connect(*where, client_id=name, sink=sink, options=options), self.rng
        )
        self.data = aw.prepare(folder / "data")
        told = {
            "fleet": aw.FLEET,
            "task": "agent_world:TASK",
            "work_dir": str(folder / "work"),
            "vehicle": VEHICLE,
            "data_dir": str(self.data),
            "enrolment_code": aw.CODE,
            "broker": {"port": self.broker.port},
            "rate_hz": 50.0,
            "tick_s": 0.05,
            "metrics_interval_s": 0.5,
            "resend_min_s": 0.4,
            "resend_cap_s": 1.0,
            "blob_timeout_s": 1.0,
            "checkpoint_s": 0.1,
            "training_limit_s": 600.0,
            "guard": {"enabled": False},
            "nice": 0,
            "shadow": {"frames": 4, "tolerance": 1000.0, "most_of_frame": 50.0},
        }
        self.config = folder / "agent.json"
        self.config.write_text(json.dumps(told))
        self.start()

    def start(self) -> None:
        program = ["-m", "fedfleet.vehicle_agent"] if self.real else [TESTS / "agent_alone.py"]
        self.statuses = len(self.judge.statuses)
        command = [sys.executable, *program, "--config-json", self.config]
        self.agent = self.processes.start(command, env={"PYTHONPATH": str(TESTS)})

    def turn(self) -> None:
        assert self.agent.poll() is None, self.processes.log(self.agent)
        self.judge.turn(PAUSE_S)

    def run_for(self, seconds: float) -> None:
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            self.turn()

    def run_until(self, condition: Callable[[], object], what: str) -> None:
        end_s = time.monotonic() + PATIENCE_S
        while not condition():
            self.turn()
            assert time.monotonic() < end_s, f"{what}\n{self.processes.log(self.agent)}"

    def online(self) -> bool:
        new = self.judge.statuses[self.statuses :]
        return any(status.state == "ONLINE" for status in new)

    def answered(self) -> bool:
        return any(self.judge.rounds[name] == self.judge.round for name in self.judge.fates)

    def leased(self) -> bool:
        lease = self.judge.statuses[-1].lease if self.judge.statuses else None
        return self.answered() or (lease is not None and lease.round == self.judge.round)

    def trained(self) -> bool:
        """Whether a result waits to be journaled."""
        results = (self.folder / "work" / VEHICLE / "training").glob("delta-*.npy")
        return self.answered() or any(not file.name.endswith(".new.npy") for file in results)

    def kill(self) -> None:
        """Kill -9, look at what is left on the disk, and start again."""
        self.agent.send_signal(signal.SIGKILL)
        self.agent.wait(10)
        self.check_active()
        self.start()

    @contextmanager
    def journal(self) -> Iterator[Journal]:
        """A copy of the journal as it is on the disk now, opened."""
        copy = self.folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        for file in (self.folder / "work" / VEHICLE).glob("*"):
            if file.is_file() and not file.name.endswith("-shm"):
                shutil.copy(file, copy)
        opened = Journal(copy, vehicle=VEHICLE, task=aw.TASK_ID, epoch=1, seed=b"k" * 32)
        try:
            assert opened.salvaged is None
            yield opened
        finally:
            opened.close()

    def check_active(self) -> None:
        """The active model is one that was released, whole, and the one before it too."""
        if not (self.folder / "work" / VEHICLE / "journal.sqlite").exists():
            return
        with self.journal() as journal:
            slots = journal._rows("SELECT slot FROM release")
            for (slot,) in slots:
                held = journal.released(slot)
                assert held is not None, f"{slot} release is damaged"
                assert held.model == aw.file_of(held.version)
            assert ("active",) in slots or not slots

    def drained(self) -> bool:
        with self.journal() as journal:
            return not journal.outbox

    def shake(self, kills: int) -> Counter[str]:
        """Run rounds with so many kills at points of all kinds; one more round, undisturbed, ends it."""
        moments = [MOMENTS[i % len(MOMENTS)] for i in range(kills)]
        self.rng.shuffle(moments)
        points: Counter[str] = Counter()
        while moments:
            self.judge.open(self.judge.round + 1, self.training)
            for _ in range(self.rng.randint(1, 3)):
                if moments:
                    moment = moments.pop()
                    self._reach(moment)
                    within_s = REAL_TRAINING_S if self.real and moment == "training" else WITHIN_S[moment]
                    self.run_for(self.rng.uniform(0.0, within_s))
                    points[moment] += 1
                    self.kill()
            self.run_until(self.answered, f"update of round {self.judge.round}")
            self.judge.settle()
        self._finish()
        return points

    def _reach(self, moment: str) -> None:
        if moment == "starting":
            return
        self.run_until(self.online, "the agent is online")
        if moment == "training":
            self.run_until(self.leased, f"training of round {self.judge.round}")
        elif moment == "committing":
            self.run_until(self.trained, f"result of round {self.judge.round}")
        elif moment in {"sending", "settling"}:
            self.run_until(self.answered, f"update of round {self.judge.round}")
            if moment == "settling":
                self.judge.settle()
        elif moment == "swapping":
            self.judge.release(max(0, self.judge.round - 2))

    def _finish(self) -> None:
        last = self.judge.round + 1
        self.judge.open(last, self.training)
        self.run_until(self.answered, "the last update")
        for _ in range(2):  # what was carried is settled a round later
            self.judge.settle()
            self.judge.round += 1
        self.run_until(self.drained, "the outbox is empty")

    def close(self) -> None:
        self.loop.stop()
        self.broker.stop()

    def sent(self, name: str) -> Floats:
        """What an update said, as float32[M]."""
        sealed = self.judge.first[name]
        header = envelope.peek(sealed, limit_bytes=len(sealed))
        _, body = update.unpack(sealed[header.body_start :], sender=header.sender)
        return payload.decode(body, size=aw.NETWORK_SIZE).delta.dense()

    def sequences(self) -> list[int]:
        return sorted(UpdateId.parse(name).sequence for name in self.judge.seen)

    def left(self) -> Floats:
        """What must be in the residual: all that was learned but what was sent for good."""
        learned = sum(
            (self.learned(r) for r in sorted(self.judge.rounds.values())), np.zeros(aw.NETWORK_SIZE)
        )
        kept = [name for name, fate in self.judge.fates.items() if fate in {"folded", "dropped"}]
        return learned - sum((self.sent(name) for name in kept), np.zeros(aw.NETWORK_SIZE))  # type: ignore[no-any-return]

    def learned(self, round_: int) -> Floats:
        """What the training of a round gives, whoever does it and however often it is begun."""
        seed = training_seed(aw.TASK_ID, round_, VEHICLE)
        if not self.real:
            return delta_of(seed, aw.NETWORK_SIZE)
        from fedfleet.vehicle_agent.trainer import perform  # and torch with it

        base, out = self.folder / "base.npy", self.folder / "delta.npy"
        np.save(base, aw.vector(round_ - 1))
        job = Job(
            id="again",
            task="agent_world:TASK",
            data_dir=str(self.data),
            base=str(base),
            settings=self.training,
            seed=seed,
            out=str(out),
        )
        assert perform(job, lambda _: None).kind == "done"
        return np.load(out)  # type: ignore[no-any-return]
