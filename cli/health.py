"""Who is alive: the server by its sign of life, the broker by asking it, the vehicles by their statuses."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedfleet.cli.tables import ago, moment
from fedfleet.fleet_server import heartbeat
from fedfleet.fleet_server.heartbeat import Life
from fedfleet.link.config import BrokerConfig
from fedfleet.link.options import options_for
from fedfleet.link.probe import check
from fedfleet.protocol.errors import UsageError

__all__ = ["Health", "Watch", "broker_words", "server_words", "vehicles_words"]

_ANSWER_S = 2.0
_AGAIN_S = 5.0


@dataclass(frozen=True)
class Health:
    """Server and broker at one moment. ``broker_error`` is empty when the broker takes us."""

    server: Life
    broker: str
    broker_error: str

    @property
    def is_well(self) -> bool:
        """Tell whether the server is at work and connected, and the broker answers."""
        return self.server.is_alive and self.server.broker and not self.broker_error

    def as_json(self) -> Mapping[str, Any]:
        """Return the fields for programs."""
        broker = {"address": self.broker, "answers": not self.broker_error, "error": self.broker_error}
        return {"well": self.is_well, "server": self.server.as_json(), "broker": broker}


class Watch:
    """Looks at the health of a fleet again and again; asks the broker at most once in a few seconds."""

    def __init__(self, data_dir: Path, broker: BrokerConfig) -> None:
        self._data_dir, self._broker = data_dir, broker
        self._asked_s = float("-inf")
        self._error = ""

    def look(self, now_s: float) -> Health:
        """Return how things are now."""
        broker = self._broker
        if time.monotonic() - self._asked_s >= _AGAIN_S:
            self._error = _ask(broker)
            self._asked_s = time.monotonic()
        return Health(
            heartbeat.life(self._data_dir, now_s), f"{broker.host}:{broker.port}", broker_error=self._error
        )


def _ask(broker: BrokerConfig) -> str:
    """Return why a broker does not take us; empty when it does."""
    try:
        greets = broker.cert_file is None  # else it would take the connection of the server that runs
        check(broker.host, broker.port, timeout_s=_ANSWER_S, options=options_for(broker), greets=greets)
    except UsageError as error:
        told = str(error).partition(" refuses: ")
        return told[2] or told[0]
    return ""


def server_words(server: Life, now_s: float) -> str:
    """Return in words how the server is and since when."""
    heard = f"last heard of {ago(server.seen_at_s, now_s)} ago, {moment(server.seen_at_s)} UTC"
    match server.state:
        case "running":
            return f"server up for {ago(server.started_at_s, now_s)}"
        case "hanging":
            return f"server HANGS or does a long step: process {server.pid} lives, {heard}"
        case "gone":
            return f"server is DEAD: process {server.pid} is gone without a goodbye, {heard}"
        case "silent":
            return f"server is SILENT: {heard}, on machine {server.host}"
        case "stopped":
            why = f": {server.why}" if server.why else ""
            return f"server STOPPED {ago(server.stopped_at_s, now_s)} ago{why}"
        case _:
            return "server: no sign of life is kept here (an older server, or one on another machine)"


def broker_words(health: Health, now_s: float) -> str:
    """Return in words whether the broker answers, and whether the server has it."""
    if health.broker_error:
        return f"broker {health.broker} does NOT ANSWER: {health.broker_error}"
    if health.server.is_alive and not health.server.broker:
        since = f" for {ago(health.server.broker_since_s, now_s)}" if health.server.broker_since_s else ""
        return f"broker {health.broker} answers, but the server is NOT CONNECTED{since}"
    return "broker answers"


def vehicles_words(health: Health, *, online: int, enrolled: int) -> str:
    """Return how many vehicles are there; what a dead server or broker last knew is said to be old."""
    if health.is_well:
        return f"{online} of {enrolled} vehicles online"
    return f"{online} of {enrolled} vehicles were online when the server last heard of them"
