"""The server's sign of life: a small file beside its store, written by the server and read by anyone on its machine.

Its content changes when something changes (a start, the broker lost or found, an end); between changes a beat only
sets the file's time, so a beat costs no transaction, no sync and no space on a full disk.
"""

import json
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from fedfleet.link.port import Connected, Disconnected, Event

__all__ = ["FILE", "INTERVAL_S", "SILENT_S", "Heart", "Life", "life"]

FILE = "alive.json"
INTERVAL_S = 2.0
SILENT_S = 10.0
"""A server that was not heard of for so long is not at work."""

State = Literal["running", "hanging", "gone", "silent", "stopped", "unknown"]


class _Told(BaseModel):
    """What the file says; newer files may say more."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal[1] = 1
    pid: int
    process_start: int
    host: str
    started_at_s: float
    stopped_at_s: float | None = None
    why: str = ""
    broker: bool = False
    broker_since_s: float | None = None


@dataclass
class Heart:
    """The server's own end: ``note`` what the link brings, ``beat`` often. A folder that refuses costs nothing."""

    folder: Path
    started_at_s: float
    _broker: bool = False
    _broker_since_s: float | None = None
    _is_written: bool = False
    _beaten_s: float = float("-inf")

    def note(self, events: Sequence[Event], now_s: float) -> None:
        """Take notice of a broker that was found or lost."""
        for event in events:
            if isinstance(event, Connected | Disconnected):
                is_there = isinstance(event, Connected)
                if is_there != self._broker:
                    self._broker, self._broker_since_s = is_there, now_s
                    self._is_written = False

    def beat(self, now_s: float) -> None:
        """Tell that the server is at work, if that was not told a moment ago."""
        if not self._is_written or abs(now_s - self._beaten_s) >= INTERVAL_S:
            self._beaten_s = now_s
            self._write(now_s)

    def stop(self, now_s: float, why: str) -> None:
        """Tell that the server ends now, and why; the last beat."""
        self._is_written = False
        self._write(now_s, stopped_at_s=now_s, why=why)

    def _write(self, now_s: float, **more: Any) -> None:  # noqa: ANN401 - fields of the file
        path = self.folder / FILE
        with suppress(OSError):  # a full disk: the store tells of it, and the time can still be set
            if not self._is_written:
                fresh = path.with_name(f".{FILE}.new")
                fresh.write_text(self._told(**more).model_dump_json(), encoding="utf-8")
                fresh.replace(path)
                self._is_written = True
        with suppress(OSError):
            os.utime(path, (now_s, now_s))

    def _told(self, **more: Any) -> _Told:  # noqa: ANN401 - fields of the file
        return _Told(
            pid=os.getpid(),
            process_start=_process_start(os.getpid()),
            host=socket.gethostname(),
            started_at_s=self.started_at_s,
            broker=self._broker,
            broker_since_s=self._broker_since_s,
            **more,
        )


@dataclass(frozen=True)
class Life:
    """How a server is, as far as its file and this machine tell.

    ``running``: heard of a moment ago. ``hanging``: its process lives and says nothing. ``gone``: its process is not
    there any more, and did not say goodbye. ``silent``: nothing heard, its process is on another machine.
    ``stopped``: it ended and said so. ``unknown``: no file; an older server, or none yet.
    """

    state: State
    seen_at_s: float | None = None
    started_at_s: float | None = None
    stopped_at_s: float | None = None
    why: str = ""
    pid: int | None = None
    host: str = ""
    broker: bool = False
    broker_since_s: float | None = None

    @property
    def is_alive(self) -> bool:
        """Tell whether the server is at work."""
        return self.state == "running"

    def as_json(self) -> Mapping[str, Any]:
        """Return the fields for programs."""
        return {"alive": self.is_alive, **vars(self)}


def life(folder: Path, now_s: float) -> Life:
    """Return how the server whose store is in ``folder`` is; never raises for what the file holds."""
    path = folder / FILE
    try:
        told, seen_at_s = _Told.model_validate(json.loads(path.read_bytes())), path.stat().st_mtime
    except (OSError, ValueError, ValidationError):
        return Life("unknown")
    fields = {
        **told.model_dump(exclude={"format", "process_start", "broker"}),
        "seen_at_s": seen_at_s,
        "broker": told.broker and told.stopped_at_s is None,
    }
    if told.stopped_at_s is not None:
        return Life("stopped", **fields)
    is_here = told.host == socket.gethostname()
    if is_here and _process_start(told.pid) != told.process_start:
        return Life("gone", **fields)
    if now_s - seen_at_s <= SILENT_S:
        return Life("running", **fields)
    return Life("hanging" if is_here else "silent", **fields)


def _process_start(pid: int) -> int:
    """Return when a process began, in ticks since boot, as its number may be given again; -1 when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        fields = text.rpartition(")")[2].split()
        return -1 if fields[0] == "Z" else int(fields[19])
    except (OSError, IndexError, ValueError):
        return -1
