"""How one link behaves: who it is to the broker, its limits, its patience."""

import random
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fedfleet.link.config import BrokerConfig
from fedfleet.link.port import MAX_PAYLOAD_BYTES
from fedfleet.link.sieve import Admits
from fedfleet.link.words import why_unusable
from fedfleet.protocol.errors import UsageError

__all__ = ["Backoff", "Options", "options_for"]


@dataclass(frozen=True)
class Backoff:
    """Waiting before attempt n: full jitter, uniform from 0 to ``min(cap_s, base_s · 2ⁿ)`` seconds.

    n starts again at 0 after a connection that lasted ``stable_s`` seconds. There is no last attempt. While another
    client takes over our connections it is ``rival_base_s`` and ``rival_cap_s`` instead, and n is how often.
    """

    base_s: float = 0.25
    cap_s: float = 15.0
    stable_s: float = 2.0
    rival_base_s: float = 1.0
    rival_cap_s: float = 30.0

    def delay_s(self, attempt: int, rng: random.Random) -> float:
        """Return the seconds to wait before attempt ``attempt`` (0 is the first)."""
        return rng.uniform(0.0, min(self.cap_s, self.base_s * 2.0 ** min(attempt, 32)))

    def rival_delay_s(self, times: int, rng: random.Random) -> float:
        """Return the seconds to wait after the connection was taken over ``times`` times."""
        return rng.uniform(0.0, min(self.rival_cap_s, self.rival_base_s * 2.0 ** min(times, 32)))


@dataclass(frozen=True)
class Options:
    """How one link behaves. ``username`` is the client id when None (brokers write ACLs for user names).

    ``is_certified``: a certificate of ours tells the broker who we are, whatever client id we say.

    ``send_window`` and ``receive_window`` bound the QoS-1 messages without acknowledgement each way;
    ``max_pending`` and ``max_pending_bytes`` what ``publish`` takes before LinkFull. ``clean`` gives up the
    session at the broker: for tools that only look, never for a vehicle or a server. ``dial`` makes the connection
    instead of TCP: from host and port and a limit in seconds to a connected socket (OSError when there is none).
    ``admits`` turns messages away before anything is made of them (``Admits``); they are acknowledged.
    ``mqtt`` auto asks in MQTT 5 and goes on in 3.1.1 where the broker does not know it. ``max_message_bytes`` bounds
    the payload of a message; the link lowers it by itself to what the broker takes.
    """

    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = None
    clean: bool = False
    is_certified: bool = False
    keepalive_s: int = 30
    send_window: int = 64
    receive_window: int = 100
    max_pending: int = 1000
    max_pending_bytes: int = 16 * 1024 * 1024
    connect_timeout_s: float = 5.0
    backoff: Backoff = Backoff()
    dial: Callable[[tuple[str, int], float], socket.socket] | None = None
    admits: Admits | None = None
    mqtt: Literal["auto", "5", "3.1.1"] = "auto"
    max_message_bytes: int = MAX_PAYLOAD_BYTES

    def __post_init__(self) -> None:
        for name in ("send_window", "receive_window", "max_pending", "max_pending_bytes", "keepalive_s"):
            if getattr(self, name) < 1:
                raise UsageError(f"link option {name} = {getattr(self, name)}: expected at least 1")
        if self.send_window > 1000:
            raise UsageError(f"link option send_window = {self.send_window}: expected at most 1000")


def options_for(config: BrokerConfig) -> Options:
    """Return the options that a configuration asks for; UsageError names the file that cannot be used."""
    password = None
    if config.password_file is not None:
        password = _first_line(config.password_file)
    return Options(
        username=config.username,
        password=password,
        tls=_context(config),
        is_certified=config.cert_file is not None,
        keepalive_s=config.keepalive_s,
        mqtt=config.mqtt,
        max_message_bytes=config.max_message_bytes or MAX_PAYLOAD_BYTES,
    )


def _first_line(path: Path) -> str:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        told = (error.strerror or str(error)).lower()
        raise UsageError(f"broker.password_file {path}: cannot be read: {told}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"broker.password_file {path}: expected text in UTF-8") from error
    if not lines or not lines[0]:
        raise UsageError(f"broker.password_file {path}: expected the password in the first line, got nothing")
    return lines[0]


def _context(config: BrokerConfig) -> ssl.SSLContext | None:
    if config.ca_file is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(config.ca_file)
    except OSError as error:
        told = why_unusable(error, config.ca_file, holds="certificates of authorities")
        raise UsageError(f"broker.ca_file {config.ca_file}: cannot be used: {told}") from error
    if config.cert_file is not None and config.key_file is not None:
        try:
            context.load_cert_chain(config.cert_file, config.key_file, password=_no_password)
        except OSError as error:
            files = f"broker.cert_file {config.cert_file}, key_file {config.key_file}"
            told = why_unusable(error, config.key_file, holds="a certificate and its key")
            raise UsageError(f"{files}: cannot be used: {told}") from error
    return context


def _no_password() -> bytes:
    """Answer OpenSSL, which else asks at the terminal when a key is encrypted."""
    return b""
