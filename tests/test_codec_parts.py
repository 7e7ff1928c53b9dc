"""A model of unlike tensors in one update: each part by its rule, nothing lost, nothing sent that is excluded."""

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import slow_decoder
from hypothesis import given
from hypothesis import strategies as st

from fedfleet.codec import payload
from fedfleet.codec.delta import Delta
from fedfleet.codec.describe import describe
from fedfleet.codec.parts import SEGMENTS, Part, Parts
from fedfleet.codec.residual import encode_with_feedback
from fedfleet.codec.settings import Settings
from fedfleet.protocol.errors import PeerError, UsageError

Vector = npt.NDArray[np.float32]

MIXED = Parts(
    700,
    (
        Part("body", ((0, 200), (220, 300)), "sparse"),
        Part("body", ((200, 210), (300, 310)), "dense"),
        Part("body", ((210, 220),), "exclude"),
        Part("head", ((310, 400), (690, 700)), "sparse"),
        Part("head", ((400, 690),), "dense"),
    ),
)
SETTINGS = [
    *(Settings(value=value, density=0.1) for value in ("sign", "int2", "int3", "int4", "int8")),
    Settings(density=0.1, layer_floor=0.05),
    *(Settings("dense", value) for value in ("sign", "int2", "int3", "int4", "int8", "float32")),
    *(Settings("common", value) for value in ("sign", "int4", "int8", "float32")),
]
STATELESS = Settings("dense", "stochastic4", 0.2)


def noise(size: int, seed: int) -> Vector:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def slow_parts(parts: Parts) -> list[slow_decoder.Part]:
    return [(SEGMENTS[part.segment], list(part.spans), part.coding) for part in parts.parts]


def same(fast: Delta, slow: tuple[list[int], list[float], bool], parts: Parts) -> bool:
    coordinates, values, dense = slow
    assert dense == (fast.indices is None)
    if fast.indices is not None:
        assert fast.indices.tolist() == coordinates
        return fast.values.tobytes() == np.array(values, dtype=np.float32).tobytes()
    wanted = np.zeros(parts.size, dtype=np.float32)
    wanted[coordinates] = values
    return fast.values.tobytes() == wanted.tobytes()


@st.composite
def divisions(draw: st.DrawFn) -> Parts:
    """Tensors of a few coordinates, each with a rule of its own."""
    sizes = draw(st.lists(st.integers(1, 30), min_size=1, max_size=8))
    rules = st.tuples(st.sampled_from(["body", "head"]), st.sampled_from(["sparse", "dense", "exclude"]))
    told = draw(st.lists(rules, min_size=len(sizes), max_size=len(sizes)))
    told[0] = (told[0][0], "sparse") if all(coding == "exclude" for _, coding in told) else told[0]
    ends = np.cumsum(sizes).tolist()
    spans = list(zip([0, *ends[:-1]], ends, strict=True))
    groups: dict[tuple[Any, Any], list[tuple[int, int]]] = {}
    for span, rule in zip(spans, told, strict=True):
        groups.setdefault(rule, []).append(span)
    return Parts(ends[-1], tuple(Part(rule[0], tuple(own), rule[1]) for rule, own in groups.items()))


@given(divisions(), st.sampled_from(SETTINGS), st.integers(0, 1000))
def test_what_arrives_and_what_is_left_make_the_whole(parts: Parts, settings: Settings, seed: int) -> None:
    # given a delta and a residual
    delta, residual = noise(parts.size, seed), noise(parts.size, seed + 1)
    rng = np.random.default_rng(seed)
    common = np.flatnonzero(rng.random(parts.size) < 0.3) if settings.index == "common" else None
    # when
    data, left = encode_with_feedback(
        delta, residual, settings, steps=3, examples=4, parts=parts, common=common, seed=seed
    )
    got = payload.decode(data, size=parts.size, parts=parts, common=common)
    # then p = decoded + residual to the last bit, but for what is excluded: of it, nothing remains anywhere
    received = got.delta.dense()
    for part in parts.parts:
        if part.coding == "exclude":
            assert not part.take(received).any()
            assert not part.take(left).any()
        else:
            wanted = part.take(delta + residual)
            np.testing.assert_array_equal(part.take(left), wanted - part.take(received))
    # and the other decoder reads the same
    named = None if common is None else common.tolist()
    slow = slow_decoder.decode(data, parts.size, slow_parts(parts), named)
    assert same(got.delta, (slow.coordinates, slow.values, slow.dense), parts)


