"""Trains on the server's root set: `python -P -m fedfleet.fleet_server.root --task T --data DIR --base F --out F …`.

A process of its own, because it needs torch and the server never loads it. It ends when the delta is written, and
with its parent.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from fedfleet.models import prepared
from fedfleet.models import task as tasks
from fedfleet.models.settings import TrainSettings
from fedfleet.models.training import TrainingError, fine_tune
from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.printable import printable

__all__ = ["main"]

PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, and write the delta float32[M] to --out, whole or not at all; 2 and one line on stderr when it fails."""
    parser = argparse.ArgumentParser(prog="fedfleet.fleet_server.root", description="Train on the root set.")
    parser.add_argument("--task", required=True, help="name of an installed task, or module:ATTRIBUTE")
    parser.add_argument("--data", type=Path, required=True, help="prepared folder with a train part")
    parser.add_argument("--base", type=Path, required=True, help=".npy of float32[M] to start from")
    parser.add_argument("--settings", default="{}", help="training settings as JSON")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help=".npy to write")
    parser.add_argument("--parent", type=int, default=0, help="process id of the server, to end with it")
    given = parser.parse_args(arguments)
    if given.parent:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != given.parent:
            return 2
    try:
        task = tasks.load(given.task)
        prepared.check(prepared.open_meta(given.data), task)
        settings = TrainSettings.model_validate(json.loads(given.settings))
        base = np.load(given.base, allow_pickle=False)
        delta = fine_tune(task, base, prepared.open(given.data, "train"), settings, seed=given.seed).delta
        fresh = given.out.with_suffix(".new.npy")
        np.save(fresh, delta, allow_pickle=False)
        fresh.replace(given.out)
    except (UsageError, TrainingError, ValidationError, OSError, ValueError) as error:
        sys.stderr.write(f"root set: {printable(' '.join(str(error).split()))}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
