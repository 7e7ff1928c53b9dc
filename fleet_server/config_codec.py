"""The server's configuration of codec and downlink: what the plan tells vehicles, and how versions travel."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedfleet.codec.settings import Settings
from fedfleet.fleet_server.config_base import Config
from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.messages import CodecPlan, LinkClass, LinkPlan

__all__ = ["CodecConfig", "DownlinkConfig", "LinkConfig"]

QUICK_FROM = 100
"""Vehicles of a region and round from which on the time of coding counts more than a tenth of the bytes."""
Density = Annotated[float, Field(gt=0, le=1)]
Value = Literal["sign", "int2", "int3", "int4", "int8", "float32", "stochastic4"]


class LinkConfig(Config):
    """What vehicles on one class of link do otherwise."""

    value: Value | None = Field(default=None, description="bits per value, as server.codec.value")
    density: Density | None = Field(default=None, description="share of the values that is sent at most")
    budget_bytes: int | None = Field(
        default=None,
        ge=256,
        le=2**31,
        description="most bytes of an update, sealed; each vehicle takes the best encoding that fits",
    )


class CodecConfig(Config):
    """How vehicles encode their updates."""

    index: Literal["rice", "dense", "common"] = Field(
        default="rice",
        description="rice: each vehicle's largest values; dense: all; common: the same for all, by a rule of the plan",
    )
    value: Value = Field(
        default="sign",
        description="bits per value: sign 1, int2 to int8, float32 (dense, common); stochastic4: dense, stateless",
    )
    density: Density = Field(default=0.02, description="share of the values that is sent; dense sends all")
    layer_floor: float = Field(
        default=0.0, ge=0, le=1, description="share of each tensor that is sent at least, with index rice"
    )
    seeded: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="with index common, share of the coordinates that the seed draws; the rest moved most before",
    )
    catch_up: int = Field(
        default=10,
        ge=1,
        le=1000,
        description="with index rice, a vehicle's density is multiplied by the rounds since its last update, at most "
        "by this; 1: never more",
    )
    step_ahead: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="a vehicle that missed rounds trains from the model plus this share of its residual (0: none)",
    )
    effort: Literal["auto", "full", "quick"] = Field(
        default="auto",
        description="time for smaller updates, on both sides: full; quick saves some 30 ms an update and costs up to a "
        "tenth more bytes; auto: quick where a round asks 100 vehicles of a region or more",
    )
    stateless_after: int = Field(
        default=0,
        ge=0,
        le=2**32 - 1,
        description="with index rice, a vehicle whose last update is so many rounds ago sends dense, unbiased 4 bit "
        "values and keeps no residual (stochastic4); 0: never",
    )
    stateless_density: Density = Field(
        default=0.1, description="share of the values that are not zero in such an update, about"
    )
    links: Mapping[LinkClass, LinkConfig] = Field(
        default_factory=dict, description="what differs by class of link: metered, wifi, ethernet"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        _settings(self.index, self.value, self.density, self.layer_floor)
        if self.stateless_after and self.index != "rice":
            raise ValueError(
                f"stateless_after: expected 0 with index {self.index}, which has its coordinates told"
            )
        for name, link in self.links.items():
            value = link.value or self.value
            _settings(self.index, value, link.density or self.density, self.layer_floor)
            if link.density is not None and self.index != "rice" and value != "stochastic4":
                raise ValueError(
                    f"links.{name}.density: expected none, index {self.index} is the same for all"
                )
        return self

    @property
    def is_dense(self) -> bool:
        """Whether an update carries all that was learned."""
        return self.index == "dense"

    def plan(self, vehicles: int = 0) -> CodecPlan:
        """Return what a round plan for about so many vehicles says about the codec."""
        many = vehicles >= QUICK_FROM
        effort = ("quick" if many else "full") if self.effort == "auto" else self.effort
        coordinates: Literal["own", "common", "dense"] = "own" if self.index == "rice" else self.index
        return CodecPlan(
            index=self.index,
            value=self.value,
            density=self.density,
            coordinates=coordinates,
            layer_floor=self.layer_floor,
            seeded=self.seeded,
            catch_up=self.catch_up,
            step_ahead=self.step_ahead,
            stateless_after=self.stateless_after,
            stateless_density=self.stateless_density,
            effort=effort,
            links={name: LinkPlan(**link.model_dump()) for name, link in self.links.items()},
        )


class DownlinkConfig(Config):
    """How the server encodes the step from one version to the next."""

    value: Literal["sign", "int8", "float32"] = Field(
        default="int8", description="bits per value: sign 1, int8 8, float32 32 (then all are sent)"
    )
    density: Density = Field(default=0.1, description="share of the values that is sent; float32 sends all")

    def settings(self) -> Settings:
        """Return the codec settings of the downlink."""
        return _settings("dense" if self.value == "float32" else "rice", self.value, self.density)


def _settings(index: str, value: str, density: float, layer_floor: float = 0.0) -> Settings:
    try:
        return Settings(index, value, density, layer_floor)
    except UsageError as error:
        raise ValueError(str(error)) from error