@given(divisions(), st.integers(0, 1000))
def test_a_stateless_mode_sends_what_waited_and_leaves_nothing(parts: Parts, seed: int) -> None:
    # given a delta and a residual from rounds with another mode
    delta, residual = noise(parts.size, seed), noise(parts.size, seed + 1)
    # when
    told = {"steps": 3, "examples": 4, "parts": parts, "seed": seed}
    data, left = encode_with_feedback(delta, residual, STATELESS, **told)
    # then their sum is what is sent, and nothing waits
    assert data == payload.encode(delta + residual, STATELESS, **told)
    assert not left.any()
    slow = slow_decoder.decode(data, parts.size, slow_parts(parts))
    fast = payload.decode(data, size=parts.size, parts=parts).delta
    assert same(fast, (slow.coordinates, slow.values, slow.dense), parts)


@pytest.mark.parametrize("settings", [*SETTINGS, STATELESS])
def test_a_control_variate_travels_beside_the_delta(settings: Settings) -> None:
    # given
    delta, control = noise(700, 1), noise(700, 2)
    common = np.arange(0, 700, 7) if settings.index == "common" else None
    # when
    data = payload.encode(
        delta, settings, steps=1, examples=2, parts=MIXED, common=common, seed=9, control=control
    )
    got = payload.decode(data, size=700, parts=MIXED, common=common, control=True)
    # then each is what it would be alone
    alone = payload.encode(delta, settings, steps=1, examples=2, parts=MIXED, common=common, seed=9)
    np.testing.assert_array_equal(
        got.delta.dense(), payload.decode(alone, size=700, parts=MIXED, common=common).delta.dense()
    )
    assert got.control is not None
    named = None if common is None else common.tolist()
    slow = slow_decoder.decode(data, 700, slow_parts(MIXED), named, control=True)
    assert slow.control is not None
    assert same(got.control, slow.control, MIXED)
    if settings.value == "float32" and settings.index == "dense":
        np.testing.assert_array_equal(got.control.dense(), MIXED.without_excluded(control))


def test_a_control_variate_is_required_or_refused() -> None:
    delta = noise(700, 1)
    with_one = payload.encode(delta, Settings(), steps=1, examples=1, parts=MIXED, control=delta)
    without = payload.encode(delta, Settings(), steps=1, examples=1, parts=MIXED)
    with pytest.raises(PeerError, match=r"^unknown-section: section type 2 "):
        payload.decode(with_one, size=700, parts=MIXED)
    with pytest.raises(PeerError, match=r"^missing-section: section type 2 "):
        payload.decode(without, size=700, parts=MIXED, control=True)
    with pytest.raises(UsageError, match=r"^control: expected float32\[700\] as the parts, got \[3\]$"):
        payload.encode(delta, Settings(), steps=1, examples=1, parts=MIXED, control=delta[:3])


def test_one_sparse_part_of_many_tensors_has_the_bytes_of_the_whole() -> None:
    delta = noise(700, 3)
    one = Parts(700, (Part("body", ((0, 100), (100, 650), (650, 700))),))
    data = payload.encode(delta, Settings(density=0.1), steps=1, examples=1, parts=one)
    assert data == payload.encode(delta, Settings(density=0.1), steps=1, examples=1)


def test_each_part_sends_its_own_strongest() -> None:
    # given a body that is a thousand times as large as the head
    delta = noise(700, 4)
    delta[:310] *= 1000
    # when
    data = payload.encode(delta, Settings(density=0.1), steps=1, examples=1, parts=MIXED)
    got = payload.decode(data, size=700, parts=MIXED).delta
    # then the head's share is sent all the same, and what is dense is there whole
    assert got.indices is not None
    counts = [int(np.isin(got.indices, part.place(np.arange(part.size))).sum()) for part in MIXED.parts]
    assert counts == [28, 20, 0, 10, 290]


