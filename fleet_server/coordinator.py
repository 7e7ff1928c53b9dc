"""The coordinator: performs what the pure functions decide about rounds. Everything it knows, it reads from the store.

Killed at any point it goes on: an open round keeps its plan, a closed one is folded again to the same bytes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf

import structlog

from fedfleet.fleet_server import (
    ending,
    finishing,
    second_try,
    store_models,
    store_rounds,
    store_vehicles,
    troubles,
)
from fedfleet.fleet_server.config import ServerConfig
from fedfleet.fleet_server.finishing import Finish
from fedfleet.fleet_server.fold import Aggregate
from fedfleet.fleet_server.folding import Folding
from fedfleet.fleet_server.model_state import Graph, Past, Proposal, propose
from fedfleet.fleet_server.root_training import Roots
from fedfleet.fleet_server.round_clock import Key, Shifts
from fedfleet.fleet_server.round_view import look
from fedfleet.fleet_server.rounds import (
    FINAL,
    Abandon,
    Carry,
    Close,
    Republish,
    RoundView,
    advance,
    decide,
    may_open,
    next_s,
    ready_to_merge,
)
from fedfleet.fleet_server.selection import selected, share, share_of
from fedfleet.fleet_server.stopwatch import Watch, unwatched
from fedfleet.fleet_server.store import Store
from fedfleet.fleet_server.store_models import Model
from fedfleet.fleet_server.store_rounds import Round
from fedfleet.fleet_server.store_vehicles import Presence
from fedfleet.fleet_server.validation import Validation
from fedfleet.protocol.messages import Plan

__all__ = ["Coordinator", "is_over"]

log = structlog.get_logger()

NO_DEADLINE_S = 1e7
POLL_S = 5.0
"""Seconds after which a tick looks into the store although this server has written nothing: commands write too."""
MANY, REST_S, LONGEST_REST_S = 500, 2e-4, 0.5
"""From so many vehicles on there is a pause after a look that found nothing to do: for each vehicle, and at most."""


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
    watch: Watch = unwatched
    roots: Roots | None = None
    update_limit_bytes: int = 0
    _waiting_since_s: dict[tuple[str, ...], float] = field(default_factory=dict)
    _shifts: Shifts = field(default_factory=Shifts)
    _commits: int = -1
    _due_s: float = -inf
    _rests_until_s: float = -inf

    def __post_init__(self) -> None:
        """Fold with what was given."""
        self._folding = Folding(self.store, self.config, self.graph.layout.parts, self.watch, self.roots)

    def tick(self, now_s: float, steady_s: float | None = None) -> bool:
        """Do what is due; tell whether something changed that is to be announced.

        ``steady_s`` is a clock that never jumps (any origin): by it the time of an open round goes on when ``now_s``
        is set anew.
        """
        steady_s = now_s if steady_s is None else steady_s
        if steady_s < self._rests_until_s or (self.store.commits == self._commits and steady_s < self._due_s):
            return False
        self._due_s = steady_s + POLL_S
        changed = self._tick(now_s, steady_s)
        self._commits = -1 if changed else self.store.commits
        return changed

    def _tick(self, now_s: float, steady_s: float) -> bool:
        with self.store.read() as connection:
            current = store_rounds.current(connection)
            presences = store_vehicles.presences(connection)
        self._shifts.keep(_opened(current), now_s=now_s, steady_s=steady_s)
        rounds, regions = self.config.rounds, self.config.regions
        groups = [(region,) for region in regions] if rounds.regions == "apart" else [regions]
        changed = False
        for group in groups:
            mine = {region: current[region] for region in group if region in current}
            if not mine or is_over(mine):
                changed |= self._open(group, mine, presences, now_s=now_s, steady_s=steady_s)
            else:
                changed |= self._progress(mine, presences, now_s=now_s, steady_s=steady_s)
        if changed:
            with self.store.read() as connection:
                current = store_rounds.current(connection)
        changed = self._merge(current, now_s) or changed
        if (
            not changed and len(presences) >= MANY
        ):  # a look costs with the vehicles, and the ingest pays for it
            self._rests_until_s = steady_s + min(REST_S * len(presences), LONGEST_REST_S)
        return changed

    def _merge(self, current: Mapping[str, Round], now_s: float) -> bool:
        apart = self.config.rounds.apart
        if not apart and is_over(current):
            return False
        ready = ready_to_merge({name: one.state for name, one in current.items()}, apart=apart)
        if not ready:
            return False
        buffered = self.config.rounds.mode == "buffered"
        others = tuple(one for one in current.values() if one.state == "open") if buffered else ()
        self._finish({region: current[region] for region in ready}, others, now_s)
        return True

    def _open(
        self,
        group: tuple[str, ...],
        current: Mapping[str, Round],
        presences: list[Presence],
        *,
        now_s: float,
        steady_s: float,
    ) -> bool:
        rounds = self.config.rounds
        number = max((one.plan.round for one in current.values()), default=rounds.left_out) + 1
        opened_s = max((one.plan.opened_at_s for one in current.values()), default=-inf)
        if not rounds.goes_on(number - 1):
            return False
        if opened_s <= now_s < opened_s + rounds.interval_s:
            self._wake(steady_s + opened_s + rounds.interval_s - now_s)
            return False
        online = {
            region: frozenset(p.vehicle for p in presences if p.online and p.region == region)
            for region in group
        }
        since_s = self._waiting_since_s.setdefault(group, steady_s)
        waits = rounds.mode == "sync" or number == 1
        if not may_open(
            {region: len(vehicles) for region, vehicles in online.items()},
            quorum=rounds.quorum if waits else 1,
            waited_s=steady_s - since_s if waits else inf,
            start_wait_s=rounds.start_wait_s,
            given_up={region for region, one in current.items() if one.state in {"abandoned", "carried"}},
        ):
            self._wake(since_s + rounds.start_wait_s if steady_s < since_s + rounds.start_wait_s else inf)
            return False
        del self._waiting_since_s[group]
        with self.store.write() as connection:
            enrolled = store_vehicles.enrolled(connection)
            for region in group:
                one = self._round(number, region, online[region], enrolled.get(region, 0), now_s)
                store_rounds.add_round(connection, one)
                self._shifts.add((number, region), now_s - steady_s)
                log.info(
                    "round open", round=number, region=region, asked=len(one.target), base=self.model.version
                )
        return True

    def _round(self, number: int, region: str, online: frozenset[str], enrolled: int, now_s: float) -> Round:
        rounds = self.config.rounds
        listed = (rounds.contributors or {}).get(region)
        if listed is None:
            part, wanted = share(enrolled, rounds.share_wanted), None
        else:
            part = share_of(listed, rounds.share_wanted, seed=rounds.seed, round_=number)
            wanted = selected(listed, seed=rounds.seed, round_=number, share=part)
        plan = Plan(
            task=self.task,
            region=region,
            round=number,
            revision=0,
            base_version=self.model.version,
            onnx_sha256=self.model.onnx_of(region),
            opened_at_s=now_s,
            deadline_s=now_s + (rounds.deadline_s if listed is None else NO_DEADLINE_S),
            lease_s=rounds.lease_s,
            seed=rounds.seed,
            share=part,
            mode=rounds.mode,
            late=rounds.late,
            next_round_at_s=now_s + rounds.interval_s if rounds.interval_s else 0.0,
            codec=self.config.codec.plan(round(enrolled * part) if wanted is None else len(wanted)),
            training=self.config.training_of(number),
            update_limit_bytes=self.update_limit_bytes,
        )
        target = selected(online, seed=rounds.seed, round_=number, share=part)
        return Round(plan, "open", target, wanted, now_s)

    def _progress(
        self, current: Mapping[str, Round], presences: list[Presence], *, now_s: float, steady_s: float
    ) -> bool:
        changed = False
        for region, one in current.items():
            if one.state == "open":
                self._folding.awaits_root(one, self.model)
                others = [other.state for name, other in current.items() if name != region]
                holds_up = "aggregated" in others and not {"open", "closing"} & set(others)
                version, rounds = self.model.version, self.config.rounds
                with self.store.read() as connection:
                    view = look(connection, one, presences, rounds=rounds, version=version, holds_up=holds_up)
                    is_known = store_models.has_version(connection, one.plan.base_version)
                if not is_known:  # what its vehicles train from cannot be had: nobody could answer
                    reason = f"version {one.plan.base_version}, which it trains from, is not there any more"
                    self._end(one, ending.abandon, reason, now_s)
                    log.warning("round abandoned", round=one.plan.round, region=region, reason=reason)
                    changed = True
                    continue
                changed |= self._act(one, view, now_s=now_s, steady_s=steady_s)
            elif one.state == "closing" or (one.state == "aggregated" and not self._folding.has(one)):
                self._folding.fold(one, self.model, now_s)
                changed = True
        return changed

    def _act(self, one: Round, view: RoundView, *, now_s: float, steady_s: float) -> bool:
        number, region = view.round, view.region
        shift_s = self._shifts.of((number, region))
        self._wake(next_s(view, shift_s + steady_s) - shift_s)
        match decide(view, shift_s + steady_s):
            case Close(because):
                self._close(one, because, now_s)
            case Abandon(reason):
                self._end(one, ending.abandon, reason, now_s)
                log.warning("round abandoned", round=number, region=region, reason=reason, **self._told())
            case Carry(reason):
                self._end(one, ending.carry, reason, now_s)
                log.warning("round carried", round=number, region=region, reason=reason, **self._told())
            case Republish(part):
                plan = one.plan.model_copy(update={"share": part, "revision": one.plan.revision + 1})
                advance(one.state, "republish")
                with self.store.write() as connection:
                    store_rounds.replan(connection, plan, now_s=now_s)
                log.info("round asks more", round=number, region=region, share=round(part, 4))
            case None:
                return False
        return True

    def _told(self) -> dict[str, str]:
        """Return what vehicles say has gone wrong with them, where they do: a round that failed may be due to it."""
        with self.store.read() as connection:
            told = troubles.described(store_vehicles.last_metrics(connection).values())
        return {"vehicles_report": told} if told else {}

    def _wake(self, at_s: float) -> None:
        """Look again at this time of the steady clock at the latest."""
        self._due_s = min(self._due_s, at_s)

    def _end(self, one: Round, how: Callable[..., None], reason: str, now_s: float) -> None:
        version = self.model.version
        with self.store.write() as connection:
            how(connection, one, config=self.config, version=version, reason=reason, now_s=now_s)

    def _close(self, one: Round, because: str, now_s: float) -> None:
        number, region = one.plan.round, one.plan.region
        with self.store.write() as connection:
            count = ending.close(
                connection, one, model=self.model, config=self.config, because=because, now_s=now_s
            )
        log.info("round closing", round=number, region=region, because=because, members=count)
        closed = replace(one, state=advance(one.state, "close"), closed_at_s=now_s)
        self._folding.fold(closed, self.model, now_s)

    def _finish(self, rounds: Mapping[str, Round], others: tuple[Round, ...], now_s: float) -> None:
        finish = Finish(rounds, self.model, self.config, now_s, others, metrics=self.validation.task.metrics)
        with self.watch("gate"):
            judged = second_try.judge(self._folding, rounds, self.model, self._proposer(finish.number))
        proposal = judged.proposal
        candidate = proposal.candidate
        if candidate is None or not proposal.verdict.accepted:
            with self.store.write() as connection:
                finishing.refuse(connection, finish, proposal)
            log.warning("version refused", round=finish.number, reason=proposal.verdict.reason)
        else:
            canaries = self.validation.canaries(candidate.files)
            with self.store.write() as connection:
                second_try.record(connection, judged, rounds, self.config, now_s)
                published = finishing.publish(connection, finish, candidate, canaries=canaries)
            self.model = published  # only now: a commit can fail
            for left in judged.left_out:
                about = {"region": left.region, "vehicle": left.id.vehicle, "update": str(left.id)}
                log.warning("update left out", round=finish.number, **about, why=second_try.described(left))
            version, reason = self.model.version, proposal.verdict.reason
            log.info("version published", round=finish.number, version=version, gate=reason)
        for one in rounds.values():
            self._folding.forget(one)

    def _proposer(self, number: int) -> Callable[[Mapping[str, Aggregate]], Proposal]:
        """Return what judges the aggregates of a round: equal ones give equal proposals."""
        with self.store.read() as connection:
            vehicles = sum(store_vehicles.enrolled(connection).values())
            norms = store_models.recent_norms(connection)
        return partial(
            propose,
            self.model,
            config=self.config,
            graph=self.graph,
            validation=self.validation,
            past=Past(vehicles, norms, number),
        )


def _opened(current: Mapping[str, Round]) -> dict[Key, float]:
    """Return when each open round was opened."""
    return {
        (one.plan.round, region): one.plan.opened_at_s
        for region, one in current.items()
        if one.state == "open"
    }


def is_over(current: Mapping[str, Round]) -> bool:
    """Tell whether every region's round is in a final state."""
    return all(one.state in FINAL for one in current.values())
