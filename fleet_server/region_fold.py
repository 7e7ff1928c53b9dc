"""A region's fold: members as the store has them, decoded one by one, through the configured rule, to one aggregate.

A member that cannot be decoded or folded is dropped with its reason and changes nothing else. Rules that need each
update hold them while they fit into `HOLD_BYTES`, and otherwise decode them again for every block of columns.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from statistics import median

import numpy as np
import numpy.typing as npt

from fedfleet.codec.delta import Delta
from fedfleet.codec.payload import Payload
from fedfleet.fleet_server.fold import Aggregate, Update, check_update, example_weight, fold_ordered
from fedfleet.fleet_server.rules import Rule, VoidError, length, nonempty
from fedfleet.protocol.errors import PeerError
from fedfleet.protocol.ids import UpdateId
from fedfleet.protocol.selection import draw

__all__ = ["HOLD_BYTES", "LOST", "Member", "Members", "fold_members", "steps_norm"]

LOST = "bytes-lost"
"""Reason for a member whose bytes are gone, or no longer what was stored."""
HOLD_BYTES = 128 << 20
"""Most bytes of decoded updates that are held at once."""
CONTROL_FACTOR = 10.0
"""Median lengths of a fold's control steps (SCAFFOLD) from which on one is cut: it moves all vehicles' trainings."""


@dataclass(frozen=True)
class Member:
    """A stored update of a closed round; its change counts times `scale` (staleness). None: its bytes are gone."""

    id: UpdateId
    payload: bytes | memoryview | None
    examples: int
    scale: float = 1.0


@dataclass
class Members:
    """The members of a region's round in fold order; iterating decodes them again, each time the same.

    `read` gives them from the store, `decode` a payload's meaning. Refused ones are left out, and told in `refused`;
    those in `spared`, and in `lost` whose bytes are gone, are left out as well. `equal` gives each the weight 1,
    whatever its examples; `has_control` says that payloads carry control steps (SCAFFOLD).
    """

    read: Callable[[], Iterable[Member]]
    decode: Callable[[bytes | memoryview], Payload]
    size: int
    example_cap: int
    equal: bool = False
    has_control: bool = False
    refused: dict[UpdateId, str] = field(default_factory=dict)
    spared: Mapping[UpdateId, str] = field(default_factory=dict)
    lost: dict[UpdateId, str] = field(default_factory=dict)

    @property
    def returned(self) -> dict[UpdateId, str]:
        """Those that are left out and go back to their vehicles, with the reason."""
        return {**self.spared, **self.lost}

    def __iter__(self) -> Iterator[Update]:
        """Yield id, delta and weight of each."""
        for member, payload, weight in self.payloads():
            yield member.id, _scaled(payload.delta, member.scale), weight

    def payloads(self) -> Iterator[tuple[Member, Payload, float]]:
        """Yield each member with its decoded payload and its weight."""
        for member in self.read():
            if member.id in self.refused or member.id in self.spared:
                continue
            if member.payload is None:
                self.lost[member.id] = LOST
                continue
            try:
                payload = self.decode(member.payload)
                weight = 1.0 if self.equal else example_weight(member.examples, cap=self.example_cap)
                check_update(member.id, payload.delta, weight, size=self.size)
                if payload.control is not None:
                    check_update(member.id, payload.control, weight, size=self.size)
            except PeerError as error:
                self.refused[member.id] = error.reason
                continue
            yield member, payload, weight


def fold_members(
    members: Members,
    rule: Rule,
    *,
    momentum: float | None = None,
    draw_for: tuple[int, int] = (0, 0),
    hold_bytes: int = HOLD_BYTES,
) -> Aggregate:
    """Fold a region's members by its rule; the same members give the same bytes.

    With `momentum` (that of the vehicles' sgd) the mean is FedNova's. Control steps, where members have them, are
    summed. Of more members than the rule takes, the public draw for this (seed, round) says who is spared: returned.
    Raises VoidError, with what it dropped and spared, when nothing can be made of what came.
    """
    if rule.most is not None:
        spared = _lots([one.id for one in members.read()], rule.most, draw_for=draw_for)
        members = replace(members, spared=spared)
    try:
        if momentum is not None:
            found = _normalised(members, momentum)
        else:
            found = rule.fold(_held(members, hold_bytes) if rule.needs == "each" else members, members.size)
        control = _control(members)
    except VoidError as error:
        raise VoidError(str(error), dropped=members.refused, returned=members.returned) from error
    dropped = {**found.dropped, **members.refused}
    return replace(found, dropped=dropped, returned=members.returned, control=control)


def steps_norm(steps: int, momentum: float) -> float:
    """Return ‖a‖₁, the sum of the weights with which sgd adds up its gradients in so many steps.

    Without momentum that is the number of steps τ; with momentum ρ it is (τ − ρ (1 − ρ^τ) / (1 − ρ)) / (1 − ρ)
    (Wang et al. 2020, section 4.1). The learning rate is left out, as it is the same for all.
    """
    if momentum == 0:
        return float(steps)
    return (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)


def _normalised(members: Members, momentum: float) -> Aggregate:
    """Return FedNova's Σ p_k δ_k / ‖a_k‖₁ and the effective steps τ_eff = Σ p_k ‖a_k‖₁, p_k = w_k / Σ w."""
    total = effective = 0.0

    def rows() -> Iterator[Update]:
        nonlocal total, effective
        for member, payload, weight in members.payloads():
            if payload.steps == 0:
                members.refused[member.id] = "no-steps"
                continue
            norm = steps_norm(payload.steps, momentum)
            total += weight
            effective += weight * norm
            yield member.id, _scaled(payload.delta, member.scale), weight / norm

    found = fold_ordered(nonempty(rows()), size=members.size, checked=True)
    return replace(found, mean=found.mean * (found.weight / total), weight=total, steps=effective / total)


def _held(members: Members, hold_bytes: int) -> Iterable[Update]:
    """Return the updates in memory, or the members themselves when they are too much to hold."""
    held: list[Update] = []
    taken = 0
    for update in members:
        delta = update[1]
        taken += delta.values.nbytes + (0 if delta.indices is None else delta.indices.nbytes)
        if taken > hold_bytes:
            return members
        held.append(update)
    return held


def _control(members: Members) -> npt.NDArray[np.float64] | None:
    """Return the sum of the members' control steps, none longer than some median ones; None when they have none."""
    if not members.has_control:
        return None
    lengths = {
        one.id: length(load.control.values) for one, load, _ in members.payloads() if load.control is not None
    }
    if not lengths:
        return None
    limit = CONTROL_FACTOR * median(lengths.values()) if len(lengths) >= 3 else inf
    total = np.zeros(members.size)
    for one, load, _ in members.payloads():
        if load.control is not None:
            load.control.add_to(total, min(1.0, limit / lengths[one.id]) if lengths[one.id] else 1.0)
    return total


def _lots(ids: Sequence[UpdateId], most: int, *, draw_for: tuple[int, int]) -> dict[UpdateId, str]:
    seed, round_ = draw_for
    order = sorted(ids, key=lambda id_: (draw(seed, round_, id_.vehicle), id_))
    return dict.fromkeys(order[most:], f"above {most} updates")


def _scaled(delta: Delta, scale: float) -> Delta:
    return delta if scale == 1.0 else Delta(delta.size, delta.indices, delta.values * np.float32(scale))
