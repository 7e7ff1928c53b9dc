"""Many vehicles in one process: one inbox, one pool of trainers, one thread for inference, sessions shared.

``python -m fedfleet.vehicle_agent.fleet --config-json FILE``. A single agent is a fleet of one: the same code.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from fedfleet.link.inbox import Inbox
from fedfleet.link.port import Event, Link, Published, Sink, Will
from fedfleet.models import prepared
from fedfleet.models import task as tasks
from fedfleet.models.task import Frames, Samples, Task
from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.ids import task_id
from fedfleet.vehicle_agent import config as configs
from fedfleet.vehicle_agent import events as ev
from fedfleet.vehicle_agent.actions import Action
from fedfleet.vehicle_agent.conditions import Program
from fedfleet.vehicle_agent.config import FleetConfig, VehicleEntry
from fedfleet.vehicle_agent.downlink import Downlink, Limits
from fedfleet.vehicle_agent.eligibility import Conditions, Fixed, parse_trace
from fedfleet.vehicle_agent.journal import Journal
from fedfleet.vehicle_agent.runtime import Inference, Replay
from fedfleet.vehicle_agent.scheduling import Scheduling, check
from fedfleet.vehicle_agent.state import Resumed, Settings, start
from fedfleet.vehicle_agent.swap import Sessions, Swapper
from fedfleet.vehicle_agent.trainer_port import TrainerPool, Trainers, Watched, trainer_command
from fedfleet.vehicle_agent.trusted import Trusted
from fedfleet.vehicle_agent.tuning import Means, Tuning
from fedfleet.vehicle_agent.vehicle import Parts, Vehicle
from fedfleet.vehicle_agent.watch import Watch

__all__ = ["Connect", "Fleet", "World"]

INBOX_ITEMS = 4096
DRAIN = 256


class Connect(Protocol):
    """Makes a link: ``Loop.connect`` with a configuration bound, or ``MemoryBroker.connect``."""

    def __call__(self, client_id: str, sink: Sink, *, will: Will) -> Link:
        """Return a link that connects by itself."""
        ...


@dataclass(frozen=True)
class World:
    """What a fleet may know of the world outside: clocks in seconds, chance, and a person to tell."""

    now_s: Callable[[], float]
    monotonic_s: Callable[[], float]
    bits: Callable[[int], int]
    rss_bytes: Callable[[], int]
    report: Callable[[str], None]


class Fleet:
    """The vehicles of a process. ``start``, then ``turn`` again and again, then ``stop``; all in one thread.

    Raises UsageError when a vehicle's folder, data or journal cannot be used; then nothing is left running.
    """

    def __init__(
        self,
        config: FleetConfig,
        connect: Connect,
        world: World,
        *,
        trainer: Sequence[str] | Trainers | None = None,
    ) -> None:
        """Open every vehicle's folder. ``trainer`` is another trainer's command line, or who trains instead."""
        self._config, self._world, self._connect = config, world, connect
        self.task = tasks.load(config.task)
        self._inbox: Inbox[tuple[int, Event]] = Inbox(INBOX_ITEMS)
        self._sessions = Sessions(self.task)
        clock = world.monotonic_s
        self._swapper = Swapper(
            self._sessions, background=config.inference, shadow=config.shadow, clock=clock
        )
        self.pool = _trainers(trainer or trainer_command(), config)
        self.watch = Watch(config.guard, self.pool) if isinstance(self.pool, TrainerPool) else None
        self._links: list[Link] = []
        self.vehicles: list[Vehicle] = []
        try:
            for entry in config.vehicles:
                self.vehicles.append(self._vehicle(entry, len(self.vehicles)))
        except UsageError:
            for vehicle in self.vehicles:
                vehicle.parts.journal.close()
            self._swapper.close()
            raise
        self._owners = {vehicle.name: index for index, vehicle in enumerate(self.vehicles)}
        replays = [vehicle.parts.replay for vehicle in self.vehicles if config.inference]
        self._inference = Inference(replays, clock=world.monotonic_s)
        self._started_s = self._tick_at_s = 0.0

    def start(self) -> None:
        """Drive with what the journals hold, and connect."""
        self._started_s = self._world.monotonic_s()
        for vehicle in self.vehicles:
            if (kept := vehicle.parts.journal.salvaged) is not None:
                vehicle.handle(ev.MessageRefused("journal-corrupt"), self._world.now_s())
                told = f"journal is damaged, kept as {kept.name}; beginning anew"
                self._world.report(
                    f"vehicle {vehicle.name}: {told}, as epoch {vehicle.parts.journal.epoch:x}"
                )
            reason = vehicle.parts.downlink.resume(self._sessions)
            if reason:
                vehicle.handle(ev.MessageRefused(f"active-{reason}"), self._world.now_s())
        self._inference.start()
        for index, vehicle in enumerate(self.vehicles):
            link = self._connect(vehicle.name, self._sink(index), will=vehicle.will)
            self._links.append(link)
            vehicle.connect(link)

    def turn(self, timeout_s: float) -> None:
        """Handle what has come, waiting for something at most ``timeout_s`` seconds."""
        for index, event in self._inbox.drain(DRAIN, timeout_s):
            self.vehicles[index].on_link(event, self._world.now_s())
        now_s, monotonic_s = self._world.now_s(), self._world.monotonic_s()
        if self.watch is not None:
            self.watch.tick(monotonic_s)
        for told in self.pool.poll(monotonic_s):
            self.vehicles[self._owners[told.id.partition("/")[0]]].on_told(told, now_s)
        for tried in self._swapper.poll():
            self.vehicles[tried.candidate.owner].on_tried(tried, now_s)
        if monotonic_s >= self._tick_at_s:
            self._tick_at_s = monotonic_s + self._config.tick_s
            for vehicle in self.vehicles:
                scenario_s, interval_s = monotonic_s - self._started_s, self._config.metrics_interval_s
                vehicle.tick(now_s, scenario_s=scenario_s, metrics_interval_s=interval_s)
        if self._inference.error is not None:
            raise self._inference.error

    def stop(self, farewell_s: float = 0.0) -> None:
        """Say OFFLINE for every vehicle, end trainers and threads. The links are closed by who made them.

        Waits at most ``farewell_s`` seconds for the broker to take over the last words.
        """
        tickets = [vehicle.close(self._world.now_s()) for vehicle in self.vehicles[: len(self._links)]]
        waiting = {(index, ticket) for index, ticket in enumerate(tickets) if ticket is not None}
        self.pool.close()
        self._inference.stop()
        self._swapper.close()
        end_s = self._world.monotonic_s() + farewell_s
        while waiting and self._world.monotonic_s() < end_s:
            items = self._inbox.drain(DRAIN, 0.05)
            waiting -= {(index, event.ticket) for index, event in items if isinstance(event, Published)}

    def _sink(self, index: int) -> Sink:
        return lambda event: self._inbox.put((index, event))

    def _vehicle(self, entry: VehicleEntry, index: int) -> Vehicle:
        config, world = self._config, self._world
        folder, wire_task = config.work_dir / entry.vehicle, task_id(self.task.name)
        prepared.check(prepared.open_meta(entry.data_dir), self.task)
        conditions = _conditions(config, entry.vehicle)
        replay = _replay(self.task, entry, config, world)
        replay.watch = self.watch
        seed = world.bits(256).to_bytes(32, "big")
        # 53 bits: a status carries the epoch in JSON, where every reader keeps it exactly.
        journal = Journal(folder, vehicle=entry.vehicle, task=wire_task, epoch=world.bits(53), seed=seed)
        try:
            settings = _settings(config, entry, wire_task)
            trusted = _trusted(config, entry, journal, wire_task)
        except UsageError:
            journal.close()
            raise
        resumed = Resumed(
            session=journal.next_session(),
            enrolled=trusted.code is None,
            region=journal.region,
            base=journal.base,
            active=journal.active,
            answered=journal.answered,
            outbox=journal.outbox,
        )
        limits = Limits(config.max_model_bytes, config.blob_timeout_s)
        downlink = Downlink(journal, replay, self._swapper, owner=index, task=self.task, limits=limits)
        who = (config.fleet, entry.vehicle)
        tuning = Tuning(
            journal, self.pool, folder / "training", task=config.task, data_dir=entry.data_dir, identity=who
        )
        tuning.max_update_bytes = config.max_update_bytes
        tuning.link_class = config.link_classes.get(entry.vehicle, config.link_class)
        tuning.budget_bytes = config.update_budget_bytes
        tuning.means = _means(config)
        vehicle = Vehicle(
            start(settings, resumed),
            trusted,
            Parts(journal, replay, downlink, tuning, conditions),
            nonce=lambda: f"{world.bits(128):032x}",
            report=world.report,
            rss_bytes=world.rss_bytes,
        )
        if config.record_events:
            vehicle.observer = partial(_record, folder / "events.jsonl")
        return vehicle


def _trainers(trainer: Sequence[str] | Trainers, config: FleetConfig) -> Trainers:
    if isinstance(trainer, Sequence):
        scheduling = Scheduling(config.trainer_policy, config.nice, config.trainer_cores)
        check(scheduling)
        watched = Watched(hang_s=config.trainer_hang_s, memory_bytes=config.trainer_memory_mb << 20)
        idle_s, most = config.trainer_idle_s, config.max_warm_trainers
        return TrainerPool(trainer, max_trainers=most, idle_s=idle_s, scheduling=scheduling, watched=watched)
    return trainer


def _means(config: FleetConfig) -> Means:
    settings: dict[str, int | float | str] = {}
    if config.trainable != "all":
        settings["trainable"] = config.trainable
    if config.batch_memory_mb is not None:
        settings["batch_bytes"] = int(config.batch_memory_mb * 2**20)
    return Means(config.training_budget_s or 0.0, config.checkpoint_s, settings)


def _settings(config: FleetConfig, entry: VehicleEntry, wire_task: str) -> Settings:
    return Settings(
        config.fleet,
        entry.vehicle,
        wire_task,
        rules=config.rules,
        resend_min_s=config.resend_min_s,
        resend_cap_s=config.resend_cap_s,
        training_limit_s=config.training_limit_s,
        forget_after_rounds=config.forget_after_rounds,
    )


def _trusted(config: FleetConfig, entry: VehicleEntry, journal: Journal, wire_task: str) -> Trusted:
    told, pinned = configs.server_key(config.server_public_key), journal.server_key
    if told is not None and pinned is not None and told != pinned:
        keys = f"the journal is pinned to server key {pinned.hex()[:12]}…, server_public_key is {told.hex()[:12]}…"
        raise UsageError(f"vehicle {entry.vehicle}: {keys}: correct it, or use a new work_dir")
    code = (
        None if journal.enrolled or entry.enrolment_code is None else entry.enrolment_code.get_secret_value()
    )
    if told is None and pinned is None and code is None:
        raise UsageError(
            f"vehicle {entry.vehicle}: expected server_public_key or enrolment_code, got neither"
        )
    return Trusted(
        config.fleet,
        entry.vehicle,
        wire_task,
        server_key=pinned or told,
        code=code,
        region=journal.region,
        seen=journal.seen,
        max_model_bytes=config.max_model_bytes,
    )


def _conditions(config: FleetConfig, vehicle: str) -> Conditions:
    if config.conditions_command:
        return Program(config.conditions_command, vehicle=vehicle, stale_s=config.conditions_stale_s)
    if config.conditions_file is None:
        return Fixed(config.conditions)
    try:
        text = config.conditions_file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"conditions_file {config.conditions_file}: cannot be read: {error}") from error
    return parse_trace(text, name=str(config.conditions_file), stale_s=config.conditions_stale_s)


def _replay(task: Task, entry: VehicleEntry, config: FleetConfig, world: World) -> Replay:
    if not config.inference:
        return Replay(task, _no_frames(task), None, clock=world.monotonic_s)
    frames = prepared.open_frames(entry.data_dir)
    has_truth = "train" in prepared.open_meta(entry.data_dir).parts
    truth: Samples | None = prepared.open(entry.data_dir, "train") if has_truth else None
    shape = task.specification.input_shape
    if frames.inputs.shape[1:] != shape or (
        truth is not None and len(frames.sample) and frames.sample.max() >= len(truth)
    ):
        raise UsageError(
            f"{entry.data_dir}: frames do not match task {task.name}: {list(frames.inputs.shape)}"
        )
    return Replay(task, frames, truth, clock=world.monotonic_s, rate_hz=config.rate_hz)


def _no_frames(task: Task) -> Frames:
    nothing = np.empty((0, *task.specification.input_shape), dtype=np.float32)
    return Frames(nothing, np.zeros(1, dtype=np.int64), np.empty(0, dtype=np.int64), 1.0)


def _record(path: Path, event: ev.Event, now_s: float, actions: tuple[Action, ...]) -> None:
    del actions
    with path.open("a", encoding="utf-8") as file:
        file.write(ev.record(event, now_s) + "\n")


def _main() -> int:
    from fedfleet.vehicle_agent.main import main  # it imports this module

    return main("fleet")


if __name__ == "__main__":
    sys.exit(_main())
