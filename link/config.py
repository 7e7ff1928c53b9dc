"""The broker's part of the configuration: where it is, who we are there, whether we start it ourselves."""

from ipaddress import ip_address
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedfleet.protocol.chunks import MIN_MESSAGE_BYTES

__all__ = ["BrokerConfig", "is_this_machine"]


def is_this_machine(host: str) -> bool:
    """Whether a host can only be this machine: a name is believed when it is ``localhost``, never looked up."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


class BrokerConfig(BaseModel):
    """How to reach the broker; ``embedded`` says whether our own command starts it (``none``: it runs)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(default="127.0.0.1", min_length=1, description="host name or address of the broker")
    port: int = Field(
        default=1883, ge=0, le=65535, description="TCP port; 0: a free one (embedded broker only)"
    )
    username: str | None = Field(default=None, description="user name; the client id when not given")
    password_file: Path | None = Field(default=None, description="file whose first line is the password")
    ca_file: Path | None = Field(
        default=None, description="PEM of the authority of the broker: switches TLS on"
    )
    cert_file: Path | None = Field(default=None, description="PEM of our certificate (mutual TLS)")
    key_file: Path | None = Field(default=None, description="PEM of the key of our certificate")
    insecure: bool = Field(
        default=False,
        description="connect without TLS although the broker is on another machine: everything, a password too, "
        "can be read and changed on the way",
    )
    keepalive_s: int = Field(default=30, ge=5, le=3600, description="seconds without traffic before a ping")
    mqtt: Literal["auto", "5", "3.1.1"] = Field(
        default="auto", description="version of MQTT; auto: 5 where the broker knows it, else 3.1.1"
    )
    max_message_bytes: int | None = Field(
        default=None,
        ge=MIN_MESSAGE_BYTES,
        description="largest payload of a message, in bytes: models and updates are cut to fit. Without it: as the "
        "broker says (MQTT 5), else 256 kB, and less when the broker ends connections over it",
    )
    embedded: Literal["auto", "mosquitto", "nats", "none"] = Field(
        default="auto", description="start our own broker: which one, or none"
    )

    @model_validator(mode="after")
    def _is_secured(self) -> Self:
        if self.ca_file is None and not self.insecure and not is_this_machine(self.host):
            raise ValueError(
                f"host {self.host} is another machine, and without ca_file nothing is encrypted: set ca_file to the "
                "PEM of the broker's authority, or insecure = true where the network itself is closed to others"
            )
        return self

    @model_validator(mode="after")
    def _files_belong_together(self) -> Self:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file: expected both or neither")
        if self.cert_file is not None and self.ca_file is None:
            raise ValueError("cert_file without ca_file: mutual TLS needs the authority of the broker")
        return self
