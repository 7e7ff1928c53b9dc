"""The life of a round of one region: the state table as data, and the decisions while it is open.

Pure: the shell builds a `RoundView` from the store and the vehicles' statuses, and performs what `decide` returns.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import inf
from types import MappingProxyType
from typing import Literal

from fedfleet.fleet_server.selection import lapsed, selected, widened

__all__ = [
    "FINAL",
    "RUNNING",
    "TABLE",
    "Abandon",
    "Carry",
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
    "next_s",
    "ready_to_merge",
]

State = Literal["open", "closing", "aggregated", "evaluated", "published", "abandoned", "carried"]
Event = Literal["republish", "close", "abandon", "carry", "aggregate", "evaluate", "publish", "refuse"]

FIRST: State = "open"

TABLE: Mapping[tuple[State, Event], State] = MappingProxyType(
    {
        ("open", "republish"): "open",  # the same round with a larger share
        ("open", "close"): "closing",  # the list of update ids is committed; what commits later is late
        ("open", "abandon"): "abandoned",  # below quorum at the deadline: its updates are returned
        ("open", "carry"): "carried",  # no result: its updates wait for a later round of the region
        ("closing", "aggregate"): "aggregated",  # the region's fold is done
        ("closing", "abandon"): "abandoned",  # no member could be folded
        ("aggregated", "evaluate"): "evaluated",  # merged, and scored on validation drives
        ("evaluated", "publish"): "published",  # the gate accepted
        ("evaluated", "refuse"): "abandoned",  # the gate refused
    }
)
"""What an event does in a state. A pair that is missing here is an error."""

FINAL: frozenset[State] = frozenset(TABLE.values()) - {state for state, _ in TABLE}
"""The states in which a region's round is over."""
RUNNING: frozenset[State] = frozenset(state for state, _ in TABLE)
"""All others."""


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
    lines += [f"    {state} --> [*]" for state in sorted(FINAL)]
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
class Carry:
    """End the round without a result; a later round of the region folds its updates. `reason` says why."""

    reason: str


@dataclass(frozen=True)
class Republish:
    """Publish the plan again, its revision one higher, with this larger share."""

    share: float


@dataclass(frozen=True)
class RoundView:
    """All that decides about one open round of one region. Times are Unix seconds.

    `target` are the vehicles that were online at opening and drawn by the first share: their number is how many
    updates the round wants, whoever sends them. `contributors`, when given, is the exact list instead, `buffer` the
    number of updates of a buffered round. `announced_at_s` is when the current revision of the plan was published.
    `online` are the region's enrolled vehicles with status ONLINE now. `leases` are the ends of the training leases
    for this round, by vehicle. `stored` are the vehicles with a committed update for this round, `waiting` those with
    one of an earlier round that this one folds too; a vehicle counts once. `carries` is the policy
    below the quorum: carry, else abandon. `holds_up` tells that other regions wait for nothing but this round.
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
    buffer: int | None = None
    waiting: frozenset[str] = frozenset()
    carries: bool = False
    holds_up: bool = False

    @property
    def wanted(self) -> int:
        """How many updates close the round before its deadline: the buffer, else the target, at least the quorum."""
        return max(len(self.target), self.quorum) if self.buffer is None else self.buffer

    @property
    def counted(self) -> frozenset[str]:
        """Whose updates count towards what is wanted; in a buffered round those that wait count too."""
        return self.stored if self.buffer is None else self.foldable

    @property
    def foldable(self) -> frozenset[str]:
        """Whose updates the round would fold now: one of each vehicle."""
        return self.stored | self.waiting


def decide(view: RoundView, now_s: float) -> Close | Abandon | Carry | Republish | None:
    """Say what an open round does now; None: it waits.

    With contributors it closes exactly when all of them are stored, and neither closes nor is abandoned by its
    deadline. Without, it closes as soon as the wanted number of updates is stored, or at the deadline (included)
    with the quorum; below the quorum it is then abandoned or carried. Before that, when vehicles that are still
    awaited cannot make up the wanted number, the plan is published again with a share that brings in others. A round
    that holds up other regions does not wait for its deadline when, a lease's time after the plan, nobody is left who
    could make up its quorum.
    """
    if view.contributors is not None:
        return Close("contributors") if view.contributors <= view.stored else None
    if len(view.counted) >= view.wanted:
        return Close("target")
    if now_s >= view.deadline_s:
        if len(view.foldable) >= view.quorum:
            return Close("deadline")
        return _end(view, f"{len(view.foldable)} updates at the deadline, quorum {view.quorum}")
    asked = view.target | selected(view.online, seed=view.seed, round_=view.round, share=view.share)
    awaited = asked - view.stored
    awaited -= lapsed(
        awaited, view.leases, announced_at_s=view.announced_at_s, lease_s=view.lease_s, now_s=now_s
    )
    # Those asked in vain stay below any larger share, so only the others can help.
    others = view.online - asked - view.stored
    patient = now_s < view.announced_at_s + view.lease_s
    if view.holds_up and not patient and len(view.foldable | awaited | others) < view.quorum:
        return _end(view, f"{len(view.foldable)} updates and no one else to wait for, quorum {view.quorum}")
    missing = view.wanted - len(view.counted | awaited)
    others -= view.counted
    share = widened(view.share, others, missing=missing, seed=view.seed, round_=view.round)
    return Republish(share) if share > view.share else None


def next_s(view: RoundView, now_s: float) -> float:
    """Return when `decide` may next say something else although nothing new is stored or said; infinity: never."""
    if view.contributors is not None:
        return inf
    times = (view.deadline_s, view.announced_at_s + view.lease_s, *view.leases.values())
    return min((at_s for at_s in times if at_s > now_s), default=inf)


def _end(view: RoundView, found: str) -> Abandon | Carry:
    reason = f"round {view.round} of {view.region}: {found}"
    return Carry(reason) if view.carries else Abandon(reason)


def may_open(
    online: Mapping[str, int],
    *,
    quorum: int,
    waited_s: float,
    start_wait_s: float,
    given_up: Collection[str] = (),
) -> bool:
    """Tell whether the next round opens in these regions; `online` counts vehicles by region.

    It does when every region has its quorum online, or when `start_wait_s` is over and at least one region has.
    Nobody waits for a region that is `given_up`: its last round already ended below the quorum.
    """
    enough = {region: count >= quorum for region, count in online.items()}
    ready = all(has for region, has in enough.items() if region not in given_up)
    return any(enough.values()) and (ready or waited_s >= start_wait_s)


def ready_to_merge(states: Mapping[str, State], *, apart: bool = False) -> tuple[str, ...] | None:
    """Return the regions to merge, sorted, or None while a region is open or closing.

    An empty tuple: no region has an aggregate, so the round ends without a version. With `apart` no region waits for
    an open one: None only while one is closing, or none is aggregated.
    Raises RoundError when a region is already past the merge, unless they are `apart`.
    """
    past = {region: state for region, state in states.items() if state in {"evaluated", "published"}}
    if past and not apart:
        region, state = min(past.items())
        raise RoundError(f"event 'evaluate' in state {state!r} of a round: {region} is past its merge")
    waits = {"closing"} if apart else {"open", "closing"}
    if any(state in waits for state in states.values()):
        return None
    ready = tuple(sorted(region for region, state in states.items() if state == "aggregated"))
    return ready if ready or not apart else None
