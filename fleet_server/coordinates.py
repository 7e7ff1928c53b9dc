"""The coordinates that a round's plan names by its rule (``codec/common.py``), derived from the store."""

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from fedfleet.codec import payload
from fedfleet.codec.common import common
from fedfleet.codec.delta import Delta
from fedfleet.codec.parts import Parts
from fedfleet.fleet_server import store_blobs, store_chain
from fedfleet.protocol.errors import PeerError
from fedfleet.protocol.messages import Plan

__all__ = ["Coordinates"]

KEPT = 8


class Coordinates:
    """Derives each plan's coordinates once, and remembers those of the last few."""

    def __init__(self, parts: Parts) -> None:
        """Name coordinates of a model that is divided so."""
        self._parts = parts
        self._found: dict[tuple[object, ...], npt.NDArray[np.int64]] = {}

    def of(self, connection: Connection, plan: Plan) -> npt.NDArray[np.int64] | None:
        """Return the plan's coordinates, rising int64[k]; None when each vehicle chooses its own, or sends all.

        Raises PeerError ``round-unknown`` when the delta that they follow from is forgotten.
        """
        codec = plan.codec
        if codec.coordinates != "common":
            return None
        digest = store_chain.step_sha256(connection, plan.base_version, plan.region)
        key = (digest, plan.coordinates_seed, codec.density, codec.seeded)
        if key not in self._found:
            step = None if digest is None else self._step(connection, digest, plan)
            seed = plan.coordinates_seed
            self._found[key] = common(
                step, self._parts, density=codec.density, seeded=codec.seeded, seed=seed
            )
            for old in list(self._found)[:-KEPT]:
                del self._found[old]
        return self._found[key]

    def _step(self, connection: Connection, digest: str, plan: Plan) -> Delta:
        data = store_blobs.find(connection, digest)
        if data is None:
            told = f"round {plan.round}: the step to version {plan.base_version} is forgotten"
            raise PeerError("round-unknown", told)
        return payload.decode(data, size=self._parts.size, parts=self._parts).delta
