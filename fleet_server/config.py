"""The server's whole configuration: one frozen value, checked when it is made, parsed in `main` and passed down.

The descriptions are the documentation: `docs/` draws its table from them. Unknown keys are errors.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from fedfleet.fleet_server import config_fit
from fedfleet.fleet_server.config_base import Config
from fedfleet.fleet_server.config_codec import CodecConfig, DownlinkConfig, LinkConfig
from fedfleet.fleet_server.config_observe import LogsConfig, MetricsConfig
from fedfleet.fleet_server.config_rounds import GateConfig, RoundsConfig
from fedfleet.fleet_server.config_store import RateConfig, RetentionConfig, StoreConfig
from fedfleet.fleet_server.config_strategy import StrategyConfig
from fedfleet.fleet_server.gate import ReleasePolicy
from fedfleet.fleet_server.strategies import Strategy
from fedfleet.link.config import BrokerConfig
from fedfleet.models.settings import TrainSettings
from fedfleet.protocol.enrolment import MIN_BITS, bits_of
from fedfleet.protocol.ids import SERVER, Id
from fedfleet.protocol.messages import Setting

__all__ = [
    "CodecConfig",
    "DownlinkConfig",
    "EnrolmentCode",
    "GateConfig",
    "GroupCommitConfig",
    "Int8Config",
    "LinkConfig",
    "LogsConfig",
    "MetricsConfig",
    "RateConfig",
    "RetentionConfig",
    "RoundsConfig",
    "ServerConfig",
    "ServerSettings",
    "StoreConfig",
    "StrategyConfig",
]

Name = Annotated[str, Field(max_length=40)]


class GroupCommitConfig(Config):
    """How many updates one transaction of the store takes."""

    updates: int = Field(default=256, ge=1, le=10_000, description="updates per transaction at most")
    wait_ms: float = Field(
        default=2.0, ge=0, le=1000, description="milliseconds that an update waits for others"
    )


class Int8Config(Config):
    """The int8 variant of what drives, for weak vehicles."""

    enabled: bool = Field(
        default=False,
        description="make an int8 variant of every release and publish it when it is good enough",
    )
    most_loss: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="share by which the primary metric may get worse, overall and in every region; None: the task's",
    )
    calibration_dir: Path | None = Field(
        default=None,
        description="prepared folder whose train part sets the ranges; None: made of one training drive per region",
    )


class EnrolmentCode(Config):
    """A one-time code with which one vehicle enrols; the code itself never travels."""

    vehicle: Id = Field(description="id of the vehicle")
    region: Id = Field(description="region that it is put in")
    code: SecretStr = Field(
        description="the secret, of 80 bits at least; `fedfleet server code VEHICLE` makes one without this file"
    )

    @field_validator("code")
    @classmethod
    def _is_long_enough(cls, code: SecretStr, info: ValidationInfo) -> SecretStr:
        bits, vehicle = bits_of(code.get_secret_value()), info.data.get("vehicle", "VEHICLE")
        if bits < MIN_BITS:
            raise ValueError(
                f"code of {vehicle}: expected at least {MIN_BITS} bits drawn at random, got about {bits:.0f}: "
                f"`fedfleet server code {vehicle}` makes one"
            )
        return code


class ServerSettings(Config):
    """What a configuration file may say of the server, besides who and where it is."""

    rounds: RoundsConfig = Field(default_factory=RoundsConfig, description="rounds")
    codec: CodecConfig = Field(default_factory=CodecConfig, description="encoding of the vehicles' updates")
    downlink: DownlinkConfig = Field(
        default_factory=DownlinkConfig, description="encoding of the server's steps"
    )
    training: Mapping[Name, Setting] = Field(
        default_factory=dict,
        max_length=40,
        description="training settings sent with each plan (see TrainSettings)",
    )
    learning_rate_schedule: Literal["constant", "cosine"] = Field(
        default="constant",
        description="the vehicles' learning rate over the rounds; cosine: to near 0 in the last of rounds.total",
    )
    strategy: StrategyConfig = Field(default_factory=StrategyConfig, description="server optimizer")
    gate: GateConfig = Field(default_factory=GateConfig, description="validation before publishing")
    release_policy: ReleasePolicy = Field(
        default="no-worse-than-released",
        description="which published version may drive: one that is nowhere worse than what drives; one that is no "
        "worse over all regions together, and in no region worse than the first release; or each that the gate "
        "accepts",
    )
    int8: Int8Config = Field(default_factory=Int8Config, description="int8 variant of releases")
    merge_cap: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="largest weight of a region in the merge, where their number allows it",
    )
    merge_trim: float = Field(
        default=0.0,
        ge=0,
        lt=0.5,
        description="above 0, regions merge by trimmed mean: share that is left out at both ends of each coordinate",
    )
    regional_heads: tuple[Annotated[str, Field(min_length=1, max_length=100)], ...] = Field(
        default=(),
        max_length=100,
        description="patterns of the tensors that each region learns for its own (as leave*); none: one model for all",
    )
    example_cap: int = Field(
        default=10_000, ge=1, le=2**32 - 1, description="most examples that count as one update's weight"
    )
    norm_factor: float = Field(
        default=50.0,
        gt=1,
        le=1e9,
        description="longest update (L2) that is let in, in middle ones of the last folds; a longer one is refused",
    )
    update_limit_bytes: int | None = Field(
        default=None,
        ge=1024,
        le=2**31 - 1,
        description="largest sealed update that is accepted, in bytes; when not given, what the codec needs for the "
        "model, 1,000,000 at least",
    )
    enrolment: tuple[EnrolmentCode, ...] = Field(default=(), description="open one-time enrolment codes")
    group_commit: GroupCommitConfig = Field(
        default_factory=GroupCommitConfig, description="transactions of the store"
    )
    quarantine_keep: int = Field(
        default=1000,
        ge=1,
        le=10_000_000,
        description="refused messages that are kept for inspection, newest first",
    )
    store: StoreConfig = Field(default_factory=StoreConfig, description="where the store is")
    retention: RetentionConfig = Field(
        default_factory=RetentionConfig, description="how long the store keeps what is settled"
    )
    rate: RateConfig = Field(default_factory=RateConfig, description="what one vehicle may send")
    metrics: MetricsConfig = Field(default_factory=MetricsConfig, description="Prometheus endpoint")
    logs: LogsConfig = Field(default_factory=LogsConfig, description="the server's log")

    def training_of(self, round_: int) -> dict[str, Setting]:
        """Return the training settings of the plan of a round, from 1 on: the same for the same number."""
        told = dict(self.training)
        if self.strategy.name == "scaffold":
            told["correction"] = "scaffold"
        if self.learning_rate_schedule == "cosine":
            settings = TrainSettings.model_validate({**told, "schedule": "cosine"})
            told["learning_rate"] = settings.learning_rate_at(
                (self.rounds.place(round_) - 1) / self.rounds.total
            )
        return told

    def step_of(self, round_: int) -> float:
        """Return the factor on the server's step in a round, from 1 on: 1, and less in the cooldown of the strategy.

        Constant, then linear decay ("trapezoidal", Hägele et al. 2024, "Scaling laws and compute-optimal training
        beyond fixed training durations", section 3); the last of `rounds.total` has the smallest factor, not 0.
        """
        last = self.strategy.cooldown * self.rounds.total
        left = self.rounds.total - self.rounds.place(round_) + 1
        return min(1.0, left / last) if last >= 1 else 1.0

    @property
    def optimizer(self) -> Strategy:
        """The server optimizer, its learning rate chosen by the codec where none is given."""
        return self.strategy.strategy(dense=self.codec.is_dense)

    @property
    def training_momentum(self) -> float:
        """Momentum of the vehicles' sgd."""
        return TrainSettings.model_validate(dict(self.training)).momentum

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        if self.learning_rate_schedule == "cosine" and not self.rounds.total:
            raise ValueError("learning_rate_schedule: cosine needs rounds.total, got no end")
        if self.strategy.cooldown and not self.rounds.total:
            raise ValueError(
                "strategy.cooldown: expected 0 without rounds.total, where nothing says when it ends"
            )
        return self

    @model_validator(mode="after")
    def _check_fit(self) -> Self:
        config_fit.check(self)
        return self

    @model_validator(mode="after")
    def _check_training(self) -> Self:
        try:
            training = TrainSettings.model_validate(dict(self.training))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(str(part) for part in ("training", *first["loc"]))
            raise ValueError(f"{key}: {first['msg']}, got {first['input']!r}") from error
        self.strategy.check_fit(self.codec.plan().coordinates, training, self.rounds)
        if self.regional_heads and self.strategy.name == "scaffold":
            raise ValueError(
                "regional_heads: expected none with strategy scaffold, whose control variate is shared"
            )
        return self


class ServerConfig(ServerSettings):
    """Everything that the fleet server is told."""

    fleet: Id = Field(description="id of the fleet, in every topic and signature")
    regions: tuple[Id, ...] = Field(min_length=1, max_length=10_000, description="ids of the regions")
    data_dir: Path = Field(
        description="folder of the store, the keys and the exported model; made when absent"
    )
    validation_dir: Path = Field(
        description="folder with one prepared validation folder per region, by its id"
    )
    task: str = Field(
        default="motion_forecast",
        min_length=1,
        description="learning task: an installed name or module:ATTRIBUTE",
    )
    broker: BrokerConfig = Field(default_factory=BrokerConfig, description="the broker")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if double := [region for region, times in Counter(self.regions).items() if times > 1]:
            raise ValueError(f"regions: {double[0]} is named twice")
        config_fit.check_regions(self, self.regions)
        self._check_known("rounds.contributors", self.rounds.contributors or {})
        self._check_known("enrolment", [code.region for code in self.enrolment])
        vehicles = Counter(code.vehicle for code in self.enrolment)
        if double := [vehicle for vehicle, times in vehicles.items() if times > 1]:
            raise ValueError(f"enrolment: {double[0]} has two codes")
        if self.int8.enabled and self.int8.calibration_dir is None:
            raise ValueError("int8.calibration_dir: expected a prepared folder where int8 is enabled")
        if SERVER in vehicles:
            raise ValueError(f"enrolment: {SERVER} is the server's own name")
        return self

    def _check_known(self, key: str, regions: Mapping[str, object] | list[str]) -> None:
        if unknown := sorted(set(regions) - set(self.regions)):
            raise ValueError(f"{key}: unknown region {unknown[0]}, expected one of {', '.join(self.regions)}")
