"""A head that a vehicle tunes for its own inference: when it may drive, and what is recorded of it. Pure.

It is never uploaded. It drives over the release only while it beats it on the vehicle's own validation split; whatever
is doubtful about it, the release drives.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from fedfleet.models.task import Floats, Metric, Sums

__all__ = ["Head", "PersonalSettings", "Record", "judge"]


class PersonalSettings(BaseModel):
    """Whether a vehicle tunes a head of its own, how, and by how much it must be better."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    enabled: bool = Field(
        default=False,
        description="tune the released model's head to the own drives, for the own inference only",
    )
    validation_share: float = Field(
        default=0.2, gt=0, lt=1, description="share of the own samples, the last ones, that judge it"
    )
    least_gain: float = Field(
        default=0.01, ge=0, le=1, description="share by which it must be better than the release there"
    )
    least_judged: int = Field(
        default=30, ge=1, le=10**9, description="samples held back without which nothing can be said"
    )
    epochs: int = Field(default=5, ge=1, le=1000, description="passes over the own samples")
    learning_rate: float = Field(default=0.003, gt=0, le=10, description="learning rate of the passes")


@dataclass(frozen=True, eq=False)
class Head:
    """The values float32[h] of a head, and their places int64[h] in the vector of the whole model."""

    places: NDArray[np.int64]
    values: Floats

    def over(self, vector: Floats) -> Floats:
        """Return the vector float32[M] with this head; ValueError when a place is outside or comes twice."""
        places = self.places
        inside = places.size and places.min() >= 0 and places.max() < vector.size
        if not inside or places.shape != self.values.shape or np.unique(places).size != places.size:
            raise ValueError(
                f"a head of {places.size} places does not fit a model of {vector.size} parameters"
            )
        found = vector.copy()
        found[places] = self.values
        return found


@dataclass(frozen=True, eq=False)
class Record:
    """A head that passed its checks: over which release, the digest of the whole file, what that must answer.

    ``canary`` is a blob of the canary format, ``data`` says of which samples the vehicle judged it, ``scores`` how
    good release and head were there, as JSON.
    """

    release_sha256: str
    onnx_sha256: str
    head: Head
    canary: bytes
    data: str
    scores: str


def judge(released: Sums, personal: Sums, *, metrics: Sequence[Metric], settings: PersonalSettings) -> str:
    """Return why a head may not drive, or nothing: the primary metric, on the same samples, enough of them."""
    metric = metrics[0]
    counts = [sums.get(metric.name, (0.0, 0))[1] for sums in (released, personal)]
    old, new = metric.value(released), metric.value(personal)
    if counts[0] != counts[1] or counts[0] < settings.least_judged:
        return "personal-unjudged"
    if old is None or new is None or not (math.isfinite(old) and math.isfinite(new)):
        return "personal-unjudged"
    gain = old - new if metric.better == "lower" else new - old
    return "" if gain > 0 and gain >= settings.least_gain * abs(old) else "personal-no-better"
