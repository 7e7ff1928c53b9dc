"""The end of a round: what all its regions made becomes the next version, in one transaction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

import structlog
from sqlalchemy import Connection

from fedfleet.fleet_server import (
    store_blobs,
    store_chain,
    store_models,
    store_retention,
    store_rounds,
    store_updates,
    store_waiting,
)
from fedfleet.fleet_server.announcements import blob_topics, live_blobs
from fedfleet.fleet_server.config import ServerConfig
from fedfleet.fleet_server.downlink import Step
from fedfleet.fleet_server.ending import End, carry, settle
from fedfleet.fleet_server.gate import Verdict, judge_release
from fedfleet.fleet_server.heads import Regional
from fedfleet.fleet_server.model_state import Candidate, Proposal
from fedfleet.fleet_server.rounds import Event, advance
from fedfleet.fleet_server.settlement import Outcome
from fedfleet.fleet_server.store_models import Model, ReleaseRow
from fedfleet.fleet_server.store_rounds import Round
from fedfleet.fleet_server.validation import Canary
from fedfleet.models import bundle
from fedfleet.models.task import Metric

__all__ = [
    "GRACE_ROUNDS",
    "Finish",
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


def refuse(connection: Connection, finish: Finish, proposal: Proposal) -> None:
    """Record that the gate refused what a round made: model, residual and optimizer stay, its updates return."""
    _judge(connection, finish, event="refuse", version=finish.model.version, reason=proposal.verdict.reason)
    store_updates.count(connection, "gate:refused")
    _retire(connection, finish)


def publish(
    connection: Connection, finish: Finish, candidate: Candidate, *, canaries: Mapping[str, Canary]
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
    full = store_blobs.put(connection, "full", bundle.pack_vector(made.x_next))
    return full, store_blobs.put(connection, "delta", made.payload)


def _regional(
    connection: Connection, finish: Finish, candidate: Candidate, region: str, canary: Canary
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
        canary_sha256=store_blobs.put_canary(connection, **canary._asdict()),
    )


def _may_drive(connection: Connection, finish: Finish, candidate: Candidate) -> Verdict:
    """Judge by the release policy; the first model drives anyway."""
    released = store_models.newest_release(connection)
    if released is None:
        return Verdict(accepted=True, reason="nothing drives yet")
    first = store_models.first_release(connection)
    return judge_release(
        candidate.scores,
        first=store_models.scores(connection, first.version) if first else {},
        driving=store_models.scores(connection, released.version),
        before=candidate.before,
        metrics=finish.metrics,
        policy=finish.config.release_policy,
    )


def release(
    connection: Connection, config: ServerConfig, *, version: int, round_: int, canary: Canary, now_s: float
) -> None:
    """Promote a published version to drive."""
    before = store_models.newest_release(connection)
    digest = store_blobs.put_canary(connection, **canary._asdict())
    number = before.number + 1 if before else 1
    row = ReleaseRow(number, version, digest, config.release_policy, round_, now_s)
    store_models.add_release(connection, row)


def _judge(connection: Connection, finish: Finish, *, event: Event, version: int, reason: str) -> None:
    """Settle the rounds that the gate has judged, and carry those that end with them."""
    outcome: Outcome = "published" if event == "publish" else "refused-by-gate"
    for one in finish.rounds.values():
        members = store_waiting.claimed(connection, number=one.plan.round, region=one.plan.region)
        end = End(outcome, advance(advance(one.state, "evaluate"), event), version, reason)
        settle(connection, one, end, members=members, config=finish.config)
    for one in finish.others:
        why = f"round {one.plan.round} of {one.plan.region}: version {version} came"
        carry(connection, one, config=finish.config, version=version, reason=why, now_s=finish.now_s)


def _retire(connection: Connection, finish: Finish) -> None:
    number, config = finish.number, finish.config
    gone = store_blobs.retire(connection, live_blobs(connection), round_=number, grace_rounds=GRACE_ROUNDS)
    store_blobs.to_clear(connection, [topic for blob in gone for topic in blob_topics(config.fleet, blob)])
    oldest = min(one.plan.round for one in store_rounds.current(connection).values())
    store_retention.retire(
        connection, config.retention, oldest_round=oldest, newest_version=finish.model.version
    )
