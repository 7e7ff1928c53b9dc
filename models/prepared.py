"""Prepared data: a folder of plain `.npy` arrays that a vehicle or the server maps into memory.

Holds the folder's format, both ways. `meta.json` names the task, the drives and the counts; each part has
`<part>_inputs.npy`, `<part>_targets.npy`, `<part>_judged.npy`, of held-out parts also `<part>_trait_<name>.npy`;
`frames` has inputs, offsets and sample.
numpy and pydantic only: the agent and the server read it without pyarrow.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedfleet.models.task import Frames, Samples, Task
from fedfleet.protocol.errors import UsageError

__all__ = ["PARTS", "Meta", "Part", "check", "open", "open_frames", "open_meta", "write"]

Part = Literal["train", "validation", "test", "frames"]
PARTS: Final[tuple[Part, ...]] = ("train", "validation", "test", "frames")
Count = Annotated[int, Field(ge=0)]


class Meta(BaseModel):
    """What a prepared folder holds.

    `counts` has `<part>_samples` and `<part>_judged`, or `frames` and `frames_inputs`; `problems` counts what
    was left out, by reason: over the source folder where the task's index counts it, else over these drives.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    task: str
    task_version: int
    drives: tuple[str, ...]
    parts: tuple[Part, ...]
    counts: Mapping[str, Count]
    problems: Mapping[str, Count]
    rate_hz: Annotated[float, Field(gt=0)] | None = None
    """Frames per second; None without the part `frames`."""


def open_meta(folder: Path) -> Meta:
    """What `folder` says of itself; UsageError when it is not a prepared folder."""
    path = folder / "meta.json"
    try:
        return Meta.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{folder}: not a folder of prepared data: {path.name}: {error.strerror}") from error
    except ValidationError as error:
        raise UsageError(f"{path}: malformed: {error.errors(include_url=False)[0]['msg']}") from error


def check(meta: Meta, task: Task) -> None:
    """UsageError unless the folder was prepared for this task in this version."""
    if (meta.task, meta.task_version) != (task.name, task.version):
        got = f"{meta.task} version {meta.task_version}"
        raise UsageError(f"prepared data: expected task {task.name} version {task.version}, got {got}")


def open(folder: Path, part: Part) -> Samples:  # noqa: A001 - called as prepared.open
    """The samples of one part, mapped into memory; UsageError when they are absent or malformed."""
    inputs = _load(folder, f"{part}_inputs", np.float32, np.uint8)
    targets = _load(folder, f"{part}_targets", np.float32)
    judged = _load(folder, f"{part}_judged", np.bool_)
    names = sorted(path.stem for path in folder.glob(f"{part}_trait_*.npy"))
    traits = {name.removeprefix(f"{part}_trait_"): _load(folder, name) for name in names}
    try:
        return Samples(inputs, targets, judged, traits=traits)
    except ValueError as error:
        raise UsageError(f"{folder}: part {part}: {error}") from error


def open_frames(folder: Path) -> Frames:
    """The frames, mapped into memory; UsageError when they are absent or malformed."""
    rate_hz = open_meta(folder).rate_hz
    inputs = _load(folder, "frames_inputs", np.float32, np.uint8)
    offsets = _load(folder, "frames_offsets", np.int64)
    sample = _load(folder, "frames_sample", np.int64)
    steps = np.diff(offsets)
    if rate_hz is None or len(sample) != len(inputs):
        raise UsageError(f"{folder}: part frames: {len(inputs)} inputs, {len(sample)} samples, {rate_hz} Hz")
    if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(inputs) or np.any(steps < 0):
        raise UsageError(f"{folder}: part frames: offsets do not run from 0 to {len(inputs)}")
    return Frames(inputs, offsets, sample, rate_hz)


def write(folder: Path, meta: Meta, *, samples: Mapping[Part, Samples], frames: Frames | None = None) -> None:
    """Write a prepared folder beside its place, flush it, then move it there; an older folder is replaced.

    A process killed in between leaves the older folder, none, or the complete new one under its name.
    """
    temporary, old = (folder.with_name(f".{folder.name}.{end}") for end in ("new", "old"))
    for each in (temporary, old):
        shutil.rmtree(each, ignore_errors=True)
    temporary.mkdir(parents=True)
    for part, one in samples.items():
        _save(temporary, part, {"inputs": one.inputs, "targets": one.targets, "judged": one.judged})
        if part != "train":  # who trains asks for no slices
            _save(temporary, f"{part}_trait", one.traits)
    if frames is not None:
        arrays: dict[str, NDArray[Any]] = {
            "inputs": frames.inputs,
            "offsets": frames.offsets,
            "sample": frames.sample,
        }
        _save(temporary, "frames", arrays)
    with (temporary / "meta.json").open("wb") as file:
        file.write(meta.model_dump_json().encode())
        file.flush()
        os.fsync(file.fileno())
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _save(folder: Path, part: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    for name, array in arrays.items():
        with (folder / f"{part}_{name}.npy").open("wb") as file:
            np.save(file, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())


def _load(folder: Path, name: str, *dtypes: type[np.generic]) -> NDArray[Any]:
    path = folder / f"{name}.npy"
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise UsageError(f"{path}: not a .npy file: {error}") from error
    if (dtypes and array.dtype not in dtypes) or array.ndim < 1:
        expected = " or ".join(str(np.dtype(dtype)) for dtype in dtypes)
        raise UsageError(f"{path}: expected {expected}, got {array.dtype}{list(array.shape)}")
    return array
