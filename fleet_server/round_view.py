"""What the store tells about an open round, as the decision about it takes it."""

from collections.abc import Iterable

from sqlalchemy import Connection

from fedfleet.fleet_server import store_updates, store_waiting
from fedfleet.fleet_server.config_rounds import RoundsConfig
from fedfleet.fleet_server.rounds import RoundView
from fedfleet.fleet_server.settlement import too_stale
from fedfleet.fleet_server.store_rounds import Round
from fedfleet.fleet_server.store_vehicles import Presence

__all__ = ["look"]


def look(
    connection: Connection,
    one: Round,
    presences: Iterable[Presence],
    *,
    rounds: RoundsConfig,
    version: int,
    holds_up: bool,
) -> RoundView:
    """Return a region's open round as `rounds.decide` takes it; ``version`` is the newest one.

    ``holds_up``: all other regions are ready, and wait for this one.
    """
    plan = one.plan
    mine = [p for p in presences if p.region == plan.region]
    waiting = store_waiting.waiting(connection, region=plan.region)
    stale = too_stale(waiting, version=version, max_staleness=rounds.max_staleness)
    return RoundView(
        region=plan.region,
        round=plan.round,
        seed=plan.seed,
        share=plan.share,
        quorum=rounds.quorum,
        deadline_s=plan.deadline_s,
        lease_s=plan.lease_s,
        announced_at_s=one.announced_at_s,
        target=one.target,
        stored=store_updates.senders(connection, round_=plan.round, region=plan.region),
        online=frozenset(p.vehicle for p in mine if p.online),
        leases={p.vehicle: p.lease_until_s for p in mine if p.lease_round == plan.round},
        contributors=one.contributors,
        buffer=rounds.buffer if rounds.mode == "buffered" else None,
        waiting=frozenset(each.id.vehicle for each in waiting if each.id not in stale),
        carries=rounds.carries_region,
        holds_up=holds_up,
    )
