"""Who is a member of a closed round, and the fate of every update that came for it."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

from fedfleet.fleet_server.fold import fold_key
from fedfleet.protocol.ids import UpdateId
from fedfleet.protocol.messages import Fate

__all__ = ["Fates", "Membership", "Outcome", "fates", "membership"]

Outcome = Literal["published", "below-quorum", "refused-by-gate"]
"""How a region's round ended: its aggregate was published, there was none, or the gate refused the model."""

Fates: TypeAlias = Mapping[UpdateId, tuple[Fate, str]]
"""Fate and reason of each update; the reason of a folded one is empty."""


_OF_MEMBERS: Mapping[Outcome, tuple[Fate, str]] = {
    "published": ("folded", ""),
    "below-quorum": ("returned", "below-quorum"),
    "refused-by-gate": ("dropped", "refused-by-gate"),
}
_LATE: tuple[Fate, str] = ("returned", "late")


@dataclass(frozen=True)
class Membership:
    """What `closing` commits: the members in fold order, and the stored updates that are none, with the reason.

    `returned` may be sent again by its vehicle (through its residual), `dropped` may not.
    """

    members: tuple[UpdateId, ...]
    returned: Mapping[UpdateId, str]
    dropped: Mapping[UpdateId, str]


def membership(stored: Iterable[UpdateId], *, contributors: Collection[str] | None = None) -> Membership:
    """Return who of the stored updates is in: one per vehicle, of the contributors where there is a list.

    Of several updates of one vehicle (a journal that was replaced in mid-round, or a cheat) the one with the
    smallest id counts, whatever came first; the others are dropped as second-update. Those of vehicles that are
    not contributors are returned as not-a-contributor. A repeated id counts once.
    """
    members: dict[str, UpdateId] = {}
    returned: dict[UpdateId, str] = {}
    dropped: dict[UpdateId, str] = {}
    for id_ in sorted(set(stored), key=fold_key):
        if contributors is not None and id_.vehicle not in contributors:
            returned[id_] = "not-a-contributor"
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
    returned ("below-quorum") when it was void, and dropped ("refused-by-gate") when the gate refused what they made.
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
