"""When rounds open, whom they ask, when they close, and what becomes of those who are late or few."""

from collections import Counter
from collections.abc import Mapping
from math import sqrt
from typing import Annotated, Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from fedfleet.fleet_server.config_base import Config, Positive
from fedfleet.protocol.ids import Id

__all__ = ["GateConfig", "RoundsConfig"]

SliceName = Annotated[str, Field(pattern=r"^(all|[A-Za-z0-9_-]{1,60}=[^\x00-\x1f]{1,140})$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class RoundsConfig(Config):
    """When rounds open, whom they ask, and when they close."""

    _left_out: int = PrivateAttr(default=0)

    total: int = Field(
        default=0, ge=0, description="rounds to run, then the server only serves what it has; 0: no end"
    )
    quorum: int = Field(
        default=2, ge=1, le=100_000, description="fewest vehicles of a region whose updates are worth a fold"
    )
    deadline_s: Positive = Field(
        default=300.0, description="seconds from the opening to the close at the latest"
    )
    lease_s: Positive = Field(
        default=60.0, description="seconds that a vehicle may train before it is given up"
    )
    start_wait_s: float = Field(
        default=30.0,
        ge=0,
        le=1e7,
        description="seconds to wait for the quorum of every region before opening",
    )
    share_wanted: int | None = Field(
        default=None,
        ge=1,
        description="vehicles wanted per region and round; all when not given. Of contributors exactly so many",
    )
    contributors: Mapping[Id, tuple[Id, ...]] | None = Field(
        default=None,
        description="by region, the exact vehicles each round waits for (share_wanted of them, where it is given), "
        "with no deadline; for reproducible runs",
    )
    mode: Literal["sync", "buffered"] = Field(
        default="sync",
        description="sync: all regions' rounds end together in one version; buffered: a region that has enough "
        "updates makes a version at once, and vehicles train on (FedBuff)",
    )
    buffer: int = Field(
        default=10,
        ge=1,
        le=100_000,
        description="vehicles of a region whose updates make a version (buffered)",
    )
    max_staleness: int = Field(
        default=10,
        ge=0,
        le=1_000_000,
        description="versions that an update may be behind when it is folded; an older one is returned",
    )
    late: Literal["return", "carry", "staleness-weighted"] = Field(
        default="return",
        description="what becomes of an update after the close: return it to its vehicle, or carry it into the "
        "region's next round, in full or by 1/sqrt(1 + versions behind); buffered always weights",
    )
    below_quorum: Literal["skip", "carry"] = Field(
        default="skip",
        description="a region below its quorum at the deadline: skip it and return its updates, or carry them into "
        "its next round; buffered always carries",
    )
    regions: Literal["together", "apart"] = Field(
        default="together",
        description="together: one version from all regions' rounds; apart: each region runs its own rounds (sync)",
    )
    interval_s: float = Field(
        default=0.0,
        ge=0,
        le=1e7,
        description="fewest seconds from one opening to the next; plans tell vehicles to come back then",
    )
    seed: int = Field(default=0, ge=0, le=2**53, description="seed of the public draw and of the first model")
    keep_settlements: int = Field(
        default=3, ge=1, le=100, description="settlements kept on the broker per region"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.lease_s > self.deadline_s:
            raise ValueError(
                f"lease_s: expected at most deadline_s = {self.deadline_s:g}, got {self.lease_s:g}"
            )
        if self.mode == "buffered" and self.quorum > self.buffer:
            raise ValueError(f"quorum: expected at most buffer = {self.buffer}, got {self.quorum}")
        if self.contributors is not None:
            if self.carries_late or self.carries_region or self.regions == "apart":
                raise ValueError(
                    "contributors: expected mode sync, late return, below_quorum skip, regions together"
                )
            named = Counter(vehicle for vehicles in self.contributors.values() for vehicle in vehicles)
            if double := [vehicle for vehicle, times in named.items() if times > 1]:
                raise ValueError(f"contributors: {double[0]} is named twice")
            if empty := [region for region, vehicles in self.contributors.items() if not vehicles]:
                raise ValueError(f"contributors: {empty[0]} has no vehicle")
        return self

    @property
    def carries_late(self) -> bool:
        """Whether an update that comes after the close waits for the region's next round."""
        return self.late != "return" or self.mode == "buffered"

    @property
    def carries_region(self) -> bool:
        """Whether the updates of a region below its quorum wait for its next round."""
        return self.below_quorum == "carry" or self.mode == "buffered"

    @property
    def apart(self) -> bool:
        """Whether a region makes a version without waiting for the others."""
        return self.regions == "apart" or self.mode == "buffered"

    def scale(self, staleness: int) -> float:
        """Return the factor on an update that is so many versions behind (FedBuff: Nguyen et al. 2022, section 5)."""
        return (
            1 / sqrt(1 + staleness) if self.late == "staleness-weighted" or self.mode == "buffered" else 1.0
        )

    @property
    def left_out(self) -> int:
        """How many numbers were left out because the store went back in time."""
        return self._left_out

    def leaving_out(self, numbers: int) -> Self:
        """Return the same with so many numbers left out: ``total`` counts rounds that ran."""
        changed = self.model_copy()
        changed._left_out = numbers  # noqa: SLF001 - of the same class
        return changed

    def place(self, round_: int) -> int:
        """Return which round this is, counted from 1, without the numbers that were left out."""
        return max(1, round_ - self._left_out)

    def goes_on(self, round_: int) -> bool:
        """Tell whether a round follows this one."""
        return not self.total or round_ - self._left_out < self.total


class GateConfig(Config):
    """When a candidate may be published."""

    tolerance: float = Field(
        default=0.10,
        ge=0,
        le=1,
        description="how much worse the primary metric may get from version to version, relative; 0.1 = 10 %",
    )
    step_norm: float | None = Field(
        default=None,
        gt=0,
        description="largest length (L2) of a step from version to version; no limit when not given",
    )
    step_factor: float | None = Field(
        default=10.0,
        gt=1,
        description="largest length of a step, in middle ones of the last ten, from the fourth version on",
    )
    floors: Mapping[SliceName, Finite] = Field(
        default_factory=dict,
        max_length=200,
        description="worst mean of the primary metric that is accepted on a slice of the validation samples, by slice, "
        "such as manoeuvre=turn-left; a model that is beyond it may only get better there",
    )
    batch: int = Field(default=1024, ge=1, le=1_000_000, description="validation samples per inference call")
