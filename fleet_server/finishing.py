"""The end of a round: what all its regions made becomes the next version, in one transaction."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256

import numpy as np
import numpy.typing as npt
import structlog
from sqlalchemy import Connection

from fedfleet.codec import payload
from fedfleet.codec.parts import Parts
from fedfleet.fleet_server import (
    store_chain,
    store_models,
    store_retention,
    store_rounds,
    store_updates,
    store_waiting,
)
from fedfleet.fleet_server.announcements import blob_topics, live_blobs
from fedfleet.fleet_server.config import ServerConfig
from fedfleet.fleet_server.coordinates import Coordinates
from fedfleet.fleet_server.downlink import Step
from fedfleet.fleet_server.fold import Aggregate, fold_key
from fedfleet.fleet_server.gate import Verdict, judge_release
from fedfleet.fleet_server.heads import Regional
from fedfleet.fleet_server.model_state import Candidate, Proposal
from fedfleet.fleet_server.pages import settlement_topics
from fedfleet.fleet_server.region_fold import Member, Members, fold_members
from fedfleet.fleet_server.rounds import Event, State, advance
from fedfleet.fleet_server.settlement import Outcome, fates, membership, too_stale
from fedfleet.fleet_server.store_models import Model, ReleaseRow
from fedfleet.fleet_server.store_rounds import Round
from fedfleet.models import bundle
from fedfleet.models.task import Metric
from fedfleet.protocol.ids import UpdateId
from fedfleet.protocol.messages import Settlement

__all__ = [
    "GRACE_ROUNDS",
    "Finish",
    "abandon",
    "carry",
    "close",
    "fold_region",
    "publish",
    "refuse",
    "release",
]

log = structlog.get_logger()

GRACE_ROUNDS = 2
"""Rounds for which a blob that nothing names any more stays, for vehicles that are still fetching it."""


@dataclass(frozen=True)
class Finish:
    """What ends: the rounds of the regions that take part, and the published model that the step starts from.

    ``others`` are open rounds that a version ends, because their vehicles are to train from it: they are carried.
    """

    rounds: Mapping[str, Round]
    model: Model
    config: ServerConfig
    now_s: float
    others: tuple[Round, ...] = ()
    metrics: Sequence[Metric] = ()

    @property
    def number(self) -> int:
        """Number of the round, the largest where regions are apart."""
        return max(one.plan.round for one in self.rounds.values())

    @property
    def task(self) -> str:
        """Id of the task on the wire."""
        return next(iter(self.rounds.values())).plan.task


def close(
    connection: Connection, one: Round, *, model: Model, config: ServerConfig, because: str, now_s: float
) -> int:
    """Freeze the members of a region's round, those that were carried into it too; return how many there are."""
    number, region = one.plan.round, one.plan.region
    found = membership(
        store_updates.pending(connection, round_=number, region=region), contributors=one.contributors
    )
    store_updates.set_fates(connection, {id_: ("returned", why) for id_, why in found.returned.items()})
    store_updates.set_fates(connection, {id_: ("dropped", why) for id_, why in found.dropped.items()})
    waiting = store_waiting.waiting(connection, region=region)
    stale = too_stale(waiting, version=model.version, max_staleness=config.rounds.max_staleness)
    members = sorted({*found.members, *(w.id for w in waiting if w.id not in stale)}, key=fold_key)
    state = advance(one.state, "close")
    store_rounds.close(connection, one, state=state, members=members, now_s=now_s, reason=because)
    return len(members)


def fold_region(
    connection: Connection,
    one: Round,
    *,
    config: ServerConfig,
    model: Model,
    parts: Parts,
    root: npt.NDArray[np.float32] | None = None,
) -> Aggregate:
    """Fold the frozen members of a region's round; the same members give the same bytes, always.

    What an update of an older version says is scaled down, by the policy; its weight stays (FedBuff, algorithm 1).
    `root` is the server's own update, for rule fltrust. Raises VoidError when nothing can be made of the members.
    """
    number, region, strategy = one.plan.round, one.plan.region, config.strategy
    bases = store_waiting.bases(connection, number=number, region=region)
    scale, named = config.rounds.scale, Coordinates(parts).of(connection, one.plan)

    def read() -> Iterator[Member]:
        for id_, data, examples in store_updates.members(connection, round_=number, region=region):
            yield Member(id_, data, examples, scale(model.version - bases[id_]))

    has_control = strategy.name == "scaffold"
    members = Members(
        read,
        partial(payload.decode, size=parts.size, parts=parts, common=named, control=has_control),
        size=parts.size,
        example_cap=config.example_cap,
        equal=strategy.strategy().weighting == "equal",
        has_control=has_control,
    )
    momentum = config.training_momentum if strategy.name == "fednova" else None
    rule = strategy.fold_rule(root)
    return fold_members(members, rule, momentum=momentum, draw_for=(one.plan.seed, number))


