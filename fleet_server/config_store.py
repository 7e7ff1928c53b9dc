"""The store's part of the server's configuration: where it is, how long it keeps what, how fast a vehicle may send."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from fedfleet.fleet_server.config_base import Config
from fedfleet.fleet_server.rate import Rate
from fedfleet.fleet_server.store_postgres import Address
from fedfleet.protocol.errors import UsageError

__all__ = ["RateConfig", "RetentionConfig", "StoreConfig"]


SMALL_PIECE_BYTES = 64_000
"""Pieces of an update where a broker takes no large messages."""


class StoreConfig(Config):
    """Where the store is: by default one SQLite file in the server's folder."""

    url: str = Field(
        default="",
        description="a PostgreSQL database, postgresql://user@host:port/name, without password; empty: SQLite",
    )
    password_file: Path | None = Field(
        default=None, description="file with the database's password; without it libpq's ways, as PGPASSWORD"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.url:
            try:
                Address(self.url).parsed()
            except UsageError as error:
                raise ValueError(str(error)) from error
        elif self.password_file is not None:
            raise ValueError("password_file: needs url")
        return self

    def address(self) -> Address | None:
        """Return the database's address; None for the SQLite file."""
        return Address(self.url, self.password_file) if self.url else None


class RetentionConfig(Config):
    """How long the store keeps what is settled. The audit chain, with a line per update, is kept for ever."""

    payload_rounds: int = Field(
        default=3, ge=1, le=1_000_000, description="rounds for which the bytes of settled updates are kept"
    )
    record_rounds: int = Field(
        default=10_000,
        ge=10,
        le=100_000_000,
        description="rounds for which the records of rounds, updates (what receipts repeat) and settlements are kept",
    )
    score_versions: int = Field(
        default=10_000, ge=10, le=100_000_000, description="model versions whose scores and hashes are kept"
    )
    quarantine_bytes: int = Field(
        default=16_000_000,
        ge=0,
        le=10**12,
        description="bytes that are kept of refused messages, newest first, at most 64,000 of each",
    )

    incomplete_bytes: int = Field(
        default=500_000_000,
        ge=0,
        le=10**13,
        description="bytes that incomplete updates of all vehicles may take on the disk, at least three updates; when "
        "there is no room, a vehicle sends again later",
    )
    incomplete_age_s: float = Field(
        default=900.0,
        gt=0,
        le=1e7,
        description="seconds that an incomplete update waits for its next piece",
    )


class RateConfig(Config):
    """What one vehicle may send; what comes above is dropped before it is looked at, and counted."""

    messages_per_s: float = Field(
        default=100.0, gt=0, le=1e6, description="messages per second of one vehicle, in the long run"
    )
    burst: int = Field(default=1000, ge=1, le=10_000_000, description="messages of one vehicle at once")
    bytes_per_s: float = Field(
        default=4_000_000.0, gt=0, le=1e12, description="bytes per second of one vehicle, in the long run"
    )
    burst_bytes: int = Field(
        default=64_000_000,
        ge=1_000_000,
        le=10**12,
        description="bytes of one vehicle at once; at least two of the largest updates pass",
    )

    def rate(self, *, update_bytes: int = 0) -> Rate:
        """Return the rate of a token bucket that lets an update of this size pass, sent twice."""
        burst_bytes = max(self.burst_bytes, 2 * update_bytes)
        burst = max(self.burst, 2 * update_bytes // SMALL_PIECE_BYTES)
        return Rate(self.messages_per_s, burst, self.bytes_per_s, burst_bytes)
