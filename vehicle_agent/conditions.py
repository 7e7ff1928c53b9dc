"""Conditions from a program that runs beside the agent, such as a databroker's client (``kuksa.py``).

It writes JSON objects, one a line: the signals that changed, ``null`` for one that is not known any more. What it does
not tell in time, and all when it ends, is missing; a missing signal permits nothing. It is started again, with a pause.
"""

import json
import math
import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress

from pydantic import TypeAdapter

from fedfleet.vehicle_agent.eligibility import Signal, fresh

__all__ = ["Program", "read_line"]

MAX_LINE_BYTES = 65_536
MOST_SIGNALS = 1000
PAUSE_S = 1.0
PAUSE_CAP_S = 60.0
STOP_S = 2.0
_ADAPTER: TypeAdapter[dict[str, Signal | None]] = TypeAdapter(dict[str, Signal | None])


def read_line(line: bytes) -> dict[str, Signal | None]:
    """Return what a line tells; ValueError for anything else, a number that is not finite too."""
    try:
        told = _ADAPTER.validate_python(json.loads(line))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"conditions: {line[:80]!r}: expected a JSON object of signals") from error
    if any(isinstance(value, float) and not math.isfinite(value) for value in told.values()):
        raise ValueError(f"conditions: {line[:80]!r}: a number is not finite")
    return told


class Program:
    """Signals as a program tells them. Its environment names the vehicle (``FEDFLEET_VEHICLE``)."""

    def __init__(self, command: Sequence[str], *, vehicle: str, stale_s: float | None) -> None:
        self._command, self._vehicle, self._stale_s = tuple(command), vehicle, stale_s
        self._process: subprocess.Popen[bytes] | None = None
        self._known: dict[str, tuple[float, Signal]] = {}
        self._buffer = bytearray()
        self._start_at_s = -math.inf
        self._ends = 0

    @property
    def pid(self) -> int | None:
        """The process id of the program, when it runs."""
        return None if self._process is None else self._process.pid

    def at(self, scenario_s: float) -> Mapping[str, Signal]:
        """Return what was told last; starts the program when it does not run. Never waits."""
        if self._process is None and scenario_s >= self._start_at_s:
            self._start(scenario_s)
        if self._process is not None:
            self._read(self._process, scenario_s)
        return fresh(self._known, scenario_s, self._stale_s)

    def close(self) -> None:
        """End the program."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()  # type: ignore[union-attr]

    def _start(self, scenario_s: float) -> None:
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                bufsize=0,
                env={**os.environ, "FEDFLEET_VEHICLE": self._vehicle},
            )
        except OSError:
            self._gone(scenario_s)
            return
        os.set_blocking(self._process.stdout.fileno(), False)  # type: ignore[union-attr]

    def _read(self, process: "subprocess.Popen[bytes]", scenario_s: float) -> None:
        ended = process.poll() is not None
        with suppress(BlockingIOError):
            while data := os.read(process.stdout.fileno(), MAX_LINE_BYTES):  # type: ignore[union-attr]
                self._buffer += data
                if len(self._buffer) > 16 * MAX_LINE_BYTES:
                    break
        *lines, rest = bytes(self._buffer).split(b"\n")
        self._buffer[:] = rest
        try:
            for line in filter(bytes.strip, lines):
                self._take(line, scenario_s)
        except ValueError:
            ended = True  # not the language that was agreed on: it is broken
        if ended or len(rest) > MAX_LINE_BYTES:
            self.close()
            self._gone(scenario_s)

    def _take(self, line: bytes, scenario_s: float) -> None:
        self._ends = 0
        for name, value in read_line(line).items():
            if value is None:
                self._known.pop(name, None)
            elif name in self._known or len(self._known) < MOST_SIGNALS:
                self._known[name] = (scenario_s, value)

    def _gone(self, scenario_s: float) -> None:
        self._known.clear()
        self._buffer.clear()
        self._start_at_s = scenario_s + min(PAUSE_CAP_S, PAUSE_S * 2.0 ** min(self._ends, 10))
        self._ends += 1