def test_dense_parts_are_exact_when_small_and_of_eight_bits_when_large() -> None:
    delta = noise(700, 5)
    data = payload.encode(delta, Settings(), steps=1, examples=1, parts=MIXED)
    got = payload.decode(data, size=700, parts=MIXED).delta.dense()
    small, large = MIXED.parts[1], MIXED.parts[4]
    np.testing.assert_array_equal(small.take(got), small.take(delta))
    off = np.abs(large.take(got) - large.take(delta)).max()
    assert 0 < off <= np.abs(large.take(delta)).max() / 253


def test_a_floor_keeps_small_tensors_alive() -> None:
    # given a tensor that is weak beside another
    delta = noise(1000, 6)
    delta[900:] *= 1e-3
    parts = Parts(1000, (Part("body", ((0, 900), (900, 1000))),))

    def sent(**settings: float) -> npt.NDArray[np.int64]:
        data = payload.encode(delta, Settings(density=0.1, **settings), steps=1, examples=1, parts=parts)
        indices = payload.decode(data, size=1000, parts=parts).delta.indices
        assert indices is not None
        return indices

    # when nothing is said, it starves; then
    assert (sent() < 900).all()
    # when it has a floor of 5 %, then its five strongest are sent, and no more in all
    found = sent(layer_floor=0.05)
    assert found.size == 100
    assert set(found[found >= 900] - 900) == set(np.argsort(-np.abs(delta[900:]))[:5])
    # when the floors are more than the density, then they are what is sent
    assert sent(layer_floor=0.2).size == 200


def test_less_effort_leaves_rows_out_and_says_the_same() -> None:
    # given a layer of which some rows learn much more than others
    rows, columns = 256, 128
    strong = np.exp(np.random.default_rng(3).normal(0.0, 3.0, rows)).repeat(columns).astype(np.float32)
    vector = strong * noise(rows * columns, 4)
    parts = Parts(rows * columns, (Part("body", ((0, rows * columns),), columns=(columns,)),))
    full, quick = (
        payload.encode(vector, Settings(density=0.02, effort=effort), steps=1, examples=1, parts=parts)
        for effort in ("full", "quick")
    )
    modes = [describe(data).blocks[0].index for data in (full, quick)]
    assert modes[0] == "rows" != modes[1]
    assert len(full) < len(quick)
    one, other = (payload.decode(data, size=vector.size, parts=parts).delta.dense() for data in (full, quick))
    assert np.array_equal(one, other)
    with pytest.raises(UsageError, match='codec effort: expected one of full, quick, got "none"'):
        Settings(effort="none")


def test_the_plan_names_the_coordinates() -> None:
    # given
    delta, common = noise(700, 7), np.array([0, 5, 205, 215, 311, 500, 699])
    # when
    data = payload.encode(
        delta, Settings("common", "float32"), steps=1, examples=1, parts=MIXED, common=common
    )
    got = payload.decode(data, size=700, parts=MIXED, common=common).delta
    # then of the sparse parts these arrive, and no others
    assert got.indices is not None
    dense = [*range(200, 210), *range(300, 310), *range(400, 690)]
    assert got.indices.tolist() == sorted([0, 5, 311, 699, *dense])
    assert got.dense()[[0, 5, 311, 699]].tolist() == delta[[0, 5, 311, 699]].tolist()


def test_other_coordinates_than_the_plan_s_are_refused() -> None:
    delta, common = noise(50, 8), np.array([1, 7, 30])
    data = payload.encode(delta, Settings("common"), steps=1, examples=1, common=common)
    for other, reason in (([1, 7, 31], "coordinates-mismatch"), ([1, 7], "count-mismatch")):
        with pytest.raises(PeerError) as caught:
            payload.decode(data, size=50, common=np.array(other))
        assert caught.value.reason == reason
    with pytest.raises(PeerError, match=r"^unexpected-mode: index mode 5 with value mode 0 in a sparse part"):
        payload.decode(data, size=50)
    own = payload.encode(delta, Settings(), steps=1, examples=1)
    with pytest.raises(
        PeerError, match=r"^unexpected-mode: index mode 1 with value mode 0 in a by plan part"
    ):
        payload.decode(own, size=50, common=common)


