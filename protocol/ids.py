"""Identities: the alphabet of ids, the shard of a vehicle, and update ids.

An id names a fleet, vehicle, region or task in topics, certificates and messages, so one narrow alphabet serves
all of them: ``[a-z0-9-]{1,36}``.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Annotated

from pydantic import StringConstraints

from fedfleet.protocol.errors import PeerError, UsageError

__all__ = ["SERVER", "SHARDS", "Id", "UpdateId", "check_id", "is_id", "shard", "task_id"]

PATTERN = r"^[a-z0-9-]{1,36}$"
SHARDS = 64
SERVER = "fleet-server"
"""The client id and sender name of the fleet server; no vehicle may use it."""

Id = Annotated[str, StringConstraints(pattern=PATTERN)]
_MATCH = re.compile(r"[a-z0-9-]{1,36}")
_EPOCH_DIGITS = 16
_U32 = 0xFFFFFFFF
_U64 = 0xFFFFFFFFFFFFFFFF


@lru_cache(maxsize=65_536)
def is_id(text: str) -> bool:
    """Tell whether ``text`` is a well-formed id."""
    return _MATCH.fullmatch(text) is not None


def check_id(text: str, what: str) -> str:
    """Return ``text``, or raise UsageError naming ``what`` when it is outside the alphabet of ids."""
    if not is_id(text):
        msg = f"{what} id {text!r}: expected 1 to 36 of a-z, 0-9 and '-'"
        raise UsageError(msg)
    return text


@lru_cache(maxsize=65_536)
def shard(vehicle: str) -> str:
    """Return the vehicle's shard, ``00`` to ``63``: the first two bytes of SHA-256(id), big-endian, mod 64."""
    return f"{int.from_bytes(sha256(vehicle.encode()).digest()[:2], 'big') % SHARDS:02d}"


@dataclass(frozen=True, order=True)
class UpdateId:
    """Names one update for ever: the vehicle, the epoch of its journal and the journal's sequence number.

    The epoch is a random 64-bit number drawn when a journal is created, so that a vehicle whose disk was replaced
    can never repeat an id. Order is the fold order.
    """

    vehicle: str
    epoch: int
    sequence: int

    def __post_init__(self) -> None:
        """Refuse values that do not fit the wire."""
        if not is_id(self.vehicle) or not 0 <= self.epoch <= _U64 or not 0 <= self.sequence <= _U32:
            raise PeerError(
                "malformed-id",
                f"update id {self.vehicle!r}:{self.epoch}:{self.sequence} does not fit the wire",
            )

    def __str__(self) -> str:
        """Return the text form, ``vehicle:epoch (16 hex digits):sequence``."""
        return f"{self.vehicle}:{self.epoch:016x}:{self.sequence}"

    @classmethod
    def parse(cls, text: str) -> "UpdateId":
        """Read the text form back; PeerError when it is malformed."""
        parts = text.split(":")
        try:
            vehicle, epoch, sequence = parts
            number = int(epoch, 16) if len(epoch) == _EPOCH_DIGITS else _U64 + 1
            return cls(vehicle, number, int(sequence))
        except ValueError as error:
            raise PeerError(
                "malformed-id", f"update id {text[:80]!r}: expected vehicle:epoch:sequence"
            ) from error


def task_id(name: str) -> str:
    """Return a task's id on the wire: its Python name with ``-`` for ``_``; UsageError when that is no id."""
    return check_id(name.replace("_", "-"), "task")
