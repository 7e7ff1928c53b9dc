"""Task `camera_steering`: from one image of a small car's front camera to the angle at which its driver steered.

Specification, samples and metrics, in numpy. The network (PilotNet, Bojarski et al. 2016) is in
`nets_camera_steering`; recordings are Donkey tubs and camera bags, read by `scenarios.donkey`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedfleet.models.slices_camera_steering import SLICES
from fedfleet.models.task import (
    Floats,
    Frames,
    Index,
    Metric,
    Numbers,
    Samples,
    Slicer,
    Specification,
    Sums,
)
from fedfleet.protocol.errors import UsageError
from fedfleet.scenarios.donkey import Block, Shots, open_camera, open_tubs, shots
from fedfleet.scenarios.donkey_blocks import DEFAULT_RATE_HZ

__all__ = ["COLUMNS", "ROWS", "SAMPLE_HZ", "TASK", "CameraSteering", "sampled"]

ROWS: Final = 66
COLUMNS: Final = 200
SAMPLE_HZ: Final = 10.0
"""Samples a second, every second frame at 20 Hz: neighbours are nearly equal and teach the same."""

SPECIFICATION: Final = Specification("image", (3, ROWS, COLUMNS), "angle", (1,))


def root_mean_square(means: Mapping[str, float]) -> float:
    """RMSE from the mean of the squares."""
    return math.sqrt(means["squared_error"])


def correlation(means: Mapping[str, float]) -> float:
    """Pearson's r of driven and predicted angle, from the means of both, of their squares and of their product.

    NaN where one of them is constant.
    """
    driven, predicted = means["driven"], means["predicted"]
    spread = (means["driven_squared"] - driven**2) * (means["predicted_squared"] - predicted**2)
    return (means["product"] - driven * predicted) / math.sqrt(spread) if spread > 1e-18 else math.nan


@dataclass(frozen=True)
class CameraSteering:
    """The task; see `models.task.Task` for what each member promises."""

    name: str = "camera_steering"
    version: int = 1
    specification: Specification = SPECIFICATION
    metrics: tuple[Metric, ...] = (
        Metric("MAE", "of full lock", "lower"),
        Metric("RMSE", "of full lock", "lower", root_mean_square),
        Metric("correlation", "", "higher", correlation),
    )
    network: str = "fedfleet.models.nets_camera_steering:network"
    loss: str = "fedfleet.models.nets_camera_steering:loss"
    plot: str = "fedfleet.models.plot_camera_steering:draw"
    augment: str = "fedfleet.models.augment_camera_steering:augment"
    noun: str = "frames"
    trivial: str = "angle 0"

    @property
    def suits(self) -> Mapping[str, Mapping[str, object]]:
        """Settings that learn from images; docs/benchmarks.md tells how they were found.

        In both every vehicle, however little it recorded, takes as many steps as any other, and weighs as much from
        100 frames on (`server`) or always (`compare`).
        `server` learns something in few rounds of many steps, with small updates; `compare` as much as there is to
        learn, in many rounds of one step. Where nearly all is straight ahead, the
        score of a place is mostly chance: a release must be no worse over all places, and nowhere worse than the first.
        """
        vehicle = {"optimizer": "adam", "batch_size": 8, "learning_rate": 5e-4, "augment": "mirror-shift"}
        alone = {**vehicle, "batch_size": 16, "schedule": "cosine"}
        server = {
            "training": {**vehicle, "epochs": 40, "max_steps": 40},
            "strategy": {"server_learning_rate": 1.0},
            "codec": {"value": "int8", "density": 0.04},
            "downlink": {"density": 0.25},
            "example_cap": 100,
            "release_policy": "better-overall",
        }
        federated = {
            "training": {
                **vehicle,
                "optimizer": "sgd",
                "momentum": 0.0,
                "learning_rate": 0.1,
                "batch_size": 16,
            },
            "learning_rate_schedule": "constant",
            "strategy": {"name": "fedadam", "server_learning_rate": 1e-3, "tau": 1e-5, "cooldown": 1.0},
            "codec": {"value": "int8", "density": 0.5},
            "downlink": {"density": 0.5},
            "gate": {"tolerance": 0.3},
        }
        arms = {"centralised": alone, "on_site": alone, "federated": federated}
        rounds = {"epochs": 40, "local_steps": 1}
        return {"server": server, "demo": {"rounds": 30}, "compare": {**rounds, **arms}}

    @property
    def slices(self) -> Mapping[str, Slicer]:
        """Direction of steering, and light."""
        return SLICES

    def index(self, folder: Path) -> Index:
        """List the blocks of consecutive frames of every car; images are not looked at."""
        opened = open_camera(folder)
        drives = tuple(block.drive for block in opened.blocks.values())
        return Index(drives, {}, is_counted=False, account=opened.account)

    def samples(self, folder: Path, drives: Sequence[str]) -> Samples:
        """Ten sound frames a second, all of them judged; the images stay uint8 until the network takes them."""
        problems: Counter[str] = Counter()
        inputs: list[NDArray[np.uint8]] = [np.empty((0, *SPECIFICATION.input_shape), dtype=np.uint8)]
        targets: list[Floats] = [np.empty((0, 1), dtype=np.float32)]
        keys: list[NDArray[np.str_]] = [np.empty(0, dtype="<U1")]
        for block in _blocks(folder, drives):
            seen = _shots(block)
            problems += seen.problems
            rows = sampled(seen)
            keys.append(np.full(len(rows), block.drive.key))
            inputs.append(seen.images[rows])
            targets.append(seen.angles[rows, None].astype(np.float32))
        images, angles = np.concatenate(inputs), np.concatenate(targets)
        judged, left_out = np.ones(len(angles), dtype=np.bool_), dict(sorted(problems.items()))
        return Samples(images, angles, judged, left_out, {"drive": np.concatenate(keys)})

    def frames(self, folder: Path, drives: Sequence[str]) -> Frames:
        """Every readable frame, at the cameras' rate; of several rates, at the one that most drives have."""
        inputs: list[NDArray[np.uint8]] = [np.empty((0, *SPECIFICATION.input_shape), dtype=np.uint8)]
        sample = [np.empty(0, dtype=np.int64)]
        rates: Counter[float] = Counter()
        count = 0
        for block in _blocks(folder, drives):
            seen = _shots(block)
            rows = sampled(seen)
            truth = np.full(len(seen.images), -1, dtype=np.int64)
            truth[rows] = np.arange(count, count + len(rows))
            count += len(rows)
            inputs.append(seen.images)
            sample.append(truth)
            rates[seen.rate_hz] += 1
        known = np.concatenate(sample)
        rate_hz = rates.most_common(1)[0][0] if rates else DEFAULT_RATE_HZ
        return Frames(np.concatenate(inputs), np.arange(len(known) + 1), known, rate_hz)

    def score(self, outputs: Floats, samples: Samples) -> Sums:
        """Sums from which MAE, RMSE and correlation come."""
        judged = np.asarray(samples.judged)
        return _sums(outputs[judged], samples.targets[judged])

    def score_all(self, outputs: Floats, samples: Samples) -> Sums:
        """The same: every sample is judged."""
        return _sums(outputs, samples.targets)

    def baseline(self, inputs: Numbers) -> Floats:
        """Straight ahead."""
        return np.zeros((len(inputs), 1), dtype=np.float32)


TASK: Final = CameraSteering()


def _blocks(folder: Path, drives: Sequence[str]) -> list[Block]:
    known = open_tubs(folder)
    unknown = sorted(set(drives) - set(known))
    if unknown:
        some = ", ".join([*known][:5])
        raise UsageError(f"{folder}: no drive {unknown[0]}: expected one of {some}")
    return [known[key] for key in sorted(set(drives))]


def _shots(block: Block) -> Shots:
    return shots(block, rows=ROWS, columns=COLUMNS)


def sampled(seen: Shots) -> NDArray[np.int64]:
    """The frames of a block that are samples."""
    return np.flatnonzero(seen.labelled)[:: max(1, round(seen.rate_hz / SAMPLE_HZ))]


def _sums(outputs: Floats, targets: Floats) -> Sums:
    predicted, driven = outputs[:, 0].astype(np.float64), targets[:, 0].astype(np.float64)
    off = predicted - driven
    each = {
        "MAE": np.abs(off),
        "squared_error": off**2,
        "driven": driven,
        "predicted": predicted,
        "driven_squared": driven**2,
        "predicted_squared": predicted**2,
        "product": driven * predicted,
    }
    return {name: (float(values.sum()), len(values)) for name, values in each.items()}
