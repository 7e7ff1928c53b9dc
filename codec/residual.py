"""Error feedback: what one update does not carry stays for the next (Seide 2014; Stich 2018)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedfleet.codec.payload import decode, encode
from fedfleet.codec.settings import Settings
from fedfleet.protocol.errors import UsageError

__all__ = ["encode_with_feedback"]


def encode_with_feedback(
    delta: npt.NDArray[np.float32],
    residual: npt.NDArray[np.float32],
    settings: Settings,
    *,
    steps: int,
    examples: int,
) -> tuple[bytes, npt.NDArray[np.float32]]:
    """Return the payload of p = delta + residual, and the new residual p - decoded, all float32[M].

    `decoded` comes from the very bytes that are returned, so sender and receiver agree to the last bit.
    Neither input is changed. Raises UsageError as `encode` does, and when the shapes or types differ.
    """
    if residual.shape != delta.shape or residual.dtype != np.float32:
        got = f"{residual.dtype}{list(residual.shape)}"
        raise UsageError(f"residual: expected float32{list(delta.shape)} as the delta, got {got}")
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = delta + residual  # not finite: refused by encode
    data = encode(wanted, settings, steps=steps, examples=examples)
    sent = decode(data, size=wanted.size).delta
    if sent.indices is None:
        wanted -= sent.values
    else:
        wanted[sent.indices] -= sent.values
    return data, wanted
