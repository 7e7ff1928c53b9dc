"""Folds the closed rounds of regions, and holds what they made until a version is made of it.

What it holds is in memory only: a restarted server folds the frozen members again, to the same bytes.
"""

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import structlog
from sqlalchemy import Connection

from fedfleet.codec.parts import Parts
from fedfleet.fleet_server import ending, store_rounds, store_updates
from fedfleet.fleet_server.config import ServerConfig
from fedfleet.fleet_server.fold import Aggregate
from fedfleet.fleet_server.outliers import Suspect
from fedfleet.fleet_server.region_fold import LOST
from fedfleet.fleet_server.root_training import Roots
from fedfleet.fleet_server.round_clock import Key
from fedfleet.fleet_server.round_fold import RoundFold
from fedfleet.fleet_server.rounds import advance
from fedfleet.fleet_server.rules import VoidError
from fedfleet.fleet_server.stopwatch import Watch
from fedfleet.fleet_server.store import Store
from fedfleet.fleet_server.store_models import Model
from fedfleet.fleet_server.store_rounds import Round
from fedfleet.models.task import Floats
from fedfleet.protocol.ids import UpdateId
from fedfleet.protocol.messages import Fate

__all__ = ["Folding", "set_aside"]

log = structlog.get_logger()


@dataclass
class Folding:
    """What regions made of their rounds, by round. ``roots`` make the server's own update for rule fltrust."""

    store: Store
    config: ServerConfig
    parts: Parts
    watch: Watch
    roots: Roots | None = None
    _made: dict[Key, Aggregate] = field(default_factory=dict)

    def has(self, one: Round) -> bool:
        """Tell whether this round is folded, and what it made is at hand."""
        return (one.plan.round, one.plan.region) in self._made

    def of(self, one: Round) -> Aggregate:
        """Return what a folded round made."""
        return self._made[one.plan.round, one.plan.region]

    def forget(self, one: Round) -> None:
        """Let go of what a round made: a version was made of it, or refused."""
        del self._made[one.plan.round, one.plan.region]

    def fold(self, one: Round, model: Model, now_s: float) -> None:
        """Fold a closed round, or abandon it when nothing can be made of it; nothing while its root update is awaited.

        ``model`` is the newest one.
        """
        number, region = one.plan.round, one.plan.region
        if self.awaits_root(one, model):
            return
        with self.store.write() as connection:
            if not store_updates.has_members(connection, round_=number, region=region):
                self._abandon(connection, one, model, "no update of a contributor", now_s)
                return
            try:
                root = self._root(one, model)
                with self.watch("fold"):
                    made = self._round(connection, one, model, root).make()
            except VoidError as error:
                set_aside(connection, error)
                self._abandon(connection, one, model, str(error), now_s)
                return
            set_aside(connection, made)
            if lost := [str(id_) for id_, why in made.returned.items() if why == LOST]:
                log.error(
                    "bytes of updates are gone: they go back to their vehicles", round=number, updates=lost
                )
            self._made[number, region] = made
            if one.state == "closing":
                store_rounds.set_state(connection, number, region, advance(one.state, "aggregate"))
        log.info("region folded", round=number, region=region, updates=made.count, examples=made.weight)

    def again(
        self, rounds: Mapping[str, Round], model: Model, without: Collection[UpdateId]
    ) -> dict[str, Aggregate]:
        """Fold rounds again without some of their members; a region of which nothing is left is not among them."""
        found: dict[str, Aggregate] = {}
        with self.store.read() as connection:
            for region, one in rounds.items():
                root = self._root(one, model)
                with suppress(VoidError):
                    found[region] = self._round(connection, one, model, root).make(without)
        return found

    def suspects(self, rounds: Mapping[str, Round], model: Model) -> list[Suspect]:
        """Return how the members of folded rounds stand out, each among those of its region."""
        with self.store.read() as connection:
            each = [self._round(connection, one, model, None).suspects() for one in rounds.values()]
        return [suspect for found in each for suspect in found]

    def _round(self, connection: Connection, one: Round, model: Model, root: Floats | None) -> RoundFold:
        return RoundFold(connection, one, self.config, model, self.parts, root)

    def awaits_root(self, one: Round, model: Model) -> bool:
        """Tell whether the server's own update is still being made; the first question begins it."""
        with suppress(VoidError):
            return self.roots is not None and self._root(one, model) is None
        return False

    def _root(self, one: Round, model: Model) -> Floats | None:
        """Return the server's own update for a round, None while it is not there; VoidError when it failed."""
        if self.roots is None:
            return None
        plan = one.plan
        return self.roots.update(model.vector, plan.training, version=model.version, round_=plan.round)

    def _abandon(self, connection: Connection, one: Round, model: Model, why: str, now_s: float) -> None:
        ending.abandon(connection, one, config=self.config, version=model.version, reason=why, now_s=now_s)
        log.warning("round abandoned", round=one.plan.round, region=one.plan.region, reason=why)


def set_aside(connection: Connection, found: Aggregate | VoidError) -> None:
    """Record the fate of members that the fold left out."""
    apart: dict[Fate, Mapping[UpdateId, str]] = {"dropped": found.dropped, "returned": found.returned}
    for fate, reasons in apart.items():
        store_updates.set_fates(connection, {id_: (fate, why) for id_, why in reasons.items()})
