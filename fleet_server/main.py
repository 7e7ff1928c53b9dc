"""The fleet server's process: the only place of this room that reads the clock, draws random bytes or hears signals.

Exit codes: 0 after SIGTERM or SIGINT, 1 when the store is out of reach (nothing is lost: what was not committed was
not acknowledged, so the broker delivers it again), 2 for a mistake in the configuration. While the store's disk is
full it waits, acknowledges nothing, and goes on by itself.
"""

import argparse
import gc
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import structlog
from pydantic import ValidationError

from fedfleet.fleet_server import logs
from fedfleet.fleet_server.assembly import assemble, prepare
from fedfleet.fleet_server.config import GroupCommitConfig, ServerConfig
from fedfleet.fleet_server.heartbeat import Heart
from fedfleet.fleet_server.intake import BATCH_BYTES, EVENTS, Intake
from fedfleet.fleet_server.server import Server
from fedfleet.fleet_server.stopwatch import stopwatch, unwatched
from fedfleet.fleet_server.store import StoreFailed, StoreLost
from fedfleet.link.options import options_for
from fedfleet.link.paho import Loop
from fedfleet.link.port import Delivery, Event
from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.ids import SERVER
from fedfleet.protocol.printable import printable

if TYPE_CHECKING:
    from fedfleet.fleet_server.telemetry import Telemetry

__all__ = ["main", "run"]

log = structlog.get_logger()

TICK_S = 0.05
RETRY_S = 0.25
WINDOW = 500
"""QoS-1 messages on their way between broker and server, each way: some transactions' worth."""


class _Stop:
    """Set by SIGTERM or SIGINT; a second one ends the process at once."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(number, signal.SIG_DFL)


def run(config: ServerConfig) -> int:
    """Serve until a signal asks to end; return the exit code. Raises UsageError for a mistake of the user."""
    stop = _Stop()
    inbox = Intake()
    options = replace(
        options_for(config.broker), receive_window=WINDOW, send_window=WINDOW, admits=inbox.admits
    )
    telemetry = _telemetry(config, inbox)
    watch = stopwatch(time.perf_counter, telemetry.note) if telemetry else unwatched
    try:
        parts = prepare(config, now_s=time.time(), draw=os.urandom, watch=watch)
    except StoreFailed as error:
        return _failed(error)
    inbox.allow(config.rate.rate(update_bytes=parts.ingest.limits.update_bytes))
    heart, loop = Heart(config.data_dir, time.time()), Loop().start()
    why = "asked to end"
    try:
        if telemetry is not None:
            telemetry.serve(config.metrics)
        link = loop.connect(
            config.broker.host, config.broker.port, client_id=SERVER, sink=inbox.put, options=options
        )
        log.info("serving", fleet=config.fleet, task=config.task, pid=os.getpid())
        seen = telemetry or _Unseen()
        heart.beat(time.time())
        _serve(assemble(parts, link), inbox, stop, commit=config.group_commit, seen=(heart, seen))
    except (StoreFailed, OSError) as error:
        why = printable(str(error))
        return _failed(error)
    except BaseException as error:
        why = printable(f"{type(error).__name__}: {error}")
        raise
    finally:
        heart.stop(time.time(), why)
        loop.stop()
        if telemetry is not None:
            telemetry.close()
        parts.close()
    log.info("stopped", version=parts.coordinator.model.version)
    return 0


def _failed(error: Exception) -> int:
    log.error("stopped: cannot write", error=str(error))
    sys.stderr.write(
        f"fedfleet server: {printable(str(error))}; nothing was acknowledged that is not stored\n"
    )
    return 1


def _telemetry(config: ServerConfig, inbox: Intake) -> "Telemetry | None":
    """Return what the configuration wants measured; the exporter is only loaded when it is wanted."""
    if not config.metrics.port:
        return None
    from fedfleet.fleet_server.telemetry import Telemetry

    return Telemetry(
        config.data_dir, config.regions, waiting=lambda: len(inbox), overflows=lambda: inbox.overflows
    )


class _Unseen:
    """In the place of `Telemetry` when nobody wants to see anything."""

    def received(self, events: Sequence[Event]) -> None:
        """Take no notice."""

    def writable(self, *, is_writable: bool) -> None:
        """Take no notice."""


def _serve(
    server: Server,
    inbox: Intake,
    stop: _Stop,
    *,
    commit: GroupCommitConfig,
    seen: "tuple[Heart, Telemetry | _Unseen]",
) -> None:
    heart, telemetry = seen
    gc.collect()
    gc.freeze()  # what is here by now stays: the collector need not look at it again and again
    due, is_failing = time.monotonic(), False
    while not stop.asked:
        events = [] if server.backlog else _collect(inbox, commit, until=due)
        telemetry.received(events)
        heart.note(events, time.time())
        heart.beat(time.time())
        try:
            if turned_away := inbox.turned_away():
                server.ingest.turned_away(turned_away, time.time())
            server.handle(events, time.time())
            server.ingest.tell_rest(time.time())
            if time.monotonic() >= due:
                server.tick(time.time(), time.monotonic())
                due = time.monotonic() + TICK_S
        except StoreLost:
            raise
        except StoreFailed as error:
            if not is_failing:
                told = "store cannot be written: nothing is acknowledged until it can"
                log.error(told, error=str(error))  # noqa: TRY400 - the cause is told, a trace helps nobody
            is_failing = True
            telemetry.writable(is_writable=False)
            time.sleep(RETRY_S)
        else:
            if is_failing:
                log.info("store can be written again")
                telemetry.writable(is_writable=True)
            is_failing = False


def _collect(inbox: Intake, commit: GroupCommitConfig, *, until: float) -> list[Event]:
    """Return the events of one transaction: after the first, those that follow within the wait of a group commit."""
    events = inbox.drain(commit.updates, max(0.0, until - time.monotonic()))
    last = time.monotonic() + commit.wait_ms / 1000
    count, size = _sizes(events)
    while events and (room := commit.updates - count) > 0 and len(events) < EVENTS:
        if (left := last - time.monotonic()) <= 0 or size >= BATCH_BYTES:
            break
        more = inbox.drain(room, left)
        number, bytes_ = _sizes(more)
        events, count, size = events + more, count + number, size + bytes_
    return events


def _sizes(events: Sequence[Event]) -> tuple[int, int]:
    """Return how many deliveries there are, and the bytes of their payloads."""
    sizes = [len(event.payload) for event in events if isinstance(event, Delivery)]
    return len(sizes), sum(sizes)


def _read(path: Path) -> ServerConfig:
    try:
        return ServerConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise UsageError(f"{path}: {where}: {first['msg']}") from error


def main(arguments: list[str] | None = None) -> int:
    """Run the server of ``--config-json FILE``; one line on stderr and 2 for a mistake."""
    parser = argparse.ArgumentParser(prog="python -m fedfleet.fleet_server", description=main.__doc__)
    parser.add_argument("--config-json", type=Path, required=True, help="the whole configuration, JSON")
    told = parser.parse_args(arguments)
    os.umask(0o077)  # what it keeps is for its own user, also what a library or a child process writes
    try:
        config = _read(told.config_json)
        logs.configure(config.logs, sys.stderr)
        return run(config)
    except UsageError as error:
        sys.stderr.write(f"fedfleet server: {printable(str(error))}\n")
        return 2
