"""One TOML file configures every command; the environment overrides it; a mistake is one line.

Precedence: environment (``FEDFLEET__SECTION__KEY``), then the file, then the defaults. Unknown keys are refused.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from fedfleet.fleet_server.config import ServerSettings
from fedfleet.link.config import BrokerConfig
from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.ids import Id
from fedfleet.vehicle_agent.config import AgentSettings

__all__ = ["ENV_PREFIX", "DataConfig", "Settings", "load"]

ENV_PREFIX = "FEDFLEET__"
DEFAULT_FILE = Path("fedfleet.toml")
_SECRET = ("enrolment", "code", "password")


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
        file = settings_cls.model_config.get("toml_file")
        sources: tuple[PydanticBaseSettingsSource, ...] = (init_settings, env_settings)
        return (*sources, TomlConfigSettingsSource(settings_cls)) if file else sources


def load(file: Path | None, *, task: str | None = None) -> Settings:
    """Return the configuration of ``file`` (``fedfleet.toml`` when it exists and none is named), of ``task`` if given.

    Raises UsageError, one line: file, key, what was expected, what was found.
    """
    chosen = file or (DEFAULT_FILE if DEFAULT_FILE.is_file() else None)
    if chosen is not None:
        _check_readable(chosen)
    _check_environment(os.environ)

    class _FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=chosen)

    try:
        settings = _FromFile()
        return settings.model_copy(update={"task": task}) if task else settings
    except ValidationError as error:
        raise UsageError(_line(error, chosen)) from error


def _check_readable(file: Path) -> None:
    try:
        tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"{file}: no such configuration file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{file}: not TOML: {error}") from error


def _check_environment(environment: Mapping[str, str]) -> None:
    for name in environment:
        if name.startswith(ENV_PREFIX):
            first = name.removeprefix(ENV_PREFIX).split("__")[0].lower()
            if first not in Settings.model_fields:
                known = ", ".join(sorted(field.upper() for field in Settings.model_fields))
                raise UsageError(
                    f"environment {name}: unknown section {first.upper()!r}, expected one of {known}"
                )


def _line(error: ValidationError, file: Path | None) -> str:
    first: Mapping[str, Any] = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    where = file or "configuration"
    variable = ENV_PREFIX + "__".join(str(part) for part in first["loc"]).upper()
    if variable in os.environ:
        where = f"environment {variable}"
    if first["type"] == "extra_forbidden":
        return f"{where}: {key}: unknown key"
    got = "nothing" if first["type"] == "missing" else repr(first["input"])[:80]
    if any(word in key for word in _SECRET):
        got = "a value that is not shown"
    return f"{where}: {key}: expected: {first['msg']}; got {got}"
