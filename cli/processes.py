"""Child processes of a command: each by its own process id, each with its log file, none left behind."""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

from fedfleet.models import extras
from fedfleet.models.interpreter import module_command
from fedfleet.protocol.errors import UsageError

__all__ = ["Child", "run", "start"]

_THREADS = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
}
_LAST_LINES = 5


@dataclass(frozen=True)
class Child:
    """A running child process and where its output goes."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    def is_running(self) -> bool:
        """Tell whether it still runs."""
        return self.process.poll() is None

    def kill(self) -> int:
        """Kill -9 and reap; return the exit status as Python gives it (-9)."""
        self.process.send_signal(signal.SIGKILL)
        return self.process.wait()

    def stop(self, *, timeout_s: float = 10.0) -> int:
        """Ask it to end (SIGTERM), kill it when it does not within the time; return its exit status."""
        if self.is_running():
            self.process.terminate()
            try:
                return self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                return self.kill()
        return self.process.wait()

    def last_words(self) -> str:
        """Return the last lines of its log, for an error message."""
        lines = self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        return " | ".join(lines[-_LAST_LINES:]) or "no output"


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return our environment with numeric libraries held to one thread each."""
    return {**os.environ, **_THREADS, **(extra or {})}


def start(name: str, module: str, arguments: Sequence[str], *, log_dir: Path) -> Child:
    """Start ``python -P -m module`` in a process group of its own: Ctrl-C reaches only who started it.

    Not in a session of its own: the kernel's autogrouping would then ignore that a trainer is nicer than inference.
    """
    log_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    log = log_dir / f"{name}.log"
    log.touch(mode=0o600)
    with log.open("ab") as stream:
        process = subprocess.Popen(
            module_command(module, *arguments),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment(),
            process_group=0,
        )
    return Child(name, process, log)


def run(
    module: str, arguments: Sequence[str], *, timeout_s: float, heard: Callable[[str], None] | None = None
) -> str:
    """Run ``python -P -m module`` to its end and return its standard output; UsageError with its last line otherwise.

    ``heard`` is called with each line of its standard error as it comes.
    """
    command = module_command(module, *arguments)
    last = "no message"
    is_late = threading.Event()
    with (
        TemporaryFile("w+", encoding="utf-8") as output,
        subprocess.Popen(
            command, stdout=output, stderr=subprocess.PIPE, text=True, env=environment()
        ) as process,
    ):

        def give_up() -> None:
            is_late.set()
            process.kill()

        watch = threading.Timer(timeout_s, give_up)
        watch.start()
        try:
            for line in process.stderr or ():
                last = line.strip() or last
                if heard is not None:
                    heard(line.strip())
            code = process.wait()
        except BaseException:
            process.kill()
            raise
        finally:
            watch.cancel()
        if is_late.is_set():
            raise UsageError(f"{module}: not done after {timeout_s:.0f} s")
        if code != 0:
            raise UsageError(extras.explained(last) or last)
        output.seek(0)
        return output.read()
