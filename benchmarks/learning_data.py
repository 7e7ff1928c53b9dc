"""What the runs of `learning.py` share: a split of the recordings, how a vector is judged, centralised training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fedfleet.models.settings import TrainSettings
from fedfleet.models.task import Floats, Samples, load
from fedfleet.models.training import FineTuning, load_vector, network, vector
from fedfleet.scenarios.partition import partition

TASK = load("motion_forecast")


@dataclass(frozen=True, eq=False)
class Split:
    """Whole drives dealt out by a seed: each vehicle's region and samples, validation and test, the first vector."""

    vehicles: Mapping[str, tuple[str, Samples]]
    validation: Samples
    test: Samples
    first: Floats
    sha256: str


@cache
def split(folder: Path, *, vehicles: int, seed: int) -> Split:
    """Read the split of this seed; the first vector is the network's of the same seed."""
    parts = partition(TASK.index(folder).drives, vehicles=vehicles, seed=seed)
    own = {name: (region, TASK.samples(folder, drives)) for name, (region, drives) in parts.vehicles.items()}
    validation, test = (
        together([TASK.samples(folder, drives) for _, drives in sorted(part.items())])
        for part in (parts.validation, parts.test)
    )
    digest = sha256()
    for samples in (*(one for _, one in own.values()), validation, test):
        digest.update(np.ascontiguousarray(samples.inputs).tobytes())
    return Split(own, validation, test, vector(network(TASK, seed=seed)), digest.hexdigest())


def together(parts: list[Samples]) -> Samples:
    """Return all samples as one set."""
    arrays = [
        np.concatenate([getattr(part, name) for part in parts]) for name in ("inputs", "targets", "judged")
    ]
    return Samples(*arrays)


def ade(x: Floats, samples: Samples) -> float:
    """The ADE in metres of the vector's model over the judged samples."""
    model = _model()
    load_vector(model, x)
    judged = np.asarray(samples.judged)
    with torch.no_grad():
        outputs = model(torch.from_numpy(np.array(samples.inputs[judged]))).numpy()
    total, count = TASK.score_all(
        outputs, Samples(samples.inputs[judged], samples.targets[judged], samples.judged[judged])
    )["ADE"]
    return total / count


@cache
def _model() -> nn.Module:
    return network(TASK, seed=0).eval()


def centralised(data: Split, *, learning_rate: float, passes: int, seed: int) -> Floats:
    """Train on all vehicles' samples as one set, the rate on a cosine; return the vector at its end.

    No pass is picked by validation: its best of so many noisy values would be a target that luck made.
    """
    settings = TrainSettings(
        batch_size=128, learning_rate=learning_rate, schedule="cosine", augment="mirror", epochs=passes
    )
    tuning = FineTuning(
        TASK, data.first, together([one for _, one in data.vehicles.values()]), settings, seed=seed
    )
    while tuning.advance() is not None:
        pass
    return tuning.weights
