"""The coordinator: performs what the pure functions decide about rounds. Everything it knows, it reads from the store.

Killed at any point it goes on: an open round keeps its plan, a closed one is folded again to the same bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import structlog
from sqlalchemy import Connection

from fedfleet.fleet_server import finishing, store_rounds, store_updates, store_vehicles
from fedfleet.fleet_server.config import ServerConfig
from fedfleet.fleet_server.finishing import Finish
from fedfleet.fleet_server.fold import Aggregate
from fedfleet.fleet_server.model_state import Graph, propose
from fedfleet.fleet_server.rounds import (
    Abandon,
    Close,
    Republish,
    RoundView,
    advance,
    decide,
    may_open,
    ready_to_merge,
)
from fedfleet.fleet_server.selection import selected, share
from fedfleet.fleet_server.settlement import membership
from fedfleet.fleet_server.store import Store
from fedfleet.fleet_server.store_models import Model
from fedfleet.fleet_server.store_rounds import Round
from fedfleet.fleet_server.store_vehicles import Presence
from fedfleet.fleet_server.validation import Validation
from fedfleet.protocol.messages import Plan

__all__ = ["Coordinator", "is_over"]

log = structlog.get_logger()

NO_DEADLINE_S = 1e7


@dataclass
class Coordinator:
    """Runs the rounds of one task. ``model`` is the newest published one, ``task`` its id on the wire.

    ``tick`` is called again and again; between two calls only the store changes.
    """

    store: Store
    config: ServerConfig
    task: str
    graph: Graph
    validation: Validation
    model: Model
    _aggregates: dict[tuple[int, str], Aggregate] = field(default_factory=dict)
    _waiting_since_s: float | None = None

    def tick(self, now_s: float) -> bool:
        """Do what is due; tell whether something changed that is to be announced."""
        with self.store.read() as connection:
            current = store_rounds.current(connection)
            presences = store_vehicles.presences(connection)
        if not current or is_over(current):
            return self._open(current, presences, now_s)
        changed = self._progress(current, presences, now_s)
        if changed:
            with self.store.read() as connection:
                current = store_rounds.current(connection)
        ready = (
            None if is_over(current) else ready_to_merge({name: one.state for name, one in current.items()})
        )
        if ready:
            self._finish({region: current[region] for region in ready}, now_s)
            changed = True
        return changed

    def _open(self, current: Mapping[str, Round], presences: list[Presence], now_s: float) -> bool:
        rounds = self.config.rounds
        number = max((one.plan.round for one in current.values()), default=0) + 1
        if rounds.total and number > rounds.total:
            return False
        if self._waiting_since_s is None:
            self._waiting_since_s = now_s
        online = {
            region: frozenset(p.vehicle for p in presences if p.online and p.region == region)
            for region in self.config.regions
        }
        counts = {region: len(vehicles) for region, vehicles in online.items()}
        waited_s = now_s - self._waiting_since_s
        if not may_open(counts, quorum=rounds.quorum, waited_s=waited_s, start_wait_s=rounds.start_wait_s):
            return False
        self._waiting_since_s = None
        with self.store.write() as connection:
            enrolled = store_vehicles.enrolled(connection)
            for region in self.config.regions:
                one = self._round(number, region, online[region], enrolled.get(region, 0), now_s)
                store_rounds.add_round(connection, one)
                log.info(
                    "round open", round=number, region=region, asked=len(one.target), base=self.model.version
                )
        return True

    def _round(self, number: int, region: str, online: frozenset[str], enrolled: int, now_s: float) -> Round:
        rounds = self.config.rounds
        listed = (rounds.contributors or {}).get(region)
        part = 1.0 if listed is not None else share(enrolled, rounds.share_wanted)
        plan = Plan(
            task=self.task,
            region=region,
            round=number,
            revision=0,
            base_version=self.model.version,
            onnx_sha256=self.model.onnx_sha256,
            opened_at_s=now_s,
            deadline_s=now_s + (rounds.deadline_s if listed is None else NO_DEADLINE_S),
            lease_s=rounds.lease_s,
            seed=rounds.seed,
            share=part,
            codec=self.config.codec.plan(),
            training=self.config.training_of(number),
        )
        target = selected(online, seed=rounds.seed, round_=number, share=part)
        return Round(plan, "open", target, None if listed is None else frozenset(listed), now_s)

    def _progress(self, current: Mapping[str, Round], presences: list[Presence], now_s: float) -> bool:
        changed = False
        for region, one in current.items():
            if one.state == "open":
                with self.store.read() as connection:
                    view = self._view(connection, one, presences)
                changed |= self._act(one, view, now_s)
            elif one.state == "closing" or (
                one.state == "aggregated" and (one.plan.round, region) not in self._aggregates
            ):
                self._aggregate(one, now_s)
                changed = True
        return changed

    def _view(self, connection: Connection, one: Round, presences: list[Presence]) -> RoundView:
        plan = one.plan
        mine = [p for p in presences if p.region == plan.region]
        stored = store_updates.pending(connection, round_=plan.round, region=plan.region)
        return RoundView(
            region=plan.region,
            round=plan.round,
            seed=plan.seed,
            share=plan.share,
            quorum=self.config.rounds.quorum,
            deadline_s=plan.deadline_s,
            lease_s=plan.lease_s,
            announced_at_s=one.announced_at_s,
            target=one.target,
            stored=frozenset(id_.vehicle for id_ in stored),
            online=frozenset(p.vehicle for p in mine if p.online),
            leases={p.vehicle: p.lease_until_s for p in mine if p.lease_round == plan.round},
            contributors=one.contributors,
        )

    def _act(self, one: Round, view: RoundView, now_s: float) -> bool:
        match decide(view, now_s):
            case Close(because):
                self._close(one, because, now_s)
            case Abandon(reason):
                with self.store.write() as connection:
                    finishing.abandon(connection, one, reason=reason, now_s=now_s)
                log.warning("round abandoned", round=view.round, region=view.region, reason=reason)
            case Republish(part):
                plan = one.plan.model_copy(update={"share": part, "revision": one.plan.revision + 1})
                advance(one.state, "republish")
                with self.store.write() as connection:
                    store_rounds.replan(connection, plan, now_s=now_s)
                log.info("round asks more", round=view.round, region=view.region, share=round(part, 4))
            case None:
                return False
        return True

    def _close(self, one: Round, because: str, now_s: float) -> None:
        number, region = one.plan.round, one.plan.region
        with self.store.write() as connection:
            stored = store_updates.pending(connection, round_=number, region=region)
            found = membership(stored, contributors=one.contributors)
            store_updates.set_fates(
                connection, {id_: ("returned", why) for id_, why in found.returned.items()}
            )
            store_updates.set_fates(connection, {id_: ("dropped", why) for id_, why in found.dropped.items()})
            state = advance(one.state, "close")
            store_rounds.close(
                connection, one, state=state, members=found.members, now_s=now_s, reason=because
            )
        log.info("round closing", round=number, region=region, because=because, members=len(found.members))
        self._aggregate(Round(**{**vars(one), "state": state, "closed_at_s": now_s}), now_s)

    def _aggregate(self, one: Round, now_s: float) -> None:
        """Fold a closed region; a restarted server folds again what it had in memory only."""
        number, region = one.plan.round, one.plan.region
        with self.store.write() as connection:
            if not store_updates.has_members(connection, round_=number, region=region):
                finishing.abandon(connection, one, reason="no update of a contributor", now_s=now_s)
                return
            parts = self.graph.layout.parts
            aggregate = finishing.fold_region(connection, one, config=self.config, parts=parts)
            self._aggregates[number, region] = aggregate
            if one.state == "closing":
                store_rounds.set_state(connection, number, region, advance(one.state, "aggregate"))
        log.info(
            "region folded", round=number, region=region, updates=aggregate.count, examples=aggregate.weight
        )

    def _finish(self, rounds: Mapping[str, Round], now_s: float) -> None:
        finish = Finish(rounds, self.model, self.config, now_s)
        aggregates = {region: self._aggregates[finish.number, region] for region in rounds}
        proposal = propose(
            self.model, aggregates, config=self.config, graph=self.graph, validation=self.validation
        )
        candidate = proposal.candidate
        if candidate is None or not proposal.verdict.accepted:
            with self.store.write() as connection:
                finishing.refuse(connection, finish, proposal)
            log.warning("version refused", round=finish.number, reason=proposal.verdict.reason)
        else:
            canary = self.validation.canary(candidate.onnx)
            with self.store.write() as connection:
                self.model = finishing.publish(connection, finish, candidate, canary=canary)
            version, reason = self.model.version, proposal.verdict.reason
            log.info("version published", round=finish.number, version=version, gate=reason)
        self._aggregates.clear()


def is_over(current: Mapping[str, Round]) -> bool:
    """Tell whether every region's round is in a final state."""
    return all(one.state in {"published", "abandoned"} for one in current.values())
