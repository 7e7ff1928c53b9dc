"""One TOML file configures every command; the environment overrides it; a mistake is one line.

Precedence: environment (``FEDFLEET__SECTION__KEY``), then the file, then the defaults. Unknown keys are refused.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from fedfleet.cli.mistakes import Mistakes, meant, of_validation, read_toml
from fedfleet.fleet_server.config import ServerSettings
from fedfleet.link.config import BrokerConfig
from fedfleet.protocol.ids import Id
from fedfleet.vehicle_agent.config import AgentSettings

__all__ = ["ENV_PREFIX", "DataConfig", "Settings", "load"]

ENV_PREFIX = "FEDFLEET__"
DEFAULT_FILE = Path("fedfleet.toml")


class DataConfig(BaseModel):
    """Which recordings there are, and how they are shared out among vehicles, validation and test."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scenarios: Path | None = Field(None, description="folder of recordings; the shipped pack when not given")
    vehicles_per_region: int = Field(
        3,
        ge=1,
        le=10_000,
        description="simulated vehicles in each region; not chosen: as many as its training drives allow, at most 3",
    )
    teacher: Path | None = Field(
        None,
        description="model file of the task: training labels that it is far from are left out and counted",
    )
    teacher_limit: float | None = Field(
        None, description="primary metric of a sample beyond which the teacher is far from its label"
    )
    partition: Literal["drive", "data"] = Field(
        "drive",
        description="who has which drives: a region's dealt out in turn, or a vehicle for each region of the data",
    )
    regions: Literal["data", "place"] = Field(
        "data",
        description="regions as the recordings tell, or their names up to the first hyphen (mia-e and mia-w are mia)",
    )
    split_file: Path | None = Field(
        None,
        description="file that says who has which drives (`fedfleet scenarios partition --out`); instead of the above",
    )
    seed: int = Field(1, ge=0, description="seed of the split by whole drives")
    validation: float = Field(0.15, gt=0, lt=1, description="share of drives that the gate is judged on")
    test: float = Field(0.15, ge=0, lt=1, description="share of drives that are opened once, at the end")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.teacher is None) != (self.teacher_limit is None):
            raise ValueError("teacher and teacher_limit come together")
        return self


class Settings(BaseSettings):
    """The whole configuration: the file's top-level keys and sections."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        nested_model_default_partial_update=True,
    )

    fleet: Id = Field("demo", description="name of the fleet, part of every topic")
    task: str = Field(
        "motion_forecast",
        min_length=1,
        description="learning task: an entry point's name, or module:ATTRIBUTE",
    )
    work_dir: Path = Field(Path("out/fleet"), description="folder for everything that commands keep")
    data: DataConfig = Field(default_factory=DataConfig, description="recordings and their split")
    broker: BrokerConfig = Field(default_factory=BrokerConfig, description="the MQTT broker")
    server: ServerSettings = Field(default_factory=ServerSettings, description="the fleet server")
    agent: AgentSettings = Field(default_factory=AgentSettings, description="every vehicle agent")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment before file; ``.env`` and secret files are not read."""
        del dotenv_settings, file_secret_settings
        assert issubclass(settings_cls, Settings)  # noqa: S101 - pydantic calls it on the class itself
        return init_settings, env_settings, InitSettingsSource(settings_cls, settings_cls.file_content())

    @classmethod
    def file_content(cls) -> dict[str, Any]:
        """Return what the file says; nothing where there is none."""
        return {}


def load(file: Path | None, *, task: str | None = None) -> Settings:
    """Return the configuration of ``file`` (``fedfleet.toml`` when it exists and none is named), of ``task`` if given.

    Raises UsageError: file, key, what was expected, what was found; of all mistakes at once (`mistakes.Mistakes`).
    """
    chosen = file or (DEFAULT_FILE if DEFAULT_FILE.is_file() else None)
    told = {} if chosen is None else read_toml(chosen)
    _check_environment(os.environ)

    class _FromFile(Settings):
        @classmethod
        def file_content(cls) -> dict[str, Any]:
            return told

    try:
        settings = _FromFile()
    except ValidationError as error:
        raise of_validation(error, Settings, file=chosen, env=ENV_PREFIX) from error
    return settings.model_copy(update={"task": task}) if task else settings


def _check_environment(environment: Mapping[str, str]) -> None:
    known = sorted(Settings.model_fields)
    lines = []
    for name in sorted(environment):
        first = name.removeprefix(ENV_PREFIX).split("__")[0].lower()
        if name.startswith(ENV_PREFIX) and first not in known:
            hint = meant(first, known).upper().replace(", DID YOU MEAN", ", did you mean")
            expected = ", ".join(each.upper() for each in known)
            lines.append(
                f"environment {name}: unknown section {first.upper()!r}, expected one of {expected}{hint}"
            )
    if lines:
        raise Mistakes(lines)
