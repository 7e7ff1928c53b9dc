"""The server's own update on its root set (rule fltrust), made by a process that the server never waits for."""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import numpy as np

from fedfleet.fleet_server.rules import VoidError
from fedfleet.models.interpreter import module_command
from fedfleet.models.task import Floats
from fedfleet.protocol.messages import Setting

__all__ = ["RootTrainer", "Roots", "root_command"]


class Roots(Protocol):
    """Gives the server's own updates."""

    def update(
        self, vector: Floats, settings: Mapping[str, Setting], *, version: int, round_: int
    ) -> Floats | None:
        """Return the delta f32[M] from a published vector, None while it is not there; VoidError when it failed."""

    def close(self) -> None:
        """End what is under way."""


def root_command(task: str, data: Path) -> tuple[str, ...]:
    """Return the command line of our own process, without what differs by version."""
    module = "fedfleet.fleet_server.root"
    fixed = ("--task", task, "--data", str(data), "--parent", str(os.getpid()))
    return module_command(module, *fixed)


@dataclass
class RootTrainer:
    """One root training at a time, in ``folder``; its result stays, and every region of a round folds with the same.

    The round is the seed: a server that was killed trains again to the same bytes. Used from the process's main
    thread only: the kernel ends the training with the thread that started it.
    """

    command: Sequence[str]
    folder: Path
    _key: str = ""
    _process: "subprocess.Popen[bytes] | None" = None
    _words: IO[bytes] | None = None
    _found: Floats | None = None
    _failed: str = ""

    def update(
        self, vector: Floats, settings: Mapping[str, Setting], *, version: int, round_: int
    ) -> Floats | None:
        """Return the delta f32[M] from a published vector, None while it is not there; VoidError when it failed."""
        told = json.dumps(dict(settings), sort_keys=True)
        key = f"{version}:{round_}:{told}"
        if self._key != key:
            self.close()
            self._start(vector, told, key=key, seed=round_)
        if self._failed:
            raise VoidError(self._failed)
        if self._found is not None or self._process is None:
            return self._found
        code = self._process.poll()
        if code is None:
            return None
        self._process = None
        if code != 0:
            self._failed = f"fltrust: the root training failed (exit code {code}): {self._said()}"
            raise VoidError(self._failed)
        self._found = np.load(self.folder / "delta.npy", allow_pickle=False)
        return self._found

    def close(self) -> None:
        """End what is under way."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._words is not None:
            self._words.close()
            self._words = None

    def _start(self, vector: Floats, settings: str, *, key: str, seed: int) -> None:
        self._key, self._found, self._failed = key, None, ""
        try:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True, mode=0o700)
            np.save(self.folder / "base.npy", vector, allow_pickle=False)
            self._words = (self.folder / "words.txt").open("w+b")
            files = ("--base", str(self.folder / "base.npy"), "--out", str(self.folder / "delta.npy"))
            command = [*self.command, *files, "--settings", settings, "--seed", str(seed)]
            self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=self._words)
        except OSError as error:
            self._failed = f"fltrust: the root training cannot start: {error}"

    def _said(self) -> str:
        if self._words is None:
            return ""
        self._words.seek(0)
        lines = self._words.read(100_000).decode(errors="replace").strip().splitlines()
        return " | ".join(lines[-2:])[:200]
