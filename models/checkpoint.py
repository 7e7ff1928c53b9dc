"""Where a fine-tuning was when it was interrupted: arrays in one file, written whole; no pickle (torch).

A file is only read back for the job that wrote it (``identity``); what is damaged or another job's counts as none.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

__all__ = ["Arrays", "identity", "optimizer_arrays", "read", "restore_optimizer", "write"]

Arrays = Mapping[str, NDArray[Any]]
FORMAT = 1
HEAD = "head"
MOST_BYTES = 2**31


def identity(told: Mapping[str, object], *arrays: NDArray[np.float32] | None) -> str:
    """Return what a job is, as SHA-256 (hex): JSON values and the arrays it starts from."""
    digest = sha256(json.dumps(told, sort_keys=True, default=str).encode())
    for array in arrays:
        digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def write(path: Path, arrays: Arrays, *, job: str, spent_s: float) -> None:
    """Write a checkpoint in the place of the one before: whole, flushed, or not at all. OSError when it cannot be."""
    head = json.dumps({"format": FORMAT, "job": job, "spent_s": spent_s}).encode()
    body = io.BytesIO()
    np.savez(body, allow_pickle=False, **{HEAD: np.frombuffer(head, dtype=np.uint8)}, **arrays)
    digest = sha256(body.getbuffer()).digest()
    fresh = path.with_suffix(".new")
    with fresh.open("wb") as file:
        file.write(digest)
        file.write(body.getbuffer())
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def read(path: Path, *, job: str) -> tuple[dict[str, NDArray[Any]], float] | None:
    """Return a job's arrays and the seconds it took so far; None when there is no whole file of this job."""
    try:
        if path.stat().st_size > MOST_BYTES:
            return None
        data = path.read_bytes()
        if sha256(data[32:]).digest() != data[:32]:
            return None
        with np.load(io.BytesIO(data[32:]), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        head = json.loads(arrays.pop(HEAD).tobytes())
        return (arrays, float(head["spent_s"])) if (head["format"], head["job"]) == (FORMAT, job) else None
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None


def optimizer_arrays(optimizer: torch.optim.Optimizer) -> dict[str, NDArray[Any]]:
    """Return what an optimizer remembers of each parameter (momentum, moments, steps), by place and name."""
    found = {}
    for place, parameter in enumerate(_parameters(optimizer)):
        for name, value in optimizer.state.get(parameter, {}).items():
            if value is not None:
                found[f"optimizer.{place}.{name}"] = torch.as_tensor(value).numpy().copy()
    return found


def restore_optimizer(optimizer: torch.optim.Optimizer, arrays: Arrays) -> None:
    """Let an optimizer remember what another one did; ValueError when it does not fit."""
    parameters = _parameters(optimizer)
    for key, value in arrays.items():
        kind, _, rest = key.partition(".")
        if kind != "optimizer":
            continue
        place, _, name = rest.partition(".")
        if not place.isdigit() or int(place) >= len(parameters):
            raise ValueError(f"checkpoint: no parameter {place}")
        parameter = parameters[int(place)]
        if value.shape not in {(), tuple(parameter.shape)}:
            raise ValueError(f"checkpoint: {key} is {list(value.shape)}, expected {list(parameter.shape)}")
        optimizer.state[parameter][name] = torch.from_numpy(np.array(value))


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [each for group in optimizer.param_groups for each in group["params"]]
