"""Many vehicles in one process: one inbox, one pool of trainers, one thread for inference, sessions shared.

``python -P -m fedfleet.vehicle_agent.fleet --config-json FILE``. A single agent is a fleet of one: the same code.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from fedfleet.link.inbox import Inbox
from fedfleet.link.port import Event, Link, Published, Sink, Will
from fedfleet.models import task as tasks
from fedfleet.protocol.errors import UsageError
from fedfleet.vehicle_agent.config import FleetConfig
from fedfleet.vehicle_agent.crowd import SPEAKERS, Crowd
from fedfleet.vehicle_agent.equip import Shared, World, equip
from fedfleet.vehicle_agent.runtime import Inference
from fedfleet.vehicle_agent.scheduling import Scheduling, check
from fedfleet.vehicle_agent.swap import Sessions, Swapper
from fedfleet.vehicle_agent.trainer_port import TrainerPool, Trainers, Watched, trainer_command
from fedfleet.vehicle_agent.vehicle import Vehicle
from fedfleet.vehicle_agent.watch import Watch

__all__ = ["Connect", "Fleet", "World"]

INBOX_ITEMS = 1024
DRAIN = 256
MOST_TICKS_S = 0.02
"""So long a turn is at timers; what is left of the vehicles comes in the next."""


class Connect(Protocol):
    """Makes a link: ``Loop.connect`` with a configuration bound, or ``MemoryBroker.connect``."""

    def __call__(self, client_id: str, sink: Sink, *, will: Will) -> Link:
        """Return a link that connects by itself."""
        ...


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
        if len(config.vehicles) > SPEAKERS:
            world = replace(world, report=Crowd(world.report, world.monotonic_s))
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
        shared = Shared(config, world, self.task, self.pool, self._swapper, self.watch)
        try:
            for entry in config.vehicles:
                self.vehicles.append(equip(entry, len(self.vehicles), shared))
        except UsageError:
            for vehicle in self.vehicles:
                vehicle.parts.journal.close()
            self._swapper.close()
            raise
        self._owners = {vehicle.name: index for index, vehicle in enumerate(self.vehicles)}
        replays = [vehicle.parts.replay for vehicle in self.vehicles if config.inference]
        first = config.inference_priority == "realtime" and len(config.vehicles) == 1
        self._inference = Inference(replays, clock=world.monotonic_s, realtime=first)
        self._started_s = self._tick_at_s = 0.0
        self._to_tick: list[Vehicle] = []

    def warm_up(self) -> bool:
        """Have trainers started before there is work for them; True once they are warm. Call it until then."""
        if not isinstance(self.pool, TrainerPool):
            return True
        now_s = self._world.monotonic_s()
        if not self.pool.pids:
            self.pool.warm(len(self.vehicles), now_s)
        self.pool.poll(now_s)
        return bool(self.pool.pids) and self.pool.is_warm

    def start(self) -> None:
        """Drive with what the journals hold, and connect."""
        self._started_s = self._world.monotonic_s()
        for vehicle in self.vehicles:
            vehicle.resume(self._sessions, self._world.now_s())
        self._inference.start()
        for index, vehicle in enumerate(self.vehicles):
            link = self._connect(vehicle.name, self._sink(index), will=vehicle.will)
            self._links.append(link)
            vehicle.connect(link)

    @property
    def is_busy(self) -> bool:
        """Whether a training or the trial of a release is under way, whose end comes as no message."""
        return any(vehicle.state.training or vehicle.state.trying for vehicle in self.vehicles)

    def turn(self, timeout_s: float) -> None:
        """Handle what has come, waiting for something at most ``timeout_s`` seconds."""
        for index, event in self._inbox.drain(DRAIN, 0.0 if self._to_tick else timeout_s):
            self.vehicles[index].on_link(event, self._world.now_s())
        now_s, monotonic_s = self._world.now_s(), self._world.monotonic_s()
        if self.watch is not None:
            self.watch.tick(monotonic_s)
        for told in self.pool.poll(monotonic_s):
            self.vehicles[self._owners[told.id.partition("/")[0]]].on_told(told, now_s)
        for tried in self._swapper.poll():
            self.vehicles[tried.candidate.owner].on_tried(tried, now_s)
        self._tick(now_s, monotonic_s)
        if trouble := self._inference.look():
            self._world.report(f"vehicle {self.vehicles[0].name}: {trouble}")
        if self._inference.error is not None:
            raise self._inference.error

    def _tick(self, now_s: float, monotonic_s: float) -> None:
        """Let every vehicle look at its timers once a ``tick_s``; where that takes long, turns come in between."""
        if not self._to_tick and monotonic_s >= self._tick_at_s:
            self._tick_at_s = monotonic_s + self._config.tick_s
            self._to_tick = self.vehicles[::-1]
        while self._to_tick:
            vehicle, scenario_s = self._to_tick.pop(), monotonic_s - self._started_s
            vehicle.tick(now_s, scenario_s=scenario_s, metrics_interval_s=self._config.metrics_interval_s)
            if self._world.monotonic_s() - monotonic_s > MOST_TICKS_S:
                return

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


def _trainers(trainer: Sequence[str] | Trainers, config: FleetConfig) -> Trainers:
    if isinstance(trainer, Sequence):
        scheduling = Scheduling(config.trainer_policy, config.nice, config.trainer_cores)
        check(scheduling)
        watched = Watched(hang_s=config.trainer_hang_s, memory_bytes=config.trainer_memory_mb << 20)
        idle_s, most = config.trainer_idle_s, config.max_warm_trainers
        return TrainerPool(trainer, max_trainers=most, idle_s=idle_s, scheduling=scheduling, watched=watched)
    return trainer


def _main() -> int:
    from fedfleet.vehicle_agent.main import main  # it imports this module

    return main("fleet")


if __name__ == "__main__":
    sys.exit(_main())
