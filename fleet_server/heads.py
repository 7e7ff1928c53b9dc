"""Regional heads: one body for all regions, and in each region its own head. Values in, values out; no disk.

A region's model is a whole vector: the shared body, and the tensors of segment "head" from the region's own
aggregates only. The body of every region is the same to the last bit, because parts are encoded one by one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256

import numpy as np
import numpy.typing as npt

from fedfleet.codec.parts import Parts
from fedfleet.codec.settings import Settings
from fedfleet.fleet_server.downlink import Step, step
from fedfleet.fleet_server.fold import Aggregate
from fedfleet.fleet_server.strategies import Strategy

__all__ = ["Moved", "Regional", "begin", "move"]

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Regional:
    """What one region's vehicles get: x float32[M], the downlink's residual float32[M], and what names them.

    ``optimizer`` is the strategy's state over the head's coordinates only; ``head_version`` tells when the head moved.
    """

    vector: Floats
    error: Floats
    optimizer: Mapping[str, npt.NDArray[np.float64]]
    head_version: int
    onnx_sha256: str = ""
    full_sha256: str = ""
    delta_sha256: str | None = None
    canary_sha256: str = ""

    @property
    def vector_sha256(self) -> str:
        """SHA-256 (hex) of the vector's little-endian bytes."""
        return sha256(self.vector.astype("<f4", copy=False).tobytes()).hexdigest()


@dataclass(frozen=True, eq=False)
class Moved:
    """A region's next model: the step of the whole vector, the head's next state, and whether the head has moved."""

    step: Step
    optimizer: Mapping[str, npt.NDArray[np.float64]]
    has_moved: bool


def begin(
    regions: Iterable[str],
    *,
    vector: Floats,
    error: Floats,
    optimizer: Mapping[str, npt.NDArray[np.float64]],
    parts: Parts,
    version: int,
) -> dict[str, Regional]:
    """Return regions that begin with the shared model, its residual, and what the strategy knows of the head."""
    head = parts.coordinates("head")
    own = {name: array[head] if array.size == parts.size else array for name, array in optimizer.items()}
    return {region: Regional(vector, error, own, version) for region in sorted(regions)}


def move(
    one: Regional,
    aggregate: Aggregate | None,
    shared: npt.NDArray[np.float64],
    *,
    strategy: Strategy,
    parts: Parts,
    settings: Settings,
) -> Moved:
    """Return a region's next model: the body by the shared update float64[M], the head by the region's own aggregate.

    Without an aggregate the head keeps its values, its residual and its state, while the body moves on. The error of
    the body must be that of the shared model. Raises DivergedError, or ValueError for an aggregate that is not finite.
    """
    head = parts.coordinates("head")
    update, error, optimizer = shared.copy(), one.error.copy(), one.optimizer
    if aggregate is None:
        update[head] = error[head] = 0
    else:
        own = aggregate.mean[head] * (1.0 if aggregate.steps is None else aggregate.steps)
        optimizer, update[head] = strategy.apply(optimizer or strategy.init(head.size), own)
    made = step(one.vector, error, update, settings, parts=parts)
    if aggregate is None:
        kept = made.error_next.copy()
        kept[head] = one.error[head]
        made = replace(made, error_next=kept)
    return Moved(made, optimizer, has_moved=aggregate is not None)
