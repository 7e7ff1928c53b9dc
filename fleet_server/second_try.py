"""After a refusal: the rest of a round is folded and judged again without those that stand out, in bounded work."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sqlalchemy import Connection

from fedfleet.fleet_server import store_quarantine, store_updates, store_waiting
from fedfleet.fleet_server.config import ServerConfig
from fedfleet.fleet_server.fold import Aggregate
from fedfleet.fleet_server.folding import Folding, set_aside
from fedfleet.fleet_server.model_state import Proposal
from fedfleet.fleet_server.outliers import Suspect, tries
from fedfleet.fleet_server.store_models import Model
from fedfleet.fleet_server.store_quarantine import Quarantined
from fedfleet.fleet_server.store_rounds import Round
from fedfleet.protocol.ids import UpdateId
from fedfleet.protocol.messages import Fate

__all__ = ["REASON", "Judged", "judge", "record"]

REASON = "outlier"
Propose = Callable[[Mapping[str, Aggregate]], Proposal]


@dataclass(frozen=True)
class Judged:
    """What a round made, and who was left out of it for that; nobody in the first try."""

    proposal: Proposal
    aggregates: Mapping[str, Aggregate]
    left_out: tuple[Suspect, ...] = ()
    first: Mapping[str, Aggregate] = field(default_factory=dict)


def judge(folding: Folding, rounds: Mapping[str, Round], model: Model, propose: Propose) -> Judged:
    """Propose what the rounds made; when that is refused, what they make without those that stand out.

    The first try that is accepted counts; when none is, the first refusal.
    """
    aggregates = {region: folding.of(one) for region, one in rounds.items()}
    first = Judged(propose(aggregates), aggregates)
    if first.proposal.verdict.accepted:
        return first
    suspects = folding.suspects(rounds, model)
    for without in tries(suspects):
        again = folding.again(rounds, model, without)
        if not again:
            continue
        found = propose(again)
        if found.verdict.accepted:
            left_out = tuple(one for one in suspects if one.id in without)
            return Judged(found, again, left_out, first=aggregates)
    return first


def record(
    connection: Connection, judged: Judged, rounds: Mapping[str, Round], config: ServerConfig, now_s: float
) -> None:
    """Give who was left out their fate, before the round is settled: dropped for its length alone, else returned.

    What the first fold had set aside and the second one took counts again.
    """
    if not judged.left_out:
        return
    for region, one in rounds.items():
        before = judged.first[region]
        store_waiting.take_back(connection, {*before.dropped, *before.returned}, number=one.plan.round)
        if region in judged.aggregates:
            set_aside(connection, judged.aggregates[region])
    fates: dict[UpdateId, tuple[Fate, str]] = {
        one.id: ("dropped" if one.is_long else "returned", REASON) for one in judged.left_out
    }
    store_updates.set_fates(connection, fates)
    store_updates.count(connection, f"refused:{REASON}", len(fates))
    kept = [
        _quarantined(connection, one, rounds[one.region], now_s) for one in judged.left_out if one.is_long
    ]
    store_quarantine.put_aside(
        connection, kept, keep=config.quarantine_keep, keep_bytes=config.retention.quarantine_bytes
    )


def _quarantined(connection: Connection, one: Suspect, round_: Round, now_s: float) -> Quarantined:
    told = f"round {round_.plan.round}: without update {one.id} the gate accepts; {described(one)}"
    digest, size_bytes = store_updates.sealed(connection, one.id)
    return Quarantined(now_s, REASON, told, one.id.vehicle, "", digest, size_bytes, b"")


def described(one: Suspect) -> str:
    """Return in words how a member stands out."""
    return f"length {one.length:.3g}, {one.ratio:.3g} times the middle one, cosine {one.agreement:.2f} with the others"
