"""What a vehicle's link to the broker is like: how fast, how far, how often it is gone. Pure: times are arguments."""

from collections import deque
from hashlib import sha256
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["LinkProfile", "Pipe", "cut_until"]

Rate = Annotated[float, Field(gt=0, le=1e9)]
PIECE_S = 0.05
"""So much of a slow link's time a piece takes that goes over it at once."""
MIN_PIECE = 256
MAX_PIECE = 65_536
QUEUE_BYTES = 65_536
"""What a pipe takes over before the sender has to wait, as a socket's buffer does."""


class LinkProfile(BaseModel):
    """A link's rate each way, latency one way, and cuts: every ``cut_every_s`` seconds it is gone for ``cut_s``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    up_kbit_s: Rate | None = Field(
        default=None, description="kilobits per second to the broker; None: no limit"
    )
    down_kbit_s: Rate | None = Field(
        default=None, description="kilobits per second from the broker; None: no limit"
    )
    latency_ms: float = Field(default=0.0, ge=0, le=60_000, description="milliseconds one way")
    cut_every_s: float | None = Field(
        default=None,
        gt=0,
        le=1e7,
        description="seconds from one cut to the next, each vehicle at its own time; None: none",
    )
    cut_s: float = Field(default=0.0, ge=0, le=1e7, description="seconds that a cut lasts")

    @model_validator(mode="after")
    def _cuts_fit(self) -> Self:
        if (self.cut_every_s is None) != (self.cut_s == 0):
            raise ValueError("cut_every_s and cut_s come together")
        if self.cut_every_s is not None and self.cut_s >= self.cut_every_s:
            raise ValueError(f"cut_s {self.cut_s:g}: expected less than cut_every_s {self.cut_every_s:g}")
        return self

    @property
    def is_plain(self) -> bool:
        """Whether it changes nothing."""
        return self == LinkProfile()

    def up(self) -> "Pipe":
        """Return the way to the broker."""
        return Pipe(self.up_kbit_s, self.latency_ms)

    def down(self) -> "Pipe":
        """Return the way from the broker."""
        return Pipe(self.down_kbit_s, self.latency_ms)


class Pipe:
    """One way of a link: bytes come out in order, each when it has been sent at the rate and has travelled."""

    def __init__(self, kbit_s: float | None, latency_ms: float) -> None:
        self._byte_s = 0.0 if kbit_s is None else 8 / (kbit_s * 1000)
        self._latency_s = latency_ms / 1000
        self._free_s = 0.0
        self._queue: deque[tuple[float, bytes]] = deque()
        self._queued = 0

    @property
    def room(self) -> int:
        """How many bytes it takes now; 0 while it is full."""
        if self._queued >= QUEUE_BYTES:
            return 0
        wanted = MAX_PIECE if not self._byte_s else int(PIECE_S / self._byte_s)
        return max(MIN_PIECE, min(MAX_PIECE, wanted))

    @property
    def next_s(self) -> float:
        """When the next bytes come out; infinity when there are none."""
        return self._queue[0][0] if self._queue else float("inf")

    def offer(self, data: bytes, now_s: float) -> None:
        """Put bytes in."""
        self._free_s = max(now_s, self._free_s) + len(data) * self._byte_s
        self._queue.append((self._free_s + self._latency_s, data))
        self._queued += len(data)

    def take(self, now_s: float) -> bytes:
        """Return all bytes that have come out."""
        out = []
        while self._queue and self._queue[0][0] <= now_s:
            out.append(self._queue.popleft()[1])
        data = b"".join(out)
        self._queued -= len(data)
        return data


def cut_until(profile: LinkProfile, name: str, now_s: float) -> tuple[bool, float]:
    """Tell whether the link of this name is cut now, and until when that stays so (seconds of the same clock).

    The name decides where in the period the cut is, so that vehicles are not cut all at once.
    """
    if profile.cut_every_s is None:
        return False, float("inf")
    period_s = profile.cut_every_s
    shift_s = int.from_bytes(sha256(name.encode()).digest()[:6], "big") / 2**48 * period_s
    at_s = (now_s + shift_s) % period_s
    if at_s < profile.cut_s:
        return True, now_s + profile.cut_s - at_s
    return False, now_s + period_s - at_s
