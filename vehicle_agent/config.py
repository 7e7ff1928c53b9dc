"""The configuration of an agent (one vehicle) and of a fleet process (many): one frozen value, parsed once."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from fedfleet.link.config import BrokerConfig
from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.ids import SERVER, Id, is_id
from fedfleet.protocol.messages import LinkClass
from fedfleet.protocol.signing import KEY_BYTES
from fedfleet.vehicle_agent.eligibility import Rule, Signal
from fedfleet.vehicle_agent.guard import GuardSettings
from fedfleet.vehicle_agent.personal import PersonalSettings
from fedfleet.vehicle_agent.profiles import Profile, check_profiles, chosen
from fedfleet.vehicle_agent.scheduling import Policy, Priority
from fedfleet.vehicle_agent.shadow import ShadowSettings

__all__ = [
    "AgentConfig",
    "AgentSettings",
    "CommonConfig",
    "FleetConfig",
    "VehicleEntry",
    "load",
    "server_key",
]

Forbid = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
Positive = Annotated[float, Field(gt=0, le=1e6)]


class AgentSettings(BaseModel):
    """What a configuration file may say of every vehicle, besides who and where it is."""

    model_config = Forbid

    server_public_key: str | None = Field(
        default=None,
        description="the server's key, 64 hex digits or a file with them; else learned at enrolment",
    )
    rules: tuple[Rule, ...] = Field(
        default=(), description="conditions that must hold before a training starts"
    )
    conditions: dict[str, Signal] = Field(default={}, description="fixed vehicle signals, by VSS name")
    conditions_file: Path | None = Field(
        default=None,
        description="trace of signals instead (CSV: time_s, signal, value), replayed from the start; "
        "{vehicle} in the name is the vehicle's id: a trace for each",
    )
    conditions_command: tuple[str, ...] = Field(
        default=(),
        description="program that tells signals instead, a JSON object a line (see docs/running.md)",
    )
    conditions_stale_s: float | None = Field(
        default=None,
        gt=0,
        le=1e7,
        description="seconds after which a signal of a trace or a program without a new value counts as missing",
    )
    inference_priority: Priority = Field(
        default="realtime",
        description="of the thread that runs the model: realtime, before all else on its core where the system allows "
        "it (a process with several vehicles is a simulator and never asks); normal",
    )
    nice: int = Field(default=19, ge=0, le=19, description="how much the trainer process yields to others")
    trainer_policy: Policy = Field(
        default="batch",
        description="scheduling class of the trainer; idle: only what all others leave",
    )
    trainer_cores: tuple[Annotated[int, Field(ge=0, le=4095)], ...] = Field(
        default=(), description="numbers of the cores that the trainer may use; empty: all of the process"
    )
    trainer_memory_mb: int = Field(
        default=4096, ge=64, le=2**20, description="resident memory at which the trainer is killed, in MiB"
    )
    trainer_hang_s: Positive = Field(
        default=120.0, description="seconds without a word after which a trainer at work is killed"
    )
    guard: GuardSettings = Field(
        default=GuardSettings(), description="the latency guard, which stops the trainer when a frame is late"
    )
    shadow: ShadowSettings = Field(
        default=ShadowSettings(), description="a release beside the active model, before it drives"
    )
    training_budget_s: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="seconds for the training of a round, after which what was done so far is sent; None: no limit",
    )
    checkpoint_s: Positive = Field(
        default=5.0, description="seconds of training that an interruption may cost"
    )
    trainable: Literal["all", "head"] = Field(
        default="all", description="what this vehicle trains: all, or only the head (weak vehicles)"
    )
    variant: Literal["float32", "int8"] = Field(
        default="float32",
        description="form of the model that drives, int8 where a release has it (weak vehicles); training is float32",
    )
    personal: PersonalSettings = Field(
        default=PersonalSettings(), description="a head that the vehicle tunes for its own inference"
    )
    batch_memory_mb: float | None = Field(
        default=None,
        gt=0,
        le=2**20,
        description="memory of a batch of training, in MiB: larger batches are made smaller; None: no limit",
    )
    max_warm_trainers: int = Field(
        default=2, ge=1, le=16, description="trainer processes at a time; others wait"
    )
    trainer_idle_s: Positive = Field(
        default=60.0, description="seconds without work after which a trainer ends"
    )
    warm_start_s: float = Field(
        default=0.0,
        ge=0,
        le=3600,
        description="seconds to wait at most, before connecting, until trainers are warm; 0: they start when needed",
    )
    training_limit_s: Positive = Field(
        default=600.0, description="seconds after which a training is given up"
    )
    inference: bool = Field(
        default=True, description="run the model on the vehicle's frames; off: train only (experiments)"
    )
    rate_hz: float | None = Field(
        default=None,
        gt=0,
        le=1000,
        description="frames per second of inference; default: the recording's own rate",
    )
    metrics_interval_s: Positive = Field(default=30.0, description="seconds between two metrics messages")
    tick_s: float = Field(default=0.25, gt=0, le=10, description="seconds between two looks at timers")
    resend_min_s: Positive = Field(
        default=5.0, description="seconds before an update without receipt is sent again"
    )
    resend_cap_s: Positive = Field(
        default=60.0, description="longest such wait, and of requests and downloads"
    )
    forget_after_rounds: int = Field(
        default=20, ge=1, le=10_000, description="rounds without word after which an update counts as folded"
    )
    blob_timeout_s: Positive = Field(
        default=10.0, description="seconds to wait for a piece of a model before asking again"
    )
    max_model_bytes: int = Field(
        default=64_000_000, ge=1024, le=2**31, description="largest model file or blob, in bytes"
    )
    max_update_bytes: int | None = Field(
        default=None,
        ge=1024,
        le=2**31,
        description="largest update to send, in bytes; what the server takes when not given",
    )
    link_class: LinkClass = Field(
        default="ethernet",
        description="what the vehicles' link costs: plans may ask each class for another size",
    )
    link_classes: dict[Id, LinkClass] = Field(
        default={}, description="the same by vehicle, where it differs from link_class"
    )
    profiles: dict[Id, Profile] = Field(
        default={},
        description="kinds of vehicles that differ in link, conditions or strength, by name (see docs/running.md)",
    )
    update_budget_bytes: int | None = Field(
        default=None,
        ge=256,
        le=2**31,
        description="most bytes of a vehicle's update; the best encoding that fits is taken. None: the plan's word",
    )
    receive_window: int = Field(
        default=16, ge=1, le=1000, description="messages taken from the broker before acknowledging"
    )
    record_events: bool = Field(
        default=False, description="append every event to events.jsonl in the vehicle's folder"
    )

    @model_validator(mode="after")
    def _one_source_of_conditions(self) -> Self:
        given = {
            "conditions": self.conditions,
            "conditions_file": self.conditions_file,
            "conditions_command": self.conditions_command,
        }
        if len(named := [name for name, value in given.items() if value]) > 1:
            raise ValueError(f"{' and '.join(named)}: expected one of them")
        return self

    @model_validator(mode="after")
    def _times_and_sizes_fit(self) -> Self:
        budget_s, limit_s = self.training_budget_s, self.training_limit_s
        if budget_s is not None and budget_s >= limit_s:
            raise ValueError(
                f"training_budget_s: expected less than training_limit_s = {limit_s:g}, after which a training is "
                f"given up, got {budget_s:g}"
            )
        if self.resend_min_s > self.resend_cap_s:
            raise ValueError(
                f"resend_min_s: expected at most resend_cap_s = {self.resend_cap_s:g}, got {self.resend_min_s:g}"
            )
        most, budget = self.max_update_bytes, self.update_budget_bytes
        if most is not None and budget is not None and budget > most:
            raise ValueError(
                f"update_budget_bytes: expected at most max_update_bytes = {most:,}, got {budget:,}"
            )
        return self

    @model_validator(mode="after")
    def _profiles_fit(self) -> Self:
        check_profiles(self.profiles)
        return self

    def profile(self, vehicle: str) -> Profile:
        """Return what this vehicle is like: the profile that names it, else the one drawn for it by its id."""
        return chosen(self.profiles, vehicle)

    def of(self, vehicle: str) -> Self:
        """Return the same as it is for this vehicle: what its profile says stands above."""
        return self.model_copy(update=self.profile(vehicle).changes())


class CommonConfig(AgentSettings):
    """What all vehicles of a process share."""

    fleet: Id = Field(description="id of the fleet, the same as the server's")
    task: str = Field(min_length=1, description="task to learn: an installed name or module:ATTRIBUTE")
    work_dir: Path = Field(description="folder that holds one folder for each vehicle: journal and key")
    broker: BrokerConfig = Field(default=BrokerConfig(), description="how to reach the broker")


class VehicleEntry(BaseModel):
    """One vehicle of a fleet process."""

    model_config = Forbid

    vehicle: Id = Field(description="id of the vehicle, also its name at the broker")
    data_dir: Path = Field(description="folder of the prepared samples and frames of this vehicle")
    enrolment_code: SecretStr | None = Field(default=None, description="one-time code, when not enrolled yet")
    sharers: int = Field(
        default=1, ge=1, description="vehicles that have these very drives: above 1 it tells no accuracy"
    )

    @model_validator(mode="after")
    def _not_the_server(self) -> Self:
        if self.vehicle == SERVER:
            raise ValueError(f"vehicle {SERVER}: this name is the server's")
        return self


class FleetConfig(CommonConfig):
    """Many vehicles in one process."""

    vehicles: tuple[VehicleEntry, ...] = Field(min_length=1, max_length=2000, description="the vehicles")
    report_file: Path | None = Field(
        default=None, description="file that says at the end what each vehicle did"
    )

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        names = [entry.vehicle for entry in self.vehicles]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"vehicles: {twice[0]} is there twice")
        return self


class AgentConfig(CommonConfig):
    """One vehicle in a process of its own."""

    vehicle: Id = Field(description="id of the vehicle, also its name at the broker")
    data_dir: Path = Field(description="folder of the prepared samples and frames of this vehicle")
    enrolment_code: SecretStr | None = Field(default=None, description="one-time code, when not enrolled yet")

    def as_fleet(self) -> FleetConfig:
        """Return the same as a fleet of one."""
        shared = {name: getattr(self, name) for name in CommonConfig.model_fields}
        own = VehicleEntry(vehicle=self.vehicle, data_dir=self.data_dir, enrolment_code=self.enrolment_code)
        return FleetConfig(**shared, vehicles=(own,))


def load(kind: Literal["agent", "fleet"], path: Path) -> FleetConfig:
    """Read a JSON configuration file of one vehicle or of many.

    Raises UsageError naming the file, the key, what was expected and what was found.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot read the configuration: {error.strerror}") from error
    try:
        if kind == "agent":
            return AgentConfig.model_validate_json(text).as_fleet()
        return FleetConfig.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "file"
        got = "" if key == "file" or "code" in key else f", got {str(first['input'])[:80]!r}"
        if first["type"] == "string_pattern_mismatch" and not is_id(str(first["input"])):
            raise UsageError(f"{path}: {key}: expected 1 to 36 of a-z, 0-9 and '-'{got}") from error
        raise UsageError(f"{path}: {key}: {first['msg']}{got}") from error


def server_key(text: str | None) -> bytes | None:
    """Return the server's public key from 64 hex digits or the file that holds them; UsageError otherwise."""
    if text is None:
        return None
    digits = text.strip()
    if len(digits) != 2 * KEY_BYTES:
        try:
            digits = Path(text).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"server_public_key: {text[:80]!r} is neither 64 hex digits nor a readable file"
            ) from error
    try:
        key = bytes.fromhex(digits)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise UsageError(f"server_public_key: expected 64 hex digits, got {digits[:80]!r}")
    return key
