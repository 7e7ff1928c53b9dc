"""Processes that a test or a benchmark starts: each with its log, none left behind."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

__all__ = ["Processes"]

STOP_TIMEOUT_S = 5.0


class Processes:
    """Starts processes, each leading its own process group, and leaves none behind.

    Output goes to a file each (`log`), so that no full pipe stops a process.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[subprocess.Popen[bytes]] = []
        self._logs: dict[int, Path] = {}

    def start(
        self, command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a command; `env` is added to this process's environment."""
        log = self._folder / f"process-{len(self._started)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                cwd=cwd,
                process_group=0,
            )
        self._started.append(process)
        self._logs[process.pid] = log
        return process

    def log(self, process: subprocess.Popen[bytes]) -> str:
        """What this process has written so far, stdout and stderr together."""
        return self._logs[process.pid].read_text(encoding="utf-8", errors="replace")

    def stop(self) -> None:
        """End all that still run: SIGTERM, then SIGKILL for each group, whose leader may already be gone."""
        for process in self._started:
            if process.poll() is None:
                process.terminate()
        for process in self._started:
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(STOP_TIMEOUT_S)
