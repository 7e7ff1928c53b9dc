"""A region's fold from stored payloads: what cannot be folded falls out alone, FedNova, control steps, lots."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from fedfleet.codec import payload
from fedfleet.codec.delta import Delta
from fedfleet.codec.payload import Payload
from fedfleet.codec.settings import Settings
from fedfleet.fleet_server.fold import fold_key
from fedfleet.fleet_server.merge import merge, merge_controls
from fedfleet.fleet_server.region_fold import Member, Members, fold_members, steps_norm
from fedfleet.fleet_server.robust_columns import coordinate_median
from fedfleet.fleet_server.robust_pairwise import MOST, geometric_median
from fedfleet.fleet_server.rules import Rule, VoidError, mean
from fedfleet.protocol.ids import UpdateId
from fedfleet.protocol.selection import draw

SIZE = 6
EXACT = Settings("dense", "float32")


def change(n: int) -> np.ndarray:
    return np.random.default_rng(n).normal(size=SIZE).astype(np.float32)


def member(
    n: int, *, examples: int = 10, steps: int = 5, scale: float = 1.0, control: bool = False
) -> Member:
    told = change(100 + n) if control else None
    data = payload.encode(change(n), EXACT, steps=steps, examples=examples, control=told)
    return Member(UpdateId(f"v{n}", 0, 0), data, examples, scale)


def test_a_member_whose_bytes_are_gone_is_returned_and_the_others_are_folded() -> None:
    # given three members, of which one has lost its bytes: that is the disk's doing, not its vehicle's
    good = [member(0), member(2)]
    lost = Member(UpdateId("v1", 0, 0), None, 10)
    found = fold_members(members_of([*good, lost]), mean())
    # then it goes back to its vehicle, and the others are folded as without it
    assert (dict(found.returned), dict(found.dropped)) == ({lost.id: "bytes-lost"}, {})
    assert found.mean.tobytes() == fold_members(members_of(good), mean()).mean.tobytes()


def members_of(
    members: Sequence[Member], *, equal: bool = False, control: bool = False, cap: int = 1000
) -> Members:
    ordered = sorted(members, key=lambda one: fold_key(one.id))

    def read() -> Iterator[Member]:
        return iter(ordered)

    def decode(data: bytes) -> Payload:
        return payload.decode(data, size=SIZE, control=control)

    return Members(read, decode, SIZE, cap, equal=equal, has_control=control)


# --- one bad member ---


BAD = {
    "checksum-mismatch": b"fdu" + bytes(20),
    "truncated": b"",
    "size-mismatch": payload.encode(np.ones(SIZE + 1, np.float32), EXACT, steps=1, examples=1),
}


@pytest.mark.parametrize("reason", BAD)
@pytest.mark.parametrize(
    "rule", [mean(), coordinate_median(), geometric_median()], ids=lambda rule: rule.name
)
def test_a_member_that_cannot_be_decoded_is_dropped_and_changes_nothing_else(reason: str, rule: Rule) -> None:
    # given four good members, and one whose bytes are wrong
    good = [member(n) for n in range(4)]
    bad = Member(UpdateId("v9", 0, 0), BAD[reason], 10)
    # when
    found = fold_members(members_of([*good, bad]), rule)
    # then
    assert found.dropped == {bad.id: reason}
    assert found.mean.tobytes() == fold_members(members_of(good), rule).mean.tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["delta", "control"])
def test_a_value_that_is_not_finite_never_reaches_the_sum(value: float, where: str) -> None:
    # given a decoder that lets through what ours refuses
    poison = change(0)
    poison[3] = value

    def decode(data: bytes) -> Payload:
        if data == b"poison":
            values = {"delta": change(0), "control": change(0)} | {where: poison}
            delta, control = (Delta(SIZE, None, values[name]) for name in ("delta", "control"))
            return Payload(delta, 1, 10, control)
        return payload.decode(data, size=SIZE, control=True)

    good, bad = [member(n, control=True) for n in range(3)], Member(UpdateId("v9", 0, 0), b"poison", 10)
    ordered = sorted([*good, bad], key=lambda one: fold_key(one.id))
    # when
    found = fold_members(Members(lambda: ordered, decode, SIZE, 1000, has_control=True), mean())
    # then
    assert found.dropped == {bad.id: "not-finite"}
    assert found.control is not None
    assert np.isfinite(found.mean).all()
    assert np.isfinite(found.control).all()


def test_no_examples_weigh_nothing_and_are_dropped() -> None:
    found = fold_members(members_of([member(0), member(1, examples=0)]), mean())
    assert {id_.vehicle: why for id_, why in found.dropped.items()} == {"v1": "bad-weight"}
    assert np.allclose(found.mean, change(0), rtol=1e-15)


def test_the_cap_bounds_what_examples_weigh() -> None:
    found = fold_members(members_of([member(0, examples=10), member(1, examples=10**6)], cap=30), mean())
    assert np.allclose(found.mean, (change(0) + 3.0 * change(1).astype(np.float64)) / 4)


def test_when_nothing_can_be_folded_the_round_is_void_and_says_what_was_dropped() -> None:
    bad = Member(UpdateId("v9", 0, 0), b"", 10)
    with pytest.raises(VoidError, match="no update can be folded") as caught:
        fold_members(members_of([bad]), mean())
    assert caught.value.dropped == {bad.id: "truncated"}


def test_a_stale_member_counts_by_its_scale_and_weighs_as_much() -> None:
    found = fold_members(members_of([member(0), member(1, scale=0.5)]), mean())
    assert np.allclose(found.mean, (change(0) + 0.5 * change(1)) / 2, rtol=1e-6)
    assert found.weight == 20.0


# --- holding or reading again ---


@pytest.mark.parametrize("rule", [coordinate_median(), geometric_median()], ids=lambda rule: rule.name)
def test_updates_that_are_too_much_to_hold_are_read_again(rule: Rule) -> None:
    reads = 0
    ordered = sorted((member(n) for n in range(5)), key=lambda one: fold_key(one.id))

    def read() -> Iterator[Member]:
        nonlocal reads
        reads += 1
        return iter(ordered)

    members = Members(read, lambda data: payload.decode(data, size=SIZE), SIZE, 1000)
    held = fold_members(members, rule)
    once = reads
    again = fold_members(members, rule, hold_bytes=10)
    assert again.mean.tobytes() == held.mean.tobytes()
    assert reads - once > once


# --- FedNova ---


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_norm_of_the_steps_is_the_sum_of_the_weights_of_the_gradients(momentum: float) -> None:
    for steps in (1, 2, 7, 40):
        # given sgd with momentum on a constant gradient of 1: v = ρ v + 1, x = x − v
        velocity = moved = 0.0
        for _ in range(steps):
            velocity = momentum * velocity + 1
            moved += velocity
        assert steps_norm(steps, momentum) == pytest.approx(moved, rel=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fednova_equals_its_equation(momentum: float) -> None:
    # given vehicles of two regions with other numbers of steps and examples
    told = [(n, 10 * (n + 1), 1 + 3 * n) for n in range(5)]
    ones = [member(n, examples=examples, steps=steps) for n, examples, steps in told]
    regions = {"a": ones[:2], "b": ones[2:]}
    # when
    folded = {name: fold_members(members_of(one), mean(), momentum=momentum) for name, one in regions.items()}
    merged, _ = merge(folded, cap=1.0)
    # then Δ = τ_eff Σ p_k δ_k / ‖a_k‖₁ over all of them
    total = sum(examples for _, examples, _ in told)
    p = [examples / total for _, examples, _ in told]
    norms = [steps_norm(steps, momentum) for _, _, steps in told]
    effective = sum(share * norm for share, norm in zip(p, norms, strict=True))
    expected = effective * sum(
        share * change(n).astype(np.float64) / norm
        for share, norm, (n, _, _) in zip(p, norms, told, strict=True)
    )
    assert np.allclose(merged, expected, rtol=1e-12)


def test_fednova_with_equal_steps_is_fedavg() -> None:
    ones = [member(n, examples=10 + n) for n in range(4)]
    nova, _ = merge({"a": fold_members(members_of(ones), mean(), momentum=0.9)}, cap=1.0)
    plain, _ = merge({"a": fold_members(members_of(ones), mean())}, cap=1.0)
    assert np.allclose(nova, plain, rtol=1e-12)


def test_an_update_of_no_steps_cannot_be_normalised() -> None:
    found = fold_members(members_of([member(0), member(1, steps=0)]), mean(), momentum=0.0)
    assert {id_.vehicle: why for id_, why in found.dropped.items()} == {"v1": "no-steps"}


# --- SCAFFOLD ---


def test_control_steps_are_summed_over_vehicles_and_divided_by_all_that_are_enrolled() -> None:
    # given three vehicles of two regions, of ten that are enrolled
    ones = [member(n, control=True, examples=10 * (n + 1)) for n in range(3)]
    folded = {
        name: fold_members(members_of(each, equal=True, control=True), mean())
        for name, each in (("a", ones[:1]), ("b", ones[1:]))
    }
    # when
    moved = merge_controls(folded, vehicles=10)
    # then examples do not count, for the control nor for the mean
    assert moved is not None
    assert np.allclose(moved, sum(change(100 + n).astype(np.float64) for n in range(3)) / 10, rtol=1e-12)
    assert np.allclose(folded["b"].mean, (change(1).astype(np.float64) + change(2)) / 2, rtol=1e-12)
    assert merge_controls({"a": fold_members(members_of([member(0)]), mean())}, vehicles=10) is None


# --- more than a rule takes ---


def test_who_is_above_the_number_that_a_pairwise_rule_takes_is_returned_by_lot() -> None:
    # given five more than it takes
    ones = [member(n) for n in range(MOST + 5)]
    found = fold_members(members_of(ones), geometric_median(), draw_for=(3, 8))
    # then those with the largest public draw of this round are returned, none is dropped
    last = sorted(ones, key=lambda one: draw(3, 8, one.id.vehicle))[-5:]
    assert set(found.returned) == {one.id for one in last}
    assert set(found.returned.values()) == {f"above {MOST} updates"}
    assert (found.count, dict(found.dropped)) == (MOST, {})
    # and in another round others
    assert set(fold_members(members_of(ones), geometric_median(), draw_for=(3, 9)).returned) != set(
        found.returned
    )
