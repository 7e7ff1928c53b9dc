"""The life of a round of one region: the state table as data, and the decisions while it is open.

Pure: the shell builds a `RoundView` from the store and the vehicles' statuses, and performs what `decide` returns.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from fedfleet.fleet_server.selection import lapsed, selected, widened

__all__ = [
    "TABLE",
    "Abandon",
    "Close",
    "Event",
    "Republish",
    "RoundError",
    "RoundView",
    "State",
    "advance",
    "decide",
    "diagram",
    "may_open",
    "ready_to_merge",
]

State = Literal["open", "closing", "aggregated", "evaluated", "published", "abandoned"]
Event = Literal["republish", "close", "abandon", "aggregate", "evaluate", "publish", "refuse"]

FIRST: State = "open"

TABLE: Mapping[tuple[State, Event], State] = MappingProxyType(
    {
        ("open", "republish"): "open",  # the same round with a larger share
        ("open", "close"): "closing",  # the list of update ids is committed; what commits later is late
        ("open", "abandon"): "abandoned",  # below quorum at the deadline
        ("closing", "aggregate"): "aggregated",  # the region's fold is done
        ("closing", "abandon"): "abandoned",  # no member could be folded
        ("aggregated", "evaluate"): "evaluated",  # merged, and scored on validation drives
        ("evaluated", "publish"): "published",  # the gate accepted
        ("evaluated", "refuse"): "abandoned",  # the gate refused
    }
)
"""What an event does in a state. A pair that is missing here is an error."""


class RoundError(Exception):
    """We erred: the event has no meaning in this state of a round."""


def advance(state: State, event: Event) -> State:
    """Return the state after the event; RoundError naming state and event when the table has no such cell."""
    after = TABLE.get((state, event))
    if after is None:
        known = ", ".join(name for where, name in TABLE if where == state) or "none, it is final"
        raise RoundError(f"event {event!r} in state {state!r} of a round: expected one of: {known}")
    return after


def diagram() -> str:
    """Return the table as a Mermaid `stateDiagram-v2`, ending in a newline."""
    lines = ["stateDiagram-v2", f"    [*] --> {FIRST}"]
    lines += [f"    {state} --> {after}: {event}" for (state, event), after in TABLE.items()]
    left = {state for state, _ in TABLE}
    final = sorted(set(TABLE.values()) - left)
    lines += [f"    {state} --> [*]" for state in final]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Close:
    """Freeze the membership now. `because` is what was reached."""

    because: Literal["target", "contributors", "deadline"]


@dataclass(frozen=True)
class Abandon:
    """End the round without a result; its updates are returned. `reason` says what was missing."""

    reason: str


@dataclass(frozen=True)
class Republish:
    """Publish the plan again, its revision one higher, with this larger share."""

    share: float


@dataclass(frozen=True)
class RoundView:
    """All that decides about one open round of one region. Times are Unix seconds.

    `target` are the vehicles that were online at opening and drawn by the first share: their number is how many
    updates the round wants, whoever sends them. `contributors`, when given, is the exact list instead.
    `announced_at_s` is when the current revision of the plan was published. `online` are the region's enrolled
    vehicles with status ONLINE now. `leases` are the ends of the training leases for this round, by vehicle.
    `stored` are the vehicles with a committed update.
    """

    region: str
    round: int
    seed: int
    share: float
    quorum: int
    deadline_s: float
    lease_s: float
    announced_at_s: float
    target: frozenset[str]
    stored: frozenset[str]
    online: frozenset[str]
    leases: Mapping[str, float]
    contributors: frozenset[str] | None = None

    @property
    def wanted(self) -> int:
        """How many updates close the round before its deadline: the size of the target, at least the quorum."""
        return max(len(self.target), self.quorum)


def decide(view: RoundView, now_s: float) -> Close | Abandon | Republish | None:
    """Say what an open round does now; None: it waits.

    With contributors it closes exactly when all of them are stored, and neither closes nor is abandoned by its
    deadline. Without, it closes as soon as the wanted number of updates is stored, or at the deadline (included)
    with the quorum; below the quorum it is then abandoned. Before that, when vehicles that are still awaited
    cannot make up the wanted number, the plan is published again with a share that brings in others.
    """
    if view.contributors is not None:
        return Close("contributors") if view.contributors <= view.stored else None
    if len(view.stored) >= view.wanted:
        return Close("target")
    if now_s >= view.deadline_s:
        return _at_deadline(view)
    return _more(view, now_s)


def _at_deadline(view: RoundView) -> Close | Abandon:
    if len(view.stored) >= view.quorum:
        return Close("deadline")
    return Abandon(
        f"round {view.round} of {view.region}: {len(view.stored)} updates at the deadline, quorum {view.quorum}"
    )


def _more(view: RoundView, now_s: float) -> Republish | None:
    asked = view.target | selected(view.online, seed=view.seed, round_=view.round, share=view.share)
    gone = lapsed(
        asked - view.stored,
        view.leases,
        announced_at_s=view.announced_at_s,
        lease_s=view.lease_s,
        now_s=now_s,
    )
    missing = view.wanted - len(view.stored | (asked - gone))
    # Those asked in vain stay below any larger share, so only the others can help.
    others = view.online - asked - view.stored
    share = widened(view.share, others, missing=missing, seed=view.seed, round_=view.round)
    return Republish(share) if share > view.share else None


def may_open(online: Mapping[str, int], *, quorum: int, waited_s: float, start_wait_s: float) -> bool:
    """Tell whether the next round opens, in all regions at once; `online` counts vehicles by region.

    It does when every region has its quorum online, or when `start_wait_s` is over and at least one region has.
    """
    enough = [count >= quorum for count in online.values()]
    return any(enough) and (all(enough) or waited_s >= start_wait_s)


def ready_to_merge(states: Mapping[str, State]) -> tuple[str, ...] | None:
    """Return the regions to merge, sorted, or None while a region is open or closing.

    An empty tuple: every region was abandoned, so the round ends without a version.
    Raises RoundError when a region is already past the merge.
    """
    past = {region: state for region, state in states.items() if state in {"evaluated", "published"}}
    if past:
        region, state = min(past.items())
        raise RoundError(f"event 'evaluate' in state {state!r} of a round: {region} is past its merge")
    if any(state in {"open", "closing"} for state in states.values()):
        return None
    return tuple(sorted(region for region, state in states.items() if state == "aggregated"))