@dataclass(frozen=True)
class _End:
    """How a region's round ends: the fate of its members, its final state, the newest version then, and why."""

    outcome: Outcome
    state: State
    version: int
    reason: str = ""


def _settle(
    connection: Connection, one: Round, end: _End, *, members: Iterable[UpdateId], config: ServerConfig
) -> None:
    """Give the members their fate, return what has become too old to fold, and write the region's settlement."""
    number, region, rounds = one.plan.round, one.plan.region, config.rounds
    waiting = store_waiting.waiting(connection, region=region)
    stale = too_stale(waiting, version=end.version, max_staleness=rounds.max_staleness)
    if not rounds.goes_on(number):
        stale = {each.id: stale.get(each.id, "no-more-rounds") for each in waiting}
    refused, spared = store_waiting.left_out(connection, number=number, region=region)
    decided = fates(members, (), outcome=end.outcome, refused=refused, returned={**stale, **spared})
    everyone = {**store_updates.settled(connection, round_=number, region=region), **decided}
    message = Settlement(
        task=one.plan.task,
        region=region,
        round=number,
        outcome="published" if end.outcome == "published" else "abandoned",
        reason=end.reason[:300],
        version=end.version,
        closed_at_s=one.closed_at_s or 0.0,
        fates={str(id_): fate for id_, (fate, _) in everyone.items()},
        reasons={str(id_): why for id_, (_, why) in everyone.items() if why},
    )
    store_rounds.settle(connection, message, decided)
    store_rounds.set_state(connection, number, region, end.state)
    before = number - rounds.keep_settlements + 1
    store_rounds.retire_settlements(
        connection, lambda told: settlement_topics(told, fleet=config.fleet), region=region, before=before
    )


def abandon(
    connection: Connection, one: Round, *, config: ServerConfig, version: int, reason: str, now_s: float
) -> None:
    """End an open or closing round of a region without a result; its updates are returned."""
    members = store_updates.pending(connection, round_=one.plan.round, region=one.plan.region)
    end = _End("below-quorum", advance(one.state, "abandon"), version, reason)
    store_rounds.close(connection, one, state=end.state, members=(), now_s=now_s, reason=reason)
    _settle(connection, replace(one, closed_at_s=now_s), end, members=members, config=config)


def carry(
    connection: Connection, one: Round, *, config: ServerConfig, version: int, reason: str, now_s: float
) -> None:
    """End an open round of a region; its next round folds the updates. When there is none, they are returned."""
    number, region = one.plan.round, one.plan.region
    if not config.rounds.goes_on(number):
        abandon(connection, one, config=config, version=version, reason=reason, now_s=now_s)
        return
    found = membership(store_updates.pending(connection, round_=number, region=region))
    store_updates.set_fates(connection, {id_: ("dropped", why) for id_, why in found.dropped.items()})
    end = _End("carried", advance(one.state, "carry"), version, reason)
    store_rounds.close(connection, one, state=end.state, members=(), now_s=now_s, reason=reason)
    _settle(connection, replace(one, closed_at_s=now_s), end, members=found.members, config=config)


def refuse(connection: Connection, finish: Finish, proposal: Proposal) -> None:
    """Record that the gate refused what a round made: model, residual and optimizer stay, its updates are dropped."""
    _judge(connection, finish, event="refuse", version=finish.model.version, reason=proposal.verdict.reason)
    store_updates.count(connection, "gate:refused")
    _retire(connection, finish)