@pytest.mark.parametrize("common", [[], [3]])
def test_a_plan_may_name_hardly_any(common: list[int]) -> None:
    named = np.array(common, dtype=np.int64)
    data = payload.encode(noise(9, 1), Settings("common", "int4"), steps=1, examples=1, common=named)
    assert payload.decode(data, size=9, common=named).delta.values.size == len(common)


@pytest.mark.parametrize(
    ("common", "text"),
    [
        (np.array([3, 3]), "common: expected rising int64 coordinates from 0 to 8"),
        (np.array([3, 9]), "common: expected rising int64 coordinates from 0 to 8"),
        (np.array([-1, 3]), "common: expected rising int64 coordinates from 0 to 8"),
        (np.array([1.0]), "common: expected rising int64 coordinates from 0 to 8"),
        (None, 'codec index "common" needs the coordinates that the plan names'),
    ],
)
def test_common_coordinates_that_are_none_are_refused(common: Any, text: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(text)}$"):
        payload.encode(noise(9, 1), Settings("common"), steps=1, examples=1, common=common)


def test_a_receiver_with_other_parts_refuses() -> None:
    data = payload.encode(noise(700, 1), Settings(), steps=1, examples=1, parts=MIXED)
    body_only = Parts(700, (Part("body", ((0, 700),)),))
    with pytest.raises(PeerError, match=r"^unknown-segment: "):
        payload.decode(data, size=700, parts=body_only)
    mostly = Parts(700, (*MIXED.parts[:2], Part("body", ((210, 220), (310, 700)), "exclude")))
    with pytest.raises(PeerError, match=r"^unknown-segment: "):
        payload.decode(data, size=700, parts=mostly)
    swapped = Parts(
        700, (*MIXED.parts[:3], Part("head", ((310, 400), (690, 700)), "dense"), Part("head", ((400, 690),)))
    )
    with pytest.raises(PeerError, match=r"^unexpected-mode: index mode 1 with value mode 0 in a dense part$"):
        payload.decode(data, size=700, parts=swapped)
    whole = payload.encode(noise(700, 1), Settings(), steps=1, examples=1)
    with pytest.raises(PeerError, match=r"^missing-section: section type 1 is missing$"):
        payload.decode(whole, size=700, parts=MIXED)


def test_what_is_not_finite_is_named_where_it_stands_and_harmless_where_it_is_excluded() -> None:
    delta = noise(700, 1)
    delta[215] = np.nan
    payload.encode(delta, Settings(), steps=1, examples=1, parts=MIXED)
    delta[695] = np.inf
    with pytest.raises(UsageError, match=r"^delta: expected finite numbers, got inf at index 695 of 700$"):
        payload.encode(delta, Settings(), steps=1, examples=1, parts=MIXED)


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ((Part("body", ((0, 4),)),), "parts: expected 5 coordinates, got 4"),
        (
            (Part("body", ((0, 4),)), Part("head", ((3, 5),))),
            "expected every coordinate once, got a tensor at 3",
        ),
        (
            (Part("body", ((0, 2),)), Part("head", ((3, 5),))),
            "expected every coordinate once, got a tensor at 3",
        ),
        ((Part("body", ((0, 5),), "exclude"),), "parts: expected a part that is sent, all are excluded"),
    ],
)
def test_parts_that_are_no_division_are_refused(parts: tuple[Part, ...], text: str) -> None:
    with pytest.raises(UsageError, match=re.escape(text)):
        Parts(5, parts)


@pytest.mark.parametrize("spans", [(), ((3, 3),), ((-1, 2),), ((4, 6), (0, 2)), ((0, 3), (2, 4))])
def test_spans_that_are_none_are_refused(spans: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(UsageError, match=r"^part: expected rising spans"):
        Part("body", spans)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(
        UsageError, match=r'^part: expected body or head and sparse, dense, exclude, got "tail" and'
    ):
        Part("tail", ((0, 1),), "sparse")  # type: ignore[arg-type]  # the mistake under test
    with pytest.raises(UsageError, match=r"^parts: expected those of 5 parameters, got 4$"):
        payload.decode(b"", size=5, parts=Parts.whole(4))
