"""Which codec setting a vehicle uses: that of its class of link, or the best below it that fits a budget. Pure."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import ceil, log2

import numpy as np
from numpy.typing import NDArray

from fedfleet.codec.settings import EFFORTS, VALUE_MODES, Settings
from fedfleet.protocol.errors import PeerError
from fedfleet.protocol.messages import CodecPlan, Plan

__all__ = ["MOST_BYTES", "Encoded", "best", "budget_for", "most_bytes", "settings_for"]

Floats = NDArray[np.float32]
FINE_TO_COARSE = ("float32", "int8", "int4", "int3", "int2", "sign")
MOST_BYTES = 2**31 - 1
UNTOLD_BYTES = 4_000_000
"""What a server takes that does not say so."""
STEPS_PER_HALVING = 32
"""Densities tried are the plan's times 2^(-j/32): a budget is used up to about 2 %."""
_REACH = 8


@dataclass(frozen=True, eq=False)
class Encoded:
    """A payload, the residual float32[M] that it leaves, and the setting that made it."""

    data: bytes
    residual: Floats
    settings: Settings

    @property
    def left(self) -> float:
        """Energy of what is not sent: the sum of squares of the residual."""
        residual = self.residual.astype(np.float64)
        return float(residual @ residual)


Encode = Callable[[Settings], Encoded]


def settings_for(plan: CodecPlan, link_class: str, *, age: int = 1) -> Settings:
    """Return what the plan asks of vehicles on this class of link, ``age`` rounds after their last update.

    Raises UsageError for a mode that this vehicle's codec does not know.
    """
    if 0 < plan.stateless_after <= age and plan.coordinates == "own":
        return Settings("dense", "stochastic4", plan.stateless_density)
    told = plan.links.get(link_class)
    value = plan.value if told is None or told.value is None else told.value
    density = plan.density if told is None or told.density is None else told.density
    effort = plan.effort if plan.effort in EFFORTS else "full"
    return Settings(plan.index, value, density, plan.layer_floor, effort)


def budget_for(plan: CodecPlan, link_class: str, own_bytes: int | None) -> int | None:
    """Return the smaller of the plan's budget for this class of link and the vehicle's own, in bytes; None: neither."""
    told = plan.links.get(link_class)
    limits = [limit for limit in (told.budget_bytes if told else None, own_bytes) if limit is not None]
    return min(limits, default=None)


def most_bytes(plan: Plan, own_bytes: int | None) -> int:
    """Return the largest sealed update for a plan: what the server takes, or less where the vehicle's own limit is."""
    told = plan.update_limit_bytes or UNTOLD_BYTES
    return min(told, own_bytes or MOST_BYTES)


def best(encode: Encode, settings: Settings, *, size: int, limit_bytes: int | None) -> Encoded:
    """Return the setting's own result when it fits, else the one below it that fits and leaves the least behind.

    Below are: no more bits per value, no more values. For each number of bits the largest density is sought whose
    payload, as encoded, has at most ``limit_bytes``; among these the smallest ``left`` wins, then the fewer bytes.
    ``size`` is M. Deterministic. Raises PeerError ``over-budget`` when nothing fits.
    """
    first = encode(settings)
    if limit_bytes is None or len(first.data) <= limit_bytes:
        return first
    found = [each for each in _each_value(encode, first, size=size, limit_bytes=limit_bytes) if each]
    if not found:
        told = f"update is {len(first.data)} bytes, no setting fits {limit_bytes}"
        raise PeerError("over-budget", told)
    return min(found, key=lambda each: (each.left, len(each.data)))


def _each_value(encode: Encode, first: Encoded, *, size: int, limit_bytes: int) -> Iterator[Encoded | None]:
    wished = first.settings
    if wished.value not in FINE_TO_COARSE:  # stochastic4: it has a density, and no coarser value
        yield _densest(encode, first, size=size, limit_bytes=limit_bytes)
        return
    for value in FINE_TO_COARSE[FINE_TO_COARSE.index(wished.value) :]:
        if value not in VALUE_MODES or (value == "float32" and wished.index == "rice"):
            continue
        whole = first if value == wished.value else encode(replace(wished, value=value))
        if len(whole.data) <= limit_bytes:
            yield whole
        elif wished.index == "rice":
            yield _densest(encode, whole, size=size, limit_bytes=limit_bytes)


def _densest(encode: Encode, whole: Encoded, *, size: int, limit_bytes: int) -> Encoded | None:
    """Return the first density of the falling grid that fits: a guess by proportion, a gallop down, a bisection."""
    lowest = ceil(STEPS_PER_HALVING * log2(max(2.0, whole.settings.density * size)))

    def at(step: int) -> Encoded:
        density = whole.settings.density * 2.0 ** (-step / STEPS_PER_HALVING)
        return encode(replace(whole.settings, density=density))

    above, reach = 0, _REACH
    step = min(lowest, max(1, round(STEPS_PER_HALVING * log2(len(whole.data) / max(1, limit_bytes)))))
    found = at(step)
    while len(found.data) > limit_bytes:
        if step == lowest:
            return None
        above, step, reach = step, min(lowest, step + reach), 2 * reach
        found = at(step)
    below = step
    while below - above > 1:
        middle = (above + below) // 2
        tried = at(middle)
        if len(tried.data) <= limit_bytes:
            below, found = middle, tried
        else:
            above = middle
    return found
