"""The step from one published vector to the next: what is published is exactly what vehicles can compute.

Error feedback as on the uplink: what the payload does not carry waits in the server's own residual.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedfleet.codec.parts import Parts
from fedfleet.codec.payload import decode, encode
from fedfleet.codec.settings import Settings

__all__ = ["DivergedError", "Step", "step"]


class DivergedError(ArithmeticError):
    """The next vector would not be finite in float32. Nothing was changed; the round is refused as by the gate."""


@dataclass(frozen=True, eq=False)
class Step:
    """The codec payload that leads to `x_next` float32[M], and the error float32[M] that stays for the next step."""

    payload: bytes
    x_next: npt.NDArray[np.float32]
    error_next: npt.NDArray[np.float32]


def step(
    x: npt.NDArray[np.float32],
    error: npt.NDArray[np.float32],
    update: npt.NDArray[np.float64],
    settings: Settings,
    *,
    parts: Parts | None = None,
) -> Step:
    """Return the payload of p = error + update, x_next = x + d, error_next = p − d, where d is the decoded payload.

    p is summed in float64 and rounded once; d comes from the very bytes returned; x + d is one dense float32
    addition (`x + delta.dense()`), as on the vehicle. What the parts exclude changes never, and leaves no error.
    No argument is changed. Deterministic.
    Raises DivergedError when p or x_next is not finite, ValueError when shapes or types are not as told.
    """
    if x.ndim != 1 or not x.shape == error.shape == update.shape:
        raise ValueError(
            f"downlink: expected three vectors of one size, got {x.shape}, {error.shape}, {update.shape}"
        )
    if not (x.dtype == error.dtype == np.float32 and update.dtype == np.float64):
        kinds = f"{x.dtype}, {error.dtype}, {update.dtype}"
        raise ValueError(f"downlink: expected float32, float32 and float64, got {kinds}")
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = (error.astype(np.float64) + update).astype(np.float32)
    _check_finite(wanted, "the update")
    if parts is not None:
        wanted = parts.without_excluded(wanted)
    payload = encode(wanted, settings, steps=0, examples=0, parts=parts)
    sent = decode(payload, size=x.size, parts=parts).delta.dense()
    with np.errstate(over="ignore", invalid="ignore"):
        x_next = x + sent
    _check_finite(x_next, "the next vector")
    return Step(payload, x_next, wanted - sent)


def _check_finite(vector: npt.NDArray[np.float32], what: str) -> None:
    wrong = np.flatnonzero(~np.isfinite(vector))
    if wrong.size:
        raise DivergedError(
            f"{what} is {vector[wrong[0]]} at parameter {wrong[0]} of {vector.size} ({wrong.size} such)"
        )
