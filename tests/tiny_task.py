"""A task with nothing of driving in it: one number from four, 49 parameters, metric `mae`; trains in milliseconds.

A drive is a file `<region>--<drive>.npy` of float32[rows, 5]: four inputs and the target. As a task: `tiny_task:TASK`,
with this folder on PYTHONPATH.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedfleet.models.task import Drive, Floats, Frames, Index, Metric, Samples, Specification, Sums
from fedfleet.protocol.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

RATE_HZ = 10.0


class TinyTask:
    name = "tiny"
    version = 3
    specification = Specification("numbers", (4,), "number", (1,))
    metrics = (Metric("mae", "u", "lower"), Metric("close", "share", "higher"))
    network = "tiny_task:network"
    loss = "tiny_task:loss"

    def index(self, folder: Path) -> Index:
        drives = [
            Drive(*path.stem.split("--"), recordings=1, seconds=len(rows) / RATE_HZ)
            for path, rows in _files(folder)
        ]
        return Index(tuple(drives), {"odd": 0})

    def samples(self, folder: Path, drives: Sequence[str]) -> Samples:
        rows = _rows(folder, drives)
        return Samples(rows[:, :4], rows[:, 4:], np.arange(len(rows)) % 4 != 0)

    def frames(self, folder: Path, drives: Sequence[str]) -> Frames:
        rows = _rows(folder, drives)
        return Frames(rows[:, :4], np.arange(len(rows) + 1), np.arange(len(rows)), RATE_HZ)

    def score(self, outputs: Floats, samples: Samples) -> Sums:
        judged = np.asarray(samples.judged)
        return _sums(outputs[judged], samples.targets[judged])

    def score_all(self, outputs: Floats, samples: Samples) -> Sums:
        return _sums(outputs, samples.targets)

    def baseline(self, inputs: Floats) -> Floats:
        return np.zeros((len(inputs), 1), dtype=np.float32)


class ShortRounds(TinyTask):
    """The same, compared in rounds of two batches."""

    name = "tiny-short"
    suits: Mapping[str, Mapping[str, object]] = {
        "compare": {"local_steps": 2, "federated": {"training": {"batch_size": 16, "learning_rate": 0.05}}}
    }


TASK = TinyTask()
SHORT = ShortRounds()


def generate(
    folder: Path,
    *,
    regions: Sequence[str] = ("north", "south"),
    drives: int = 6,
    rows: int = 64,
    seed: int = 0,
) -> None:
    """Write `drives` drives of each region; regions differ in the sign of one term."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = np.random.default_rng(seed)
    for number, region in enumerate(regions):
        for drive in range(drives):
            inputs = chance.normal(0, 1, (rows, 4))
            target = inputs[:, 0] + 0.5 * np.tanh(inputs[:, 1]) + 0.1 * (-1) ** number * inputs[:, 2]
            table = np.column_stack([inputs, target]).astype(np.float32)
            np.save(folder / f"{region}--drive-{drive:02d}.npy", table)


def network() -> nn.Module:
    from torch import nn

    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean()


def _files(folder: Path) -> list[tuple[Path, Floats]]:
    files = [(path, np.load(path, allow_pickle=False)) for path in sorted(folder.glob("*--*.npy"))]
    if not files:
        raise UsageError(f"{folder}: no recordings: expected <region>--<drive>.npy")
    return files


def _rows(folder: Path, drives: Sequence[str]) -> Floats:
    known = {path.stem.replace("--", "/"): rows for path, rows in _files(folder)}
    unknown = sorted(set(drives) - set(known))
    if unknown:
        raise UsageError(f"{folder}: no drive {unknown[0]}: expected one of {', '.join(known)}")
    return np.concatenate([known[key] for key in sorted(set(drives))])


def _sums(outputs: Floats, targets: Floats) -> Sums:
    off = np.abs(outputs.astype(np.float64) - targets)[:, 0]
    return {"mae": (float(off.sum()), len(off)), "close": (float((off < 0.1).sum()), len(off))}
