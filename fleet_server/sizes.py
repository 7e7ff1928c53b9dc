"""How many bytes an update of this codec takes for a model of this size: what the limits follow from. Pure."""

from dataclasses import dataclass
from math import ceil, log2

from fedfleet.codec.parts import Part, Parts
from fedfleet.fleet_server.config_codec import CodecConfig
from fedfleet.protocol.errors import UsageError

__all__ = ["MOST_BYTES", "Need", "limit_of", "megabytes", "need"]

MOST_BYTES = 2**31 - 1
"""Largest sealed update that the wire and the store take."""
LEAST_LIMIT_BYTES = 1_000_000
FRAMES_BYTES = (1_000, 2_000, 100)
"""Envelope, manifest, heads and scales: with room to spare, at most, at least."""
BITS = {"sign": 1, "int2": 2, "int3": 3, "int4": 4, "stochastic4": 4, "int8": 8, "float32": 32}
SPARED = 0.5
"""Real updates name their coordinates in down to so much of what a uniform draw would take."""
SLACK = 1.1


@dataclass(frozen=True)
class Need:
    """Bytes of an update: in an ordinary round, and at most. ``coarsest`` is what no setting undercuts."""

    ordinary: int
    most: int
    coarsest: int


def need(codec: CodecConfig, parts: Parts, *, control: bool = False) -> Need:
    """Return what updates take, sealed; with ``control`` each carries a step of the control variate too."""
    values = {codec.value, *(link.value for link in codec.links.values() if link.value is not None)}
    densities = {codec.density, *(link.density for link in codec.links.values() if link.density is not None)}
    widest, density = max(values, key=lambda value: BITS[value]), max(densities)
    ordinary = most = coarsest = 0.0
    for part in parts.coded:
        if part.coding == "dense":
            whole = part.size * _dense_bits(part, codec.value)
            ordinary, coarsest = ordinary + whole, coarsest + whole
            most += part.size * _dense_bits(part, widest)
            continue
        ordinary += _bits(part.size, codec, codec.value, codec.density, spared=SPARED)
        most += _bits(part.size, codec, widest, min(1.0, density * codec.catch_up), spared=1.25)
        if codec.stateless_after:
            most = max(most, 4.5 * part.size)
        coarsest += _bits(part.size, codec, "sign", 1 / part.size, spared=SPARED)
    times = 2 if control else 1
    sizes = (times * bits / 8 for bits in (ordinary, SLACK * most, coarsest))
    return Need(*(ceil(each) + frame for each, frame in zip(sizes, FRAMES_BYTES, strict=True)))


def limit_of(codec: CodecConfig, parts: Parts, *, given: int | None, control: bool = False) -> int:
    """Return the largest sealed update to take: what was given, or what the largest honest one needs.

    Raises UsageError, with one line, when an ordinary update cannot fit, or a link's budget is below any.
    """
    found = need(codec, parts, control=control)
    name = f"codec {codec.index}-{codec.value} of {parts.size:,} parameters"
    for link, told in codec.links.items():
        if told.budget_bytes is not None and told.budget_bytes < found.coarsest:
            raise UsageError(
                f"{name} needs {megabytes(found.coarsest)} per update at least, "
                f"codec.links.{link}.budget_bytes is {megabytes(told.budget_bytes)}"
            )
    if found.ordinary > MOST_BYTES:
        raise UsageError(
            f"{name} needs {megabytes(found.ordinary)} per update, no update is above {megabytes(MOST_BYTES)}"
        )
    if given is None:
        return min(MOST_BYTES, max(LEAST_LIMIT_BYTES, found.most))
    if found.ordinary > given:
        raise UsageError(
            f"{name} needs {megabytes(found.ordinary)} per update, update_limit_bytes is {megabytes(given)}"
        )
    return given


def megabytes(size_bytes: int) -> str:
    """Return a size in MB, in kB below 0.1 MB, as a person reads it."""
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 100_000 else f"{size_bytes / 1e3:.1f} kB"


def _dense_bits(part: Part, value: str) -> int:
    return 32 if value == "float32" or part.is_exact or part.size <= 256 else 8


def _bits(size: int, codec: CodecConfig, value: str, density: float, *, spared: float) -> float:
    if codec.index == "dense":
        is_rare = value == "stochastic4" and spared < 1  # most of its levels are zero, and cost little
        return size * (min(4.0, 5 * density) if is_rare else BITS[value])
    density = min(1.0, density + (codec.layer_floor if codec.index == "rice" else 0.0))
    count = max(1, round(density * size))
    if codec.index == "common":
        return count * BITS[value]
    return count * (BITS[value] + spared * (log2(size / count) + 1.5))
