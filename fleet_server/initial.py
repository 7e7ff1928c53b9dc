"""The first model: exported by a process of its own, because it needs torch and this one never loads it."""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedfleet.models import extras
from fedfleet.models.interpreter import module_command
from fedfleet.models.task import Floats
from fedfleet.protocol.errors import UsageError

__all__ = ["Export", "export_command", "prepare_export"]

FILES = ("graph.onnx", "layout.json", "initial.npy")
TIMEOUT_S = 600.0
OWN = "export: "
"""How the command's own line of error begins; torch may write more around it."""


@dataclass(frozen=True, eq=False)
class Export:
    """What the export wrote: the model file with weights zeroed, its layout as JSON, the first vector f32[M]."""

    onnx: bytes
    layout_json: bytes
    vector: Floats


def export_command(task: str, *, seed: int, out: Path, head: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the command that exports a task's first model into a folder; ``head`` as in ``layout.rules``."""
    heads = [word for pattern in head for word in ("--head", pattern)]
    told = ("--task", task, "--seed", str(seed), "--out", str(out))
    return module_command("fedfleet.fleet_server.export", *told, *heads)


def prepare_export(folder: Path, command: Sequence[str], *, out: Path) -> Export:
    """Return the export of ``folder``, made by ``command`` (which writes ``out``) when it is not there yet.

    Raises UsageError with the command's own words when it fails.
    """
    if not all((folder / name).is_file() for name in FILES):
        shutil.rmtree(out, ignore_errors=True)
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        if done.returncode != 0:
            raise UsageError(f"the first model could not be exported{_words(done)}")
        if missing := [name for name in FILES if not (out / name).is_file()]:
            raise UsageError(f"the first model could not be exported: the export wrote no {missing[0]}")
        shutil.rmtree(folder, ignore_errors=True)
        out.rename(folder)
    onnx, layout_json = ((folder / name).read_bytes() for name in FILES[:2])
    vector = np.load(folder / FILES[2], allow_pickle=False)
    if vector.dtype != np.float32 or vector.ndim != 1:
        raise UsageError(f"{folder / FILES[2]}: expected float32[M], got {vector.dtype}{list(vector.shape)}")
    return Export(onnx, layout_json, vector)


def _words(done: "subprocess.CompletedProcess[str]") -> str:
    """Its own line of error; of a process that had none, its code and last lines."""
    if told := extras.explained(done.stderr):
        return f": {told}"
    lines = (done.stderr or done.stdout).strip().splitlines()
    own = [line.removeprefix(OWN) for line in lines if line.startswith(OWN)]
    return f": {own[-1]}" if own else f" (exit code {done.returncode}): {' | '.join(lines[-3:])}"
