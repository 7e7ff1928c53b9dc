"""The fold of a region's closed round, from the rows of the store: all of its members, or without some of them."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from fedfleet.codec import payload
from fedfleet.codec.parts import Parts
from fedfleet.fleet_server import outliers, store_norms, store_updates, store_waiting
from fedfleet.fleet_server.config import ServerConfig
from fedfleet.fleet_server.coordinates import Coordinates
from fedfleet.fleet_server.fold import Aggregate
from fedfleet.fleet_server.outliers import Suspect
from fedfleet.fleet_server.region_fold import Member, Members, fold_members
from fedfleet.fleet_server.store_models import Model
from fedfleet.fleet_server.store_rounds import Round
from fedfleet.protocol.ids import UpdateId

__all__ = ["RoundFold"]


@dataclass(frozen=True)
class RoundFold:
    """A closed round of a region and all that its fold depends on: the same members give the same bytes, always.

    What an update of an older version says is scaled down, by the policy; its weight stays (FedBuff, algorithm 1).
    `root` is the server's own update, for rule fltrust.
    """

    connection: Connection
    one: Round
    config: ServerConfig
    model: Model
    parts: Parts
    root: npt.NDArray[np.float32] | None = None

    def make(self, without: Collection[UpdateId] = ()) -> Aggregate:
        """Fold the frozen members, without some; raises VoidError when nothing can be made of them."""
        plan, strategy = self.one.plan, self.config.strategy
        momentum = self.config.training_momentum if strategy.name == "fednova" else None
        usual = store_norms.recent(self.connection, plan.codec).usual
        rule = strategy.fold_rule(self.root, usual=usual, measured=self.parts.is_measured)
        members = self._members(without)
        return fold_members(members, rule, momentum=momentum, draw_for=(plan.seed, plan.round))

    def suspects(self) -> list[Suspect]:
        """Return how each member stands out among the others of its region."""
        return outliers.suspects(
            self._members(()),
            size=self.parts.size,
            region=self.one.plan.region,
            measured=self.parts.is_measured,
        )

    def _members(self, without: Collection[UpdateId]) -> Members:
        connection, parts, model = self.connection, self.parts, self.model
        number, region = self.one.plan.round, self.one.plan.region
        bases = store_waiting.bases(connection, number=number, region=region)
        scale, named = self.config.rounds.scale, Coordinates(parts).of(connection, self.one.plan)

        def read() -> Iterator[Member]:
            for id_, data, examples in store_updates.members(connection, round_=number, region=region):
                if id_ not in without:
                    yield Member(id_, data, examples, scale(model.version - bases[id_]))

        has_control = self.config.strategy.name == "scaffold"
        return Members(
            read,
            partial(payload.decode, size=parts.size, parts=parts, common=named, control=has_control),
            size=parts.size,
            example_cap=self.config.example_cap,
            equal=self.config.strategy.strategy().weighting == "equal",
            has_control=has_control,
        )
