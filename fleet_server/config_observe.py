"""Settings of what a running server shows: its metrics endpoint and its log."""

from typing import Literal

from pydantic import Field

from fedfleet.fleet_server.config_base import Config

__all__ = ["LogsConfig", "MetricsConfig"]


class MetricsConfig(Config):
    """The Prometheus endpoint."""

    port: int = Field(
        default=0, ge=0, le=65_535, description="port of the Prometheus endpoint /metrics; 0: none"
    )
    host: str = Field(
        default="127.0.0.1",
        min_length=1,
        max_length=255,
        description="address it listens on; it has neither password nor encryption, so keep it on loopback",
    )


class LogsConfig(Config):
    """The server's log, on stderr."""

    format: Literal["auto", "json", "text"] = Field(
        default="auto", description="json: one object per line; text: for people; auto: text on a terminal"
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least level that is written; debug has a line for every stored update"
    )
