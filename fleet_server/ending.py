"""How a region's round ends: frozen, or without a version; every update of it gets its fate."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from functools import partial

from sqlalchemy import Connection

from fedfleet.fleet_server import store_blobs, store_rounds, store_updates, store_waiting
from fedfleet.fleet_server.config import ServerConfig
from fedfleet.fleet_server.fold import fold_key
from fedfleet.fleet_server.pages import page_bytes, settlement_topics
from fedfleet.fleet_server.rounds import State, advance
from fedfleet.fleet_server.settlement import (
    Outcome,
    fates,
    membership,
    superseded,
    too_stale,
)
from fedfleet.fleet_server.store_models import Model
from fedfleet.fleet_server.store_rounds import Round
from fedfleet.protocol.ids import UpdateId
from fedfleet.protocol.messages import Settlement, digest_key

__all__ = ["End", "abandon", "carry", "close", "settle"]


def close(
    connection: Connection, one: Round, *, model: Model, config: ServerConfig, because: str, now_s: float
) -> int:
    """Freeze the members of a region's round, those that were carried into it too; return how many there are.

    A vehicle has one member at most: its newest update, and none where it counts in another region's fold already.
    """
    number, region = one.plan.round, one.plan.region
    elsewhere = store_waiting.counted_elsewhere(connection, region=region)
    found = membership(
        store_updates.pending(connection, round_=number, region=region),
        contributors=one.contributors,
        elsewhere=elsewhere,
    )
    store_updates.set_fates(connection, {id_: ("returned", why) for id_, why in found.returned.items()})
    store_updates.set_fates(connection, {id_: ("dropped", why) for id_, why in found.dropped.items()})
    waiting = store_waiting.waiting(connection, region=region)
    waiting = [each for each in waiting if each.id.vehicle not in elsewhere]
    stale = too_stale(waiting, version=model.version, max_staleness=config.rounds.max_staleness)
    waiting = [each for each in waiting if each.id not in stale]
    older = superseded(waiting, {id_.vehicle: number for id_ in found.members})
    members = sorted((*found.members, *(w.id for w in waiting if w.id not in older)), key=fold_key)
    state = advance(one.state, "close")
    store_rounds.close(connection, one, state=state, members=members, now_s=now_s, reason=because)
    return len(members)


@dataclass(frozen=True)
class End:
    """How a region's round ends: the fate of its members, its final state, the newest version then, and why."""

    outcome: Outcome
    state: State
    version: int
    reason: str = ""


def settle(
    connection: Connection, one: Round, end: End, *, members: Iterable[UpdateId], config: ServerConfig
) -> None:
    """Give the members their fate, return what no fold will take any more, and write the region's settlement."""
    number, region = one.plan.round, one.plan.region
    members = tuple(members)
    gone = _gone(connection, one, end, members=members, config=config)
    refused, spared = store_waiting.left_out(connection, number=number, region=region)
    decided = fates(members, (), outcome=end.outcome, refused=refused, returned={**gone, **spared})
    everyone = {**store_updates.settled(connection, round_=number, region=region), **decided}
    digests = store_updates.digests(connection, everyone)
    keys = {id_: digest_key(digest) for id_, digest in digests.items()}
    message = Settlement(
        task=one.plan.task,
        region=region,
        round=number,
        outcome="published" if end.outcome == "published" else "abandoned",
        reason=end.reason[:300],
        version=end.version,
        closed_at_s=one.closed_at_s or 0.0,
        fates={keys[id_]: fate for id_, (fate, _) in everyone.items()},
        reasons={keys[id_]: why for id_, (_, why) in everyone.items() if why},
        named_by="digest",
    )
    store_rounds.settle(connection, message, decided)
    store_rounds.set_state(connection, number, region, end.state)
    before = number - config.rounds.keep_settlements + 1
    limit_bytes = page_bytes(store_blobs.piece_bytes(connection))
    where = partial(settlement_topics, fleet=config.fleet, limit_bytes=limit_bytes)
    store_rounds.retire_settlements(connection, where, region=region, before=before)


def _gone(
    connection: Connection, one: Round, end: End, *, members: Collection[UpdateId], config: ServerConfig
) -> dict[UpdateId, str]:
    """Return the region's waiting updates that are too old, or that a newer one of their vehicle replaces."""
    number, region, rounds = one.plan.round, one.plan.region, config.rounds
    waiting = store_waiting.waiting(connection, region=region)
    counted: dict[str, int] = {}
    if end.outcome == "published":
        counted = store_waiting.votes(connection, number=number, region=region)
    elif end.outcome == "carried":
        counted = {id_.vehicle: number for id_ in members}
    gone = superseded(waiting, counted)
    gone |= too_stale(waiting, version=end.version, max_staleness=rounds.max_staleness)
    if not rounds.goes_on(number):
        gone = {each.id: gone.get(each.id, "no-more-rounds") for each in waiting}
    return gone


def abandon(
    connection: Connection, one: Round, *, config: ServerConfig, version: int, reason: str, now_s: float
) -> None:
    """End an open or closing round of a region without a result; its updates are returned."""
    members = store_updates.pending(connection, round_=one.plan.round, region=one.plan.region)
    end = End("below-quorum", advance(one.state, "abandon"), version, reason)
    store_rounds.close(connection, one, state=end.state, members=(), now_s=now_s, reason=reason)
    settle(connection, replace(one, closed_at_s=now_s), end, members=members, config=config)


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
    end = End("carried", advance(one.state, "carry"), version, reason)
    store_rounds.close(connection, one, state=end.state, members=(), now_s=now_s, reason=reason)
    settle(connection, replace(one, closed_at_s=now_s), end, members=found.members, config=config)
