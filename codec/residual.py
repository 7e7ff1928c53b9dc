"""Error feedback: what one update does not carry stays for the next (Seide 2014; Stich 2018)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fedfleet.codec.parts import Parts
from fedfleet.codec.payload import decode, encode
from fedfleet.codec.settings import Settings
from fedfleet.protocol.errors import UsageError

__all__ = ["Feedback", "encode_with_feedback"]


@dataclass(frozen=True)
class Feedback:
    """What a vehicle does that takes part again, by its age: the rounds since its last update, 1 for every round.

    `keep` is the share of the residual that enters the update, from 0 (no error feedback) to 1; at more than
    `drop_after` rounds nothing of it does (0: it never grows too old). With `catch_up` F a vehicle sends as much as it
    would have sent in the rounds it missed: its density is multiplied by its age, at most by F. One that missed rounds
    trains from where the share `step_ahead` of its residual would have brought the model (Xu et al. 2021, "Step-ahead
    error feedback"), for what it holds back was learned from an older one. Raises UsageError for a number out of range.
    """

    keep: float = 1.0
    drop_after: int = 0
    catch_up: int = 1
    step_ahead: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.keep) and 0.0 <= self.keep <= 1.0):
            raise UsageError(f"feedback keep: expected a share from 0 to 1, got {self.keep}")
        if not (math.isfinite(self.step_ahead) and 0.0 <= self.step_ahead <= 1.0):
            raise UsageError(f"feedback step_ahead: expected a share from 0 to 1, got {self.step_ahead}")
        if self.drop_after < 0:
            raise UsageError(f"feedback drop_after: expected 0 or more rounds, got {self.drop_after}")
        if self.catch_up < 1:
            raise UsageError(f"feedback catch_up: expected a factor of 1 or more, got {self.catch_up}")

    def entering(self, residual: npt.NDArray[np.float32], *, age: int) -> npt.NDArray[np.float32]:
        """Return what of the residual float32[M] enters an update `age` rounds after the one that left it.

        A new array, or the residual itself when all of it enters. Raises UsageError for an age below 0.
        """
        _check_age(age)
        if self.keep == 0.0 or (self.drop_after and age > self.drop_after):
            return np.zeros_like(residual)
        return residual if self.keep == 1.0 else residual * np.float32(self.keep)

    def start(
        self, base: npt.NDArray[np.float32], residual: npt.NDArray[np.float32], *, age: int
    ) -> npt.NDArray[np.float32]:
        """Return where a vehicle trains from, float32[M], that comes with this residual to this base float32[M].

        The base itself, or a new array for who missed rounds. Raises UsageError for an age below 0.
        """
        _check_age(age)
        if age <= 1 or self.step_ahead == 0.0:
            return base
        return base + np.float32(self.step_ahead) * self.entering(residual, age=age)

    def settings(self, wished: Settings, *, age: int) -> Settings:
        """Return the settings of an update `age` rounds after the last, by index "rice" of more density if need be.

        Other index modes have a density that is not the vehicle's to choose. Raises UsageError for an age below 0.
        """
        _check_age(age)
        factor = min(max(age, 1), self.catch_up)
        if factor == 1 or wished.index != "rice":
            return wished
        return replace(wished, density=min(1.0, factor * wished.density))


def _check_age(age: int) -> None:
    if age < 0:
        raise UsageError(f"feedback: expected an age of 0 or more rounds, got {age}")


def encode_with_feedback(  # noqa: PLR0913 (as `encode`; all but the first three by keyword)
    delta: npt.NDArray[np.float32],
    residual: npt.NDArray[np.float32],
    settings: Settings,
    *,
    steps: int,
    examples: int,
    parts: Parts | None = None,
    common: npt.NDArray[np.int64] | None = None,
    seed: int | None = None,
    control: npt.NDArray[np.float32] | None = None,
) -> tuple[bytes, npt.NDArray[np.float32]]:
    """Return the payload of p = delta + residual, and the new residual p - decoded, all float32[M].

    `decoded` comes from the very bytes that are returned, so sender and receiver agree to the last bit. What is
    excluded by the parts is never sent and stays out of the residual; the others as in `encode`. A stateless value
    mode leaves nothing behind: its error has mean zero, and feeding it back would make it grow.
    Neither input is changed. Raises UsageError as `encode` does, and when the shapes or types differ.
    """
    if residual.shape != delta.shape or residual.dtype != np.float32:
        got = f"{residual.dtype}{list(residual.shape)}"
        raise UsageError(f"residual: expected float32{list(delta.shape)} as the delta, got {got}")
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = delta + residual  # not finite: refused by encode
    if parts is not None:
        wanted = parts.without_excluded(wanted)
    data = encode(
        wanted,
        settings,
        steps=steps,
        examples=examples,
        parts=parts,
        common=common,
        seed=seed,
        control=control,
    )
    if settings.is_stateless:
        return data, np.zeros_like(wanted)
    named = common if settings.index == "common" else None
    sent = decode(data, size=wanted.size, parts=parts, common=named, control=control is not None).delta
    if sent.indices is None:
        wanted -= sent.values
    else:
        wanted[sent.indices] -= sent.values
    return data, wanted