def publish(
    connection: Connection, finish: Finish, candidate: Candidate, *, canaries: Mapping[str, bytes]
) -> Model:
    """Record the next version with all that belongs to it, the settlements and the release; return it.

    `canaries` are by region. With regional heads each region has its blobs, and the shared model none.
    """
    version, is_shared = finish.model.version + 1, not candidate.heads
    regions = {
        region: _regional(connection, finish, candidate, region, canaries[region])
        for region in candidate.heads
    }
    full, delta = (_blobs(connection, candidate.step)) if is_shared else ("", None)
    model = Model(
        version=version,
        vector=candidate.step.x_next,
        error=candidate.step.error_next,
        optimizer=candidate.optimizer,
        onnx_sha256=candidate.onnx_sha256,
        full_sha256=full,
        delta_sha256=delta,
        round=finish.number,
        created_at_s=finish.now_s,
        regions=regions,
        step_norm=candidate.norm,
    )
    store_models.save_model(connection, model)
    store_models.save_control(connection, candidate.optimizer.get("control"))
    for region in regions or (store_chain.SHARED,):
        store_chain.pack(connection, version, region=region)
    store_models.save_scores(connection, version, candidate.scores)
    verdict = _may_drive(connection, finish, candidate)
    if verdict.accepted:
        canary = next(iter(canaries.values()))
        release(
            connection,
            finish.config,
            version=version,
            round_=finish.number,
            canary=canary,
            now_s=finish.now_s,
        )
    else:
        store_updates.count(connection, "release:held")
        log.warning("version not released", version=version, reason=verdict.reason)
    _judge(connection, finish, event="publish", version=version, reason="")
    _retire(connection, finish)
    return model


def _blobs(connection: Connection, made: Step) -> tuple[str, str]:
    """Keep the full vector and the delta of a step; return their digests."""
    full = store_models.put_blob(connection, "full", bundle.pack_vector(made.x_next))
    return full, store_models.put_blob(connection, "delta", made.payload)


def _regional(
    connection: Connection, finish: Finish, candidate: Candidate, region: str, canary: bytes
) -> Regional:
    """Keep the blobs of a region's next model, and return it."""
    moved, version = candidate.heads[region], finish.model.version + 1
    full, delta = _blobs(connection, moved.step)
    return Regional(
        vector=moved.step.x_next,
        error=moved.step.error_next,
        optimizer=moved.optimizer,
        head_version=version if moved.has_moved else finish.model.regions[region].head_version,
        onnx_sha256=sha256(candidate.files[region]).hexdigest(),
        full_sha256=full,
        delta_sha256=delta,
        canary_sha256=store_models.put_blob(connection, "canary", canary),
    )


def _may_drive(connection: Connection, finish: Finish, candidate: Candidate) -> Verdict:
    """Judge by the release policy; the first model drives anyway."""
    released = store_models.newest_release(connection)
    if released is None:
        return Verdict(accepted=True, reason="nothing drives yet")
    return judge_release(
        store_models.scores(connection, released.version),
        candidate.before,
        candidate.scores,
        metrics=finish.metrics,
        policy=finish.config.release_policy,
    )


def release(
    connection: Connection, config: ServerConfig, *, version: int, round_: int, canary: bytes, now_s: float
) -> None:
    """Promote a published version to drive."""
    before = store_models.newest_release(connection)
    digest = store_models.put_blob(connection, "canary", canary)
    number = before.number + 1 if before else 1
    row = ReleaseRow(number, version, digest, config.release_policy, round_, now_s)
    store_models.add_release(connection, row)


def _judge(connection: Connection, finish: Finish, *, event: Event, version: int, reason: str) -> None:
    """Settle the rounds that the gate has judged, and carry those that end with them."""
    outcome: Outcome = "published" if event == "publish" else "refused-by-gate"
    for one in finish.rounds.values():
        members = store_waiting.claimed(connection, number=one.plan.round, region=one.plan.region)
        end = _End(outcome, advance(advance(one.state, "evaluate"), event), version, reason)
        _settle(connection, one, end, members=members, config=finish.config)
    for one in finish.others:
        why = f"round {one.plan.round} of {one.plan.region}: version {version} came"
        carry(connection, one, config=finish.config, version=version, reason=why, now_s=finish.now_s)


def _retire(connection: Connection, finish: Finish) -> None:
    number, config = finish.number, finish.config
    gone = store_models.retire_blobs(
        connection, live_blobs(connection), round_=number, grace_rounds=GRACE_ROUNDS
    )
    store_models.to_clear(connection, [topic for blob in gone for topic in blob_topics(config.fleet, blob)])
    oldest = min(one.plan.round for one in store_rounds.current(connection).values())
    store_retention.retire(
        connection, config.retention, oldest_round=oldest, newest_version=finish.model.version
    )
