"""One trainer process as its parent sees it: what it said, what it uses, whether it may still be signalled."""

import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from fedfleet.vehicle_agent.jobs import Job, Order
from fedfleet.vehicle_agent.scheduling import Scheduling, apply

__all__ = ["MAX_LINE_BYTES", "Signals", "TrainerHandle", "rss_bytes", "spawn"]

MAX_LINE_BYTES = 65_536
STOP_S = 5.0
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Signals:
    """Stops and continues process groups from any thread, never one whose leader was waited for already."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._live: set[int] = set()
        self.stopped = False

    def add(self, pid: int) -> None:
        """Signal this group from now on; at once, when all are stopped."""
        with self._lock:
            self._live.add(pid)
            if self.stopped:
                _signal(pid, signal.SIGSTOP)

    def remove(self, pid: int) -> None:
        """Let the group go on, and signal it no more. Before its leader is waited for."""
        with self._lock:
            if pid in self._live:
                self._live.remove(pid)
                _signal(pid, signal.SIGCONT)

    def set(self, *, stopped: bool) -> None:
        """Stop all, or let all go on."""
        with self._lock:
            self.stopped = stopped
            for pid in self._live:
                _signal(pid, signal.SIGSTOP if stopped else signal.SIGCONT)


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, number)


@dataclass
class TrainerHandle:
    """``heard_s`` is when it last said something, or was given a job; ``verdict`` why it was killed."""

    process: "subprocess.Popen[bytes]"
    signals: Signals
    job: Job | None = None
    is_ready: bool = False
    buffer: bytearray = field(default_factory=bytearray)
    idle_since_s: float = 0.0
    heard_s: float = 0.0
    kill_at_s: float | None = None
    verdict: str = ""

    @property
    def pid(self) -> int:
        """The process id, also of its group."""
        return self.process.pid

    @property
    def is_gone(self) -> bool:
        """Whether it has ended. Then it is signalled no more."""
        if self.process.returncode is None:
            # Looked at without reaping first: a number that was reaped may be another process's.
            flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
            if os.waitid(os.P_PID, self.pid, flags) is None:
                return False
            self.signals.remove(self.pid)
        return self.process.poll() is not None

    def send(self, order: Order) -> bool:
        """Send an order; False when it does not take it."""
        try:
            os.write(self.process.stdin.fileno(), order.model_dump_json().encode() + b"\n")  # type: ignore[union-attr]
        except OSError:  # it is gone, or does not read: poll finds out
            return False
        return True

    def lines(self) -> list[bytes]:
        """Return the whole lines that it wrote since the last call."""
        with suppress(BlockingIOError):
            while data := os.read(self.process.stdout.fileno(), MAX_LINE_BYTES):  # type: ignore[union-attr]
                self.buffer += data
        *whole, rest = bytes(self.buffer).split(b"\n")
        self.buffer[:] = rest[:MAX_LINE_BYTES]
        return whole

    def kill(self, verdict: str = "") -> None:
        """Kill it, stopped or not; ``verdict`` is the reason that its job fails for."""
        self.verdict = self.verdict or verdict
        if self.process.returncode is None:
            self.process.kill()

    def end(self) -> None:
        """Ask it to end by closing its stdin; it hears that only when it is not stopped."""
        if self.process.returncode is None:
            self.signals.remove(self.pid)
        with suppress(OSError):
            self.process.stdin.close()  # type: ignore[union-attr]

    def close(self) -> None:
        """See it end, killed if it must be."""
        self.end()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()  # type: ignore[union-attr]


def spawn(command: Sequence[str], signals: Signals, scheduling: Scheduling) -> TrainerHandle:
    """Start a trainer in a group of its own (not a session: autogrouping would set its nice value aside)."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **ONE_THREAD},
        bufsize=0,
        process_group=0,
    )
    apply(process.pid, scheduling)
    os.set_blocking(process.stdout.fileno(), False)  # type: ignore[union-attr]
    os.set_blocking(process.stdin.fileno(), False)  # type: ignore[union-attr]
    signals.add(process.pid)
    return TrainerHandle(process, signals)


def rss_bytes(pid: int) -> int:
    """Return the resident memory of a process; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0
