"""How a vehicle fine-tunes: plain checked values, importable without torch."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Augment", "TrainSettings"]

Augment = Literal["none", "mirror", "mirror-speed", "mirror-light", "mirror-shift"]


class TrainSettings(BaseModel):
    """The settings of one fine-tuning; `benchmarks/federated_sim.py` found the defaults (`motion_forecast`)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: int = Field(default=2, ge=1, le=1000)
    batch_size: int = Field(default=64, ge=1, le=65536)
    learning_rate: float = Field(default=0.03, gt=0, le=10)
    optimizer: Literal["adam", "sgd"] = "sgd"
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of sgd only."""
    max_steps: int = Field(default=0, ge=0)
    """Upper bound on the number of batches; 0 = none."""
    clip_norm: float = Field(default=1.0, ge=0)
    """Largest gradient norm of a batch; 0 = unlimited."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Of the learning rate over the batches of this fine-tuning: cosine ends near 0."""
    augment: Augment = Field(
        default="none",
        description="how samples are varied in each pass, where the task offers it: mirrored; mirrored and at "
        "other speeds (motion_forecast); mirrored and in other light, or also moved a little "
        "(camera_steering)",
    )
    proximal_mu: float = Field(
        default=0.0,
        ge=0,
        le=1e4,
        description="FedProx: adds proximal_mu · (weights - base) to every gradient; 0 = none",
    )
    correction: Literal["none", "scaffold"] = Field(
        default="none",
        description="scaffold: gradients are corrected by control variates (needs sgd, momentum 0)",
    )
    trainable: Literal["all", "head"] = Field(
        default="all",
        description="what learns: all, or only the task's head, else the last layer (weak vehicles)",
    )
    batch_bytes: int = Field(
        default=0,
        ge=0,
        le=2**40,
        description="largest memory of a batch, in bytes: batches become smaller where they need more; 0 = no limit",
    )

    def learning_rate_at(self, done: float) -> float:
        """Return the learning rate after this share of the batches, from 0 to 1."""
        if self.schedule == "constant":
            return self.learning_rate
        return self.learning_rate * (1 + math.cos(math.pi * done)) / 2
