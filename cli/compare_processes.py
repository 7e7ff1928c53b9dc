"""The federated arm over a real broker, with real processes: broker, fleet server, and a fleet with its trainers."""

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import SecretStr

from fedfleet.cli import launch
from fedfleet.cli.compare_choice import Choice
from fedfleet.cli.compare_federation import Federated, configured
from fedfleet.cli.compare_settings import ArmSettings, Rounds
from fedfleet.cli.config import Settings
from fedfleet.cli.processes import Child, start
from fedfleet.fleet_server import store_vehicles
from fedfleet.fleet_server.status import snapshot
from fedfleet.fleet_server.store import open_reader
from fedfleet.link import embedded
from fedfleet.models import task as tasks
from fedfleet.protocol.errors import UsageError
from fedfleet.scenarios.partition import Partition

__all__ = ["run"]

POLL_S = 0.1
ROUND_LIMIT_S = 300.0


def run(
    settings: Settings,
    parts: Partition,
    arms: ArmSettings,
    rounds: Rounds,
    *,
    tell: Callable[[int, int, str], None],
) -> Federated:
    """Run all rounds over an embedded broker; the model is the same, byte for byte, as over the memory link.

    Raises UsageError, with its last words, when a process ends by itself; no process is left in any case.
    """
    codes = {vehicle: SecretStr(secrets.token_hex(16)) for vehicle in parts.vehicles}
    settings = configured(settings, parts, arms, rounds, codes=codes)
    with _broker(settings) as broker:
        where = {"host": broker.host, "port": broker.port}
        settings = settings.model_copy(update={"broker": settings.broker.model_copy(update=where)})
        with _children(settings, parts, codes) as children:
            choice = Choice(launch.server_dir(settings), tasks.load(settings.task))
            end = _watch(settings, children, rounds, choice=choice, tell=tell)
            bytes_up, bytes_down = _bytes(settings)
    final = (launch.server_dir(settings) / "model.onnx").read_bytes()
    return Federated(choice.model, choice.version, final, end, bytes_up, bytes_down)


@contextmanager
def _broker(settings: Settings) -> Iterator[embedded.Broker]:
    kind = settings.broker.embedded
    if kind == "none":
        raise UsageError("broker.embedded is 'none': compare --broker starts a broker of its own")
    with embedded.start(settings.work_dir / "broker", kind=kind, fleet=settings.fleet) as broker:
        yield broker


@contextmanager
def _children(settings: Settings, parts: Partition, codes: launch.Codes) -> Iterator[list[Child]]:
    """Start server and fleet; stop the fleet, then the server, when the block ends."""
    folder, logs = settings.work_dir / "config", settings.work_dir / "logs"
    server = launch.server_config(settings, sorted(parts.validation))
    fleet = launch.fleet_config(settings, sorted(parts.vehicles), codes=codes)
    children: list[Child] = []
    try:
        for name, module, config in (("server", launch.SERVER, server), ("fleet", launch.FLEET, fleet)):
            path = launch.write_config(config, folder / f"{name}.json")
            children.append(start(name, module, ["--config-json", str(path)], log_dir=logs))
        yield children
    finally:
        for child in reversed(children):
            child.stop()


def _watch(
    settings: Settings,
    children: list[Child],
    rounds: Rounds,
    *,
    choice: Choice,
    tell: Callable[[int, int, str], None],
) -> Mapping[str, Any]:
    """Wait until the last round is over and its model drives everywhere; return the last snapshot."""
    done, limit_s = -1, time.monotonic() + ROUND_LIMIT_S
    while time.monotonic() < limit_s:
        time.sleep(POLL_S)
        for child in children:
            if not child.is_running():
                raise UsageError(f"the {child.name} process ended by itself: {child.last_words()}")
        now = _snapshot(settings)
        if now is None:
            continue
        choice.look()
        if now["rounds_run"] > done:
            done, limit_s = now["rounds_run"], time.monotonic() + ROUND_LIMIT_S
            tell(done, rounds.count, f"round {done}")
        versions = [one["active_version"] for one in now["vehicles"].values()]
        if now["is_done"] and all(version == now["released"] for version in versions):
            return now
    raise UsageError(f"the federated arm halts after round {done}: see {settings.work_dir / 'logs'}")


def _snapshot(settings: Settings) -> Mapping[str, Any] | None:
    """Return the newest snapshot; None before the server has made its store."""
    try:
        return snapshot(launch.server_dir(settings), time.time())
    except UsageError:
        return None


def _bytes(settings: Settings) -> tuple[int, int]:
    """What the vehicles last said of the bytes they sent and received."""
    store = open_reader(launch.server_dir(settings))
    try:
        with store.read() as connection:
            said = store_vehicles.last_metrics(connection).values()
            return sum(one.bytes_up for one in said), sum(one.bytes_down for one in said)
    finally:
        store.close()
