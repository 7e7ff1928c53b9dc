"""Kinds of vehicles: what a simulated fleet's vehicles differ in. Pure."""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fedfleet.link.shape import LinkProfile
from fedfleet.protocol.ids import Id
from fedfleet.protocol.messages import LinkClass

__all__ = ["Profile", "check_profiles", "chosen"]

Positive = Annotated[float, Field(gt=0, le=1e6)]


class Profile(BaseModel):
    """A kind of vehicle. What it does not say is as for all others."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    vehicles: tuple[Id, ...] = Field(default=(), description="ids of vehicles of this kind")
    share: float = Field(
        default=0.0, ge=0, le=1, description="share of all other vehicles that are so, drawn by their ids"
    )
    link: LinkProfile = Field(default=LinkProfile(), description="what the link to the broker is like")
    link_class: LinkClass | None = Field(default=None, description="what the link costs")
    conditions_file: Path | None = Field(
        default=None, description="trace of signals; {vehicle} in the name is the vehicle's id"
    )
    training_budget_s: Positive | None = Field(
        default=None, description="seconds for the training of a round"
    )
    trainable: Literal["all", "head"] | None = Field(default=None, description="what is trained")
    variant: Literal["float32", "int8"] | None = Field(
        default=None, description="form of the model that drives"
    )
    batch_memory_mb: float | None = Field(
        default=None, gt=0, le=2**20, description="memory of a batch of training, in MiB"
    )
    rate_hz: float | None = Field(default=None, gt=0, le=1000, description="frames per second of inference")

    def changes(self) -> dict[str, Any]:
        """Return the agent's settings that are others for such a vehicle."""
        names = ("conditions_file", "training_budget_s", "trainable", "variant", "batch_memory_mb", "rate_hz")
        told: dict[str, Any] = {name: value for name in names if (value := getattr(self, name)) is not None}
        if self.conditions_file is not None:
            told |= {"conditions": {}, "conditions_command": ()}
        return told


PLAIN = Profile()


def check_profiles(profiles: Mapping[str, Profile]) -> None:
    """Raise ValueError when the shares are more than all vehicles, or a vehicle is of two kinds."""
    total = sum(profile.share for profile in profiles.values())
    if total > 1 + 1e-9:
        raise ValueError(f"profiles: shares sum up to {total:g}, expected at most 1")
    kinds: dict[str, str] = {}
    for name, profile in profiles.items():
        for vehicle in profile.vehicles:
            if kinds.setdefault(vehicle, name) != name:
                raise ValueError(f"profiles: vehicle {vehicle} is in {kinds[vehicle]} and in {name}")


def chosen(profiles: Mapping[str, Profile], vehicle: str) -> Profile:
    """Return the profile that names the vehicle, else the one drawn by a hash of its id; a plain one for the rest."""
    for profile in profiles.values():
        if vehicle in profile.vehicles:
            return profile
    place = int.from_bytes(sha256(f"profile {vehicle}".encode()).digest()[:6], "big") / 2**48
    for _, profile in sorted(profiles.items()):
        if place < profile.share:
            return profile
        place -= profile.share
    return PLAIN
