"""Task `hospitals`: from 30 measurements of a tumour to whether it is malignant. numpy only.

In fedfleet's words: a region is a hospital, a drive is a clinic day, a vehicle is a ward that keeps the records of its
days, a frame is a patient who comes in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedfleet.models.task import Drive, Floats, Frames, Index, Metric, Numbers, Samples, Specification, Sums
from fedfleet.protocol.errors import UsageError
from fedfleet_hospitals.records import MEASUREMENTS, Patient, read_hospitals

__all__ = ["TASK", "Hospitals"]

PATIENTS_PER_S: Final = 5.0
"""How fast the day is replayed."""
USUAL_SHARE: Final = 0.37
"""Share of malignant tumours that a doctor knows before looking: the trivial answer."""
CERTAIN: Final = 2.0
"""Logit from which on a diagnosis is no guess: odds of 7 to 1."""
SPECIFICATION: Final = Specification("measurements", (MEASUREMENTS,), "logit", (1,))


def f1(means: Mapping[str, float]) -> float:
    """Harmonic mean of precision and sensitivity, from the shares of patients found, cried wolf about and missed."""
    found, wolf, missed = (means[name] for name in ("found", "false_alarm", "missed"))
    return 2 * found / (2 * found + wolf + missed) if found + wolf + missed else math.nan


@dataclass(frozen=True)
class Hospitals:
    """The task; see `fedfleet.models.task.Task` for what each member promises."""

    name: str = "hospitals"
    version: int = 1
    specification: Specification = SPECIFICATION
    metrics: tuple[Metric, ...] = (
        Metric("log_loss", "nat", "lower"),
        Metric("accuracy", "share", "higher"),
        Metric("F1", "", "higher", f1),
    )
    network: str = "fedfleet_hospitals.nets:network"
    loss: str = "fedfleet_hospitals.nets:loss"
    noun: str = "patients"
    trivial: str = "usual share"

    @property
    def suits(self) -> Mapping[str, Mapping[str, object]]:
        """Settings for few records and a small model."""
        training = {"batch_size": 8, "learning_rate": 0.1, "momentum": 0.9}
        federated = {
            "codec": {"density": 0.25},
            "strategy": {"server_learning_rate": 1.0},
            "training": training,
        }
        arm = {**training, "schedule": "cosine"}
        return {
            "server": federated,
            "compare": {"epochs": 30, "centralised": arm, "on_site": arm, "federated": federated},
        }

    def index(self, folder: Path) -> Index:
        """List the clinic days."""
        days, problems = read_hospitals(folder)
        drives = [
            Drive(*key.split("/"), recordings=len(patients), seconds=len(patients) / PATIENTS_PER_S)
            for key, patients in days.items()
        ]
        return Index(tuple(drives), dict(problems))

    def samples(self, folder: Path, drives: Sequence[str]) -> Samples:
        """One sample per patient."""
        patients = _patients(folder, drives)
        inputs = np.array([one.measurements for one in patients], dtype=np.float32)
        targets = np.array([[one.malignant] for one in patients], dtype=np.float32)
        return Samples(inputs, targets, np.ones(len(patients), dtype=np.bool_))

    def frames(self, folder: Path, drives: Sequence[str]) -> Frames:
        """Every patient, one after the other."""
        inputs = self.samples(folder, drives).inputs
        return Frames(inputs, np.arange(len(inputs) + 1), np.arange(len(inputs)), PATIENTS_PER_S)

    def score(self, outputs: Floats, samples: Samples) -> Sums:
        """Sums from which log loss, accuracy and F1 come."""
        logit, malignant = outputs[:, 0].astype(np.float64), samples.targets[:, 0] > 0.5
        said = logit > 0
        each = {
            "log_loss": np.logaddexp(0.0, np.where(malignant, -logit, logit)),
            "accuracy": said == malignant,
            "found": said & malignant,
            "false_alarm": said & ~malignant,
            "missed": ~said & malignant,
        }
        return {name: (float(values.sum()), len(values)) for name, values in each.items()}

    def score_all(self, outputs: Floats, samples: Samples) -> Sums:
        """The same: every patient is judged."""
        return self.score(outputs, samples)

    def baseline(self, inputs: Numbers) -> Floats:
        """The usual share, whoever comes in."""
        return np.full((len(inputs), 1), math.log(USUAL_SHARE / (1 - USUAL_SHARE)), dtype=np.float32)

    def differ(self, active: Floats, candidate: Floats) -> NDArray[np.bool_]:
        """Two diagnoses disagree when they are opposite and neither is a guess; logits are not in the targets' unit."""
        sure = (np.abs(active[:, 0]) >= CERTAIN) & (np.abs(candidate[:, 0]) >= CERTAIN)
        opposite: NDArray[np.bool_] = sure & ((active[:, 0] > 0) != (candidate[:, 0] > 0))
        return opposite


TASK: Final = Hospitals()


def _patients(folder: Path, drives: Sequence[str]) -> list[Patient]:
    days, _ = read_hospitals(folder)
    unknown = sorted(set(drives) - set(days))
    if unknown:
        raise UsageError(f"{folder}: no clinic day {unknown[0]}: expected one of {', '.join(list(days)[:5])}")
    return [patient for key in sorted(set(drives)) for patient in days[key]]
