"""Who is a member of a closed round, and the fate of every update that came for it."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

from fedfleet.fleet_server.fold import fold_key
from fedfleet.protocol.ids import UpdateId
from fedfleet.protocol.messages import Fate

__all__ = [
    "Fates",
    "Membership",
    "Outcome",
    "Waiting",
    "fates",
    "late_fate",
    "membership",
    "superseded",
    "too_stale",
]

Outcome = Literal["published", "below-quorum", "refused-by-gate", "carried"]
"""How a region's round ended: its aggregate was published, there was none, the gate refused, a later round folds it."""

Fates: TypeAlias = Mapping[UpdateId, tuple[Fate, str]]
"""Fate and reason of each update; the reason of a folded one is empty."""


_OF_MEMBERS: Mapping[Outcome, tuple[Fate, str]] = {
    "published": ("folded", ""),
    "below-quorum": ("returned", "below-quorum"),
    "refused-by-gate": ("returned", "refused-by-gate"),
    "carried": ("carried", ""),
}
_LATE: tuple[Fate, str] = ("returned", "late")
SUPERSEDED = "superseded"


@dataclass(frozen=True)
class Waiting:
    """An update that was carried: it waits for the next round of its region that is folded."""

    id: UpdateId
    round: int
    base_version: int


def too_stale(waiting: Iterable[Waiting], *, version: int, max_staleness: int) -> dict[UpdateId, str]:
    """Return those that are more than `max_staleness` versions behind, with the reason: they are returned."""
    return {one.id: "too-stale" for one in waiting if version - one.base_version > max_staleness}


def superseded(
    waiting: Iterable[Waiting], counted: Mapping[str, int] = MappingProxyType({})
) -> dict[UpdateId, str]:
    """Return the waiting updates that a newer one of the same vehicle replaces, with the reason: they are returned.

    One vehicle has one vote in a fold, however many of its updates were carried: that of the newest round, of
    several for one round the smallest id. `counted` has the round of each vehicle's member of the fold at hand.
    """
    newest = dict(counted)
    kept: dict[str, UpdateId] = {}
    found: dict[UpdateId, str] = {}
    for one in sorted(waiting, key=lambda each: (-each.round, each.id)):
        vehicle = one.id.vehicle
        if one.round > newest.get(vehicle, -1):
            newest[vehicle], kept[vehicle] = one.round, one.id
        elif kept.get(vehicle) != one.id:
            found[one.id] = SUPERSEDED
    return found


def late_fate(
    *, carries: bool, staleness: int, max_staleness: int, has_other: bool, has_newer: bool = False
) -> tuple[Fate, str]:
    """Return fate and reason of an update that comes after its round closed.

    `carries` tells that a later round of the region will fold it. Then an update is dropped when its vehicle
    `has_other` for the same round, so that none counts twice, and returned when it is too many versions behind or
    its vehicle `has_newer`: an update of a later round that waits for the same fold.
    """
    if not carries:
        return _LATE
    if has_other:
        return "dropped", "second-update"
    if staleness > max_staleness:
        return "returned", "too-stale"
    return ("returned", SUPERSEDED) if has_newer else ("carried", "late")


@dataclass(frozen=True)
class Membership:
    """What `closing` commits: the members in fold order, and the stored updates that are none, with the reason.

    `returned` may be sent again by its vehicle (through its residual), `dropped` may not.
    """

    members: tuple[UpdateId, ...]
    returned: Mapping[UpdateId, str]
    dropped: Mapping[UpdateId, str]


def membership(
    stored: Iterable[UpdateId],
    *,
    contributors: Collection[str] | None = None,
    elsewhere: Collection[str] = (),
) -> Membership:
    """Return who of the stored updates is in: one per vehicle, of the contributors where there is a list.

    Of several updates of one vehicle (a journal that was replaced in mid-round, or a cheat) the one with the
    smallest id counts, whatever came first; the others are dropped as second-update. Those of vehicles that are
    not contributors are returned as not-a-contributor, those of vehicles `elsewhere`, which another region's fold
    counts for the same version, as counted-elsewhere. A repeated id counts once.
    """
    members: dict[str, UpdateId] = {}
    returned: dict[UpdateId, str] = {}
    dropped: dict[UpdateId, str] = {}
    for id_ in sorted(set(stored), key=fold_key):
        if contributors is not None and id_.vehicle not in contributors:
            returned[id_] = "not-a-contributor"
        elif id_.vehicle in elsewhere:
            returned[id_] = "counted-elsewhere"
        elif id_.vehicle in members:
            dropped[id_] = "second-update"
        else:
            members[id_.vehicle] = id_
    return Membership(tuple(members.values()), returned, dropped)


def fates(
    members: Iterable[UpdateId],
    late: Iterable[UpdateId],
    *,
    outcome: Outcome,
    refused: Mapping[UpdateId, str],
    returned: Mapping[UpdateId, str] = MappingProxyType({}),
) -> Fates:
    """Return the fate of every update, in fold order.

    `refused` (what the fold, a norm bound or a robust rule would not take, with its reason) is dropped, also when
    it is a member or late: returned, poison would come back. `late` is returned with reason "late", `returned` with
    its own reasons (those of `Membership`), however the round ended. Members are folded when it was published,
    returned when it was void ("below-quorum") or the gate refused what they made ("refused-by-gate"), and carried when
    a later round folds them.
    Raises ValueError for an id that is both member and late.
    """
    members, late = frozenset(members), frozenset(late)
    if both := members & late:
        raise ValueError(f"settlement: {min(both)} is both member and late")
    found = dict.fromkeys(members, _OF_MEMBERS[outcome])
    found |= dict.fromkeys(late, _LATE)
    found.update({id_: ("returned", reason) for id_, reason in returned.items()})
    found.update({id_: ("dropped", reason) for id_, reason in refused.items()})
    return {id_: found[id_] for id_ in sorted(found, key=fold_key)}
