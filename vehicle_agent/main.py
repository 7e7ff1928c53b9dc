"""The agent process: reads the configuration, the clock and chance, and runs until it is told to stop."""

import argparse
import json
import os
import random
import secrets
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from fedfleet.link.options import Options, options_for
from fedfleet.link.paho import Loop
from fedfleet.link.port import Link, Sink, Will
from fedfleet.link.relay import Relay
from fedfleet.models.interpreter import module_command
from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.printable import printable
from fedfleet.vehicle_agent.config import FleetConfig, load
from fedfleet.vehicle_agent.fleet import Fleet, World
from fedfleet.vehicle_agent.fleet_report import report, words

__all__ = ["main"]

TURN_S = 0.05
"""So long a turn waits at most while something is under way; else until the next look at the timers."""
FAREWELL_S = 2.0
FRUGAL = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": "65536",  # fixed: blobs and sessions go back to the system when they are freed
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}
"""What keeps the process small must stand in its environment before it starts."""
MODULES = {"agent": "fedfleet.vehicle_agent", "fleet": "fedfleet.vehicle_agent.fleet"}


def main(
    kind: Literal["agent", "fleet"],
    argv: Sequence[str] | None = None,
    *,
    trainer: Sequence[str] | None = None,
) -> int:
    """Run one vehicle or many; returns the exit code: 0 after a signal, 2 with one line after a user's mistake.

    ``trainer`` is another trainer's command line.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog=f"python -m {MODULES[kind]}", description=f"Runs a vehicle {kind}.")
    parser.add_argument(
        "--config-json", type=Path, required=True, metavar="FILE", help="configuration (JSON)"
    )
    path = parser.parse_args(given).config_json
    if argv is None and any(name not in os.environ for name in FRUGAL):
        command = module_command(MODULES[kind], *given)
        os.execve(command[0], command, {**FRUGAL, **os.environ})  # noqa: S606
    os.umask(0o077)  # what it keeps is for its own user, also what a library or the trainer writes
    try:
        config = load(kind, path)
        _run(config, trainer)
    except UsageError as error:
        _report(str(error))
        return 2
    return 0


def _run(config: FleetConfig, trainer: Sequence[str] | None) -> None:
    stopped = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stopped.set())
    options = replace(options_for(config.broker), receive_window=config.receive_window)
    loop = Loop(rng=random.Random(secrets.randbits(64)))
    relay = Relay(time.monotonic)
    if config.profiles:
        relay.start()
    world = World(time.time, time.monotonic, secrets.randbits, _rss_bytes, _report)
    fleet = Fleet(config, _Connect(loop, relay, config, options), world, trainer=trainer)
    loop.start()
    try:
        _warm_up(fleet, config.warm_start_s, stopped)
        fleet.start()
        while not stopped.is_set():
            fleet.turn(TURN_S if fleet.is_busy else config.tick_s)
        _tell(config, fleet, relay)
    finally:
        fleet.stop(FAREWELL_S)
        loop.stop()
        relay.stop()


def _warm_up(fleet: Fleet, most_s: float, stopped: threading.Event) -> None:
    """Wait, where that is wanted, until trainers are warm: a round that opens earlier learns nothing from us."""
    begun_s = time.monotonic()
    while most_s and not fleet.warm_up():
        if time.monotonic() - begun_s > most_s:
            _report(f"trainers are not warm after {most_s:.0f} s: connecting without them")
            return
        if stopped.wait(TURN_S):
            return
    if most_s:
        _report(f"trainers are warm after {time.monotonic() - begun_s:.1f} s")


def _tell(config: FleetConfig, fleet: Fleet, relay: Relay) -> None:
    """Write what the vehicles did where the configuration says, and say it in one line."""
    if config.report_file is None:
        return
    told = report(config, fleet.task, fleet.vehicles, rss_bytes=_rss_bytes(), relay=relay.counts)
    try:
        config.report_file.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        _report(f"{config.report_file}: cannot be written: {error.strerror}")
    _report(words(told))


class _Connect:
    """``Loop.connect`` with the configuration bound; a vehicle whose link has a profile goes through the relay."""

    def __init__(self, loop: Loop, relay: Relay, config: FleetConfig, options: Options) -> None:
        self._loop, self._relay, self._config, self._options = loop, relay, config, options

    def __call__(self, client_id: str, sink: Sink, *, will: Will) -> Link:
        broker, profile, options = self._config.broker, self._config.profile(client_id).link, self._options
        if not profile.is_plain:
            options = replace(options, dial=self._relay.dial(client_id, profile))
        return self._loop.connect(
            broker.host, broker.port, client_id=client_id, sink=sink, will=will, options=options
        )


def _report(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)  # noqa: T201 - the process's words to the person who runs it


def _rss_bytes() -> int:
    with Path("/proc/self/statm").open("rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
