"""From one vehicle's configuration to a vehicle: its folder opened, its data checked, its parts put together."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from fedfleet.models import prepared
from fedfleet.models.task import Frames, Samples, Task
from fedfleet.protocol.enrolment import secret_of
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
from fedfleet.vehicle_agent.journal_file import JournalError
from fedfleet.vehicle_agent.personal_head import Own, Personal
from fedfleet.vehicle_agent.runtime import Replay
from fedfleet.vehicle_agent.state import Resumed, Settings, start
from fedfleet.vehicle_agent.swap import Swapper
from fedfleet.vehicle_agent.trainer_port import Trainers
from fedfleet.vehicle_agent.troubles import NO_SAMPLES
from fedfleet.vehicle_agent.trusted import Trusted
from fedfleet.vehicle_agent.tuning import Means, Tuning
from fedfleet.vehicle_agent.vehicle import Parts, Vehicle
from fedfleet.vehicle_agent.verify import forget_damaged
from fedfleet.vehicle_agent.watch import Watch

__all__ = ["Shared", "World", "equip"]


@dataclass(frozen=True)
class World:
    """What a fleet may know of the world outside: clocks in seconds, chance, and a person to tell."""

    now_s: Callable[[], float]
    monotonic_s: Callable[[], float]
    bits: Callable[[int], int]
    rss_bytes: Callable[[], int]
    report: Callable[[str], None]


@dataclass(frozen=True)
class Shared:
    """What all vehicles of a process have together. ``watch`` is the guard's eye on inference, when there is one."""

    config: FleetConfig
    world: World
    task: Task
    pool: Trainers
    swapper: Swapper
    watch: Watch | None


def equip(entry: VehicleEntry, index: int, shared: Shared) -> Vehicle:
    """Return the vehicle, number ``index`` of its process; UsageError when folder, data or journal cannot be used."""
    config, world, task = shared.config.of(entry.vehicle), shared.world, shared.task
    profile = config.profile(entry.vehicle)
    folder, wire_task = config.work_dir / entry.vehicle, task_id(task.name)
    meta = prepared.open_meta(entry.data_dir)
    prepared.check(meta, task)
    conditions = _conditions(config, entry.vehicle)
    replay = _replay(task, entry, config, world)
    replay.watch = shared.watch
    seed = world.bits(256).to_bytes(32, "big")
    # 53 bits: a status carries the epoch in JSON, where every reader keeps it exactly.
    epoch, has_code = world.bits(53), entry.enrolment_code is not None
    journal = Journal(
        folder, vehicle=entry.vehicle, task=wire_task, epoch=epoch, seed=seed, has_code=has_code
    )
    try:
        lacks = () if meta.counts.get("train_samples") else (NO_SAMPLES,)
        settings = replace(_settings(config, entry, wire_task), lacks=lacks)
        trusted = _trusted(config, entry, journal, wire_task)
        lost = forget_damaged(journal)
        resumed = _resumed(journal, trusted)
    except (UsageError, JournalError) as error:
        journal.close()
        raise UsageError(str(error)) from error
    limits = Limits(config.max_model_bytes, config.blob_timeout_s)
    downlink = Downlink(journal, replay, shared.swapper, owner=index, task=task, limits=limits)
    who = (config.fleet, entry.vehicle)
    tuning = Tuning(
        journal, shared.pool, folder / "training", task=config.task, data_dir=entry.data_dir, identity=who
    )
    tuning.max_update_bytes = config.max_update_bytes
    tuning.link_class = profile.link_class or config.link_classes.get(entry.vehicle, config.link_class)
    tuning.budget_bytes = config.update_budget_bytes
    tuning.means = _means(config)
    own = Own(config.task, task.metrics, entry.data_dir, folder / "personal", entry.vehicle, index)
    personal = Personal(journal, shared.pool, replay, shared.swapper, own, settings=config.personal)
    personal.means = tuning.means
    vehicle = Vehicle(
        start(settings, resumed),
        trusted,
        Parts(journal, replay, downlink, tuning, conditions, personal, lost),
        nonce=lambda: f"{world.bits(128):032x}",
        report=world.report,
        rss_bytes=world.rss_bytes,
    )
    if config.record_events:
        vehicle.observer = partial(_record, folder / "events.jsonl")
    return vehicle


def _resumed(journal: Journal, trusted: Trusted) -> Resumed:
    return Resumed(
        session=journal.next_session(),
        enrolled=trusted.code is None,
        region=journal.region,
        base=journal.base,
        active=journal.active,
        answered=journal.answered,
        outbox=journal.outbox,
    )


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
        variant="" if config.variant == "float32" else config.variant,
    )


def _trusted(config: FleetConfig, entry: VehicleEntry, journal: Journal, wire_task: str) -> Trusted:
    told, pinned = configs.server_key(config.server_public_key), journal.server_key
    if told is not None and pinned is not None and told != pinned:
        keys = f"the journal is pinned to server key {pinned.hex()[:12]}…, server_public_key is {told.hex()[:12]}…"
        raise UsageError(f"vehicle {entry.vehicle}: {keys}: correct it, or use a new work_dir")
    is_known = journal.enrolled and not journal.rekeyed
    given = None if is_known else entry.enrolment_code
    code = None if given is None else secret_of(given.get_secret_value())
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
    path = Path(str(config.conditions_file).replace("{vehicle}", vehicle))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"vehicle {vehicle}: conditions_file {path}: cannot be read: {error}") from error
    return parse_trace(text, name=str(path), stale_s=config.conditions_stale_s)


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
    replay = Replay(task, frames, truth, clock=world.monotonic_s, rate_hz=config.rate_hz)
    replay.scored = entry.sharers == 1  # else the same drives would count several times
    return replay


def _no_frames(task: Task) -> Frames:
    nothing = np.empty((0, *task.specification.input_shape), dtype=np.float32)
    return Frames(nothing, np.zeros(1, dtype=np.int64), np.empty(0, dtype=np.int64), 1.0)


def _record(path: Path, event: ev.Event, now_s: float, actions: tuple[Action, ...]) -> None:
    del actions
    with path.open("a", encoding="utf-8") as file:
        file.write(ev.record(event, now_s) + "\n")
