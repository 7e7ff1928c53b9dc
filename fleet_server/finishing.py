"""The end of a round: what all its regions made becomes the next version, in one transaction."""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection

from fedfleet.codec import payload
from fedfleet.codec.parts import Parts
from fedfleet.fleet_server import store_models, store_rounds, store_updates
from fedfleet.fleet_server.announcements import blob_topics, live_blobs
from fedfleet.fleet_server.config import ServerConfig
from fedfleet.fleet_server.fold import Aggregate, example_weight, fold_ordered
from fedfleet.fleet_server.model_state import Candidate, Proposal
from fedfleet.fleet_server.rounds import Event, State, advance
from fedfleet.fleet_server.settlement import Outcome, fates
from fedfleet.fleet_server.store_models import Model, ReleaseRow
from fedfleet.fleet_server.store_rounds import Round
from fedfleet.models import bundle
from fedfleet.protocol import topics
from fedfleet.protocol.messages import Settlement

__all__ = ["FORGET_AFTER_ROUNDS", "GRACE_ROUNDS", "Finish", "abandon", "fold_region", "publish", "refuse"]

GRACE_ROUNDS = 2
"""Rounds for which a blob that nothing names any more stays, for vehicles that are still fetching it."""
FORGET_AFTER_ROUNDS = 3
"""Rounds after which the bytes of settled updates are forgotten."""


@dataclass(frozen=True)
class Finish:
    """What ends: the rounds of the regions that take part, and the published model that they trained from."""

    rounds: Mapping[str, Round]
    model: Model
    config: ServerConfig
    now_s: float

    @property
    def number(self) -> int:
        """Number of the round."""
        return next(iter(self.rounds.values())).plan.round

    @property
    def task(self) -> str:
        """Id of the task on the wire."""
        return next(iter(self.rounds.values())).plan.task


def fold_region(connection: Connection, one: Round, *, config: ServerConfig, parts: Parts) -> Aggregate:
    """Fold the frozen members of a region's round; the same members give the same bytes, always."""
    members = store_updates.members(connection, round_=one.plan.round, region=one.plan.region)
    size = parts.size
    decoded = (
        (id_, payload.decode(data, size=size, parts=parts), examples) for id_, data, examples in members
    )
    cap = config.example_cap
    weighted = ((id_, each.delta, example_weight(examples, cap=cap)) for id_, each, examples in decoded)
    return fold_ordered(weighted, size=size)


def _settle(
    connection: Connection, one: Round, *, outcome: Outcome, state: State, version: int, reason: str
) -> None:
    number, region = one.plan.round, one.plan.region
    members = store_updates.pending(connection, round_=number, region=region)
    decided = fates(members, (), outcome=outcome, refused={})
    everyone = {**store_updates.settled(connection, round_=number, region=region), **decided}
    message = Settlement(
        task=one.plan.task,
        region=region,
        round=number,
        outcome="published" if outcome == "published" else "abandoned",
        reason=reason[:300],
        version=version,
        closed_at_s=one.closed_at_s or 0.0,
        fates={str(id_): fate for id_, (fate, _) in everyone.items()},
        reasons={str(id_): why for id_, (_, why) in everyone.items() if why},
    )
    store_rounds.settle(connection, message, decided)
    store_rounds.set_state(connection, number, region, state)


def abandon(connection: Connection, one: Round, *, reason: str, now_s: float) -> None:
    """End an open or closing round of a region without a result; its updates are returned."""
    state = advance(one.state, "abandon")
    store_rounds.close(connection, one, state=state, members=(), now_s=now_s, reason=reason)
    closed = Round(**{**vars(one), "closed_at_s": now_s})
    version = one.plan.base_version
    _settle(connection, closed, outcome="below-quorum", state=state, version=version, reason=reason)


def refuse(connection: Connection, finish: Finish, proposal: Proposal) -> None:
    """Record that the gate refused what a round made: model, residual and optimizer stay, its updates are dropped."""
    for one in finish.rounds.values():
        version, reason = finish.model.version, proposal.verdict.reason
        state = _judged(one.state, "refuse")
        _settle(connection, one, outcome="refused-by-gate", state=state, version=version, reason=reason)
    store_updates.count(connection, "gate:refused")
    _retire(connection, finish)


def publish(connection: Connection, finish: Finish, candidate: Candidate, *, canary: bytes) -> Model:
    """Record the next version with all that belongs to it, the settlements and the release; return it."""
    version = finish.model.version + 1
    model = Model(
        version=version,
        vector=candidate.step.x_next,
        error=candidate.step.error_next,
        optimizer=candidate.optimizer,
        onnx_sha256=candidate.onnx_sha256,
        full_sha256=store_models.put_blob(connection, "full", bundle.pack_vector(candidate.step.x_next)),
        delta_sha256=store_models.put_blob(connection, "delta", candidate.step.payload),
        round=finish.number,
        created_at_s=finish.now_s,
    )
    store_models.save_model(connection, model)
    store_models.save_scores(connection, version, candidate.scores)
    release(
        connection, finish.config, version=version, round_=finish.number, canary=canary, now_s=finish.now_s
    )
    for one in finish.rounds.values():
        state = _judged(one.state, "publish")
        _settle(connection, one, outcome="published", state=state, version=version, reason="")
    _retire(connection, finish)
    return model


def release(
    connection: Connection, config: ServerConfig, *, version: int, round_: int, canary: bytes, now_s: float
) -> None:
    """Promote a published version to drive: the policy is that every version which the gate accepts does."""
    before = store_models.newest_release(connection)
    digest = store_models.put_blob(connection, "canary", canary)
    number = before.number + 1 if before else 1
    row = ReleaseRow(number, version, digest, config.release_policy, round_, now_s)
    store_models.add_release(connection, row)


def _judged(state: State, event: Event) -> State:
    return advance(advance(state, "evaluate"), event)


def _retire(connection: Connection, finish: Finish) -> None:
    number, config = finish.number, finish.config
    oldest = number - config.rounds.keep_settlements + 1
    store_rounds.retire_settlements(
        connection,
        before=oldest,
        topic=lambda round_, region: topics.settlement(config.fleet, region, finish.task, round_),
    )
    gone = store_models.retire_blobs(
        connection, live_blobs(connection), round_=number, grace_rounds=GRACE_ROUNDS
    )
    store_models.to_clear(connection, [topic for blob in gone for topic in blob_topics(config.fleet, blob)])
    store_updates.forget_payloads(connection, before_round=number - FORGET_AFTER_ROUNDS)
