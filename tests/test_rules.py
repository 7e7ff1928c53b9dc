"""Every rule against a plain computation of its paper's equation, and what all rules promise."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfleet.codec.delta import Delta
from fedfleet.fleet_server.fold import Aggregate, Update, fold, fold_key
from fedfleet.fleet_server.robust_columns import blocks, coordinate_median, trimmed_mean
from fedfleet.fleet_server.robust_pairwise import (
    bulyan,
    distances,
    geometric_median,
    gram,
    krum,
    multi_krum,
    nnm_trimmed_mean,
)
from fedfleet.fleet_server.rules import HISTORY, Rule, VoidError, fltrust, hostile, mean, norm_clip, part
from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.ids import UpdateId

SIZE = 40
ROOT = np.random.default_rng(99).normal(1, 0.3, SIZE).astype(np.float32)
SHARE = 0.2
RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        mean(),
        norm_clip(),
        coordinate_median(),
        trimmed_mean(SHARE),
        krum(SHARE),
        multi_krum(SHARE),
        bulyan(SHARE),
        geometric_median(),
        nnm_trimmed_mean(SHARE),
        fltrust(ROOT),
    )
}
ROBUST = [name for name in RULES if name != "mean"]
every = pytest.mark.parametrize("name", RULES)
robust = pytest.mark.parametrize("name", ROBUST)
Rows = list[list[float]]


def honest(count: int, *, seed: int = 0, size: int = SIZE) -> list[np.ndarray]:
    """Updates about the direction of ones."""
    rng = np.random.default_rng(seed)
    return [rng.normal(1, 0.3, size).astype(np.float32) for _ in range(count)]


def updates_of(rows: Sequence[np.ndarray], *, weights: Sequence[float] | None = None) -> list[Update]:
    """Dense updates in fold order, by vehicle."""
    found = [
        (UpdateId(f"v{n}", 0, 0), Delta(row.size, None, row), 10.0 if weights is None else weights[n])
        for n, row in enumerate(rows)
    ]
    return sorted(found, key=lambda update: fold_key(update[0]))


def matrix(updates: Sequence[Update]) -> Rows:
    return [[float(value) for value in delta.dense()] for _, delta, _ in updates]


class Streamed:
    """Updates that cannot be held: they can only be iterated over, again and again."""

    def __init__(self, updates: list[Update]) -> None:
        self._updates = updates

    def __iter__(self) -> Iterator[Update]:
        return iter(self._updates)


# --- plain computations, written from the papers ---


def apart(a: list[float], b: list[float]) -> float:
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))


def columns(rows: Rows) -> Rows:
    return [list(column) for column in zip(*rows, strict=True)]


def average(rows: Rows) -> list[float]:
    return [math.fsum(column) / len(column) for column in columns(rows)]


def cut(values: list[float], trim: int) -> float:
    kept = sorted(values)[trim : len(values) - trim]
    return math.fsum(kept) / len(kept)


def scores(rows: Rows, f: int) -> list[float]:
    found = []
    for i, row in enumerate(rows):
        others = sorted(apart(row, other) ** 2 for j, other in enumerate(rows) if j != i)
        found.append(sum(others[: max(2, len(rows) - f - 2)]))
    return found


def plain_median(rows: Rows) -> list[float]:
    found = []
    for column in columns(rows):
        ordered, half = sorted(column), len(column) // 2
        found.append(ordered[half] if len(column) % 2 else (ordered[half - 1] + ordered[half]) / 2)
    return found


def plain_krum(rows: Rows, f: int, keep: int) -> list[float]:
    score = scores(rows, f)
    best = sorted(range(len(rows)), key=lambda row: (score[row], row))[:keep]
    return average([rows[row] for row in best])


def plain_bulyan(rows: Rows, f: int) -> list[float]:
    left, chosen = list(rows), []
    for _ in range(len(rows) - 2 * f):
        score = scores(left, f)
        chosen.append(left.pop(score.index(min(score))))
    found = []
    for column, centre in zip(columns(chosen), plain_median(chosen), strict=True):
        near = sorted(column, key=lambda value: abs(value - centre))[: len(chosen) - 2 * f]
        found.append(math.fsum(near) / len(near))
    return found


def plain_mixing(rows: Rows, f: int) -> list[float]:
    mixed = []
    for row in rows:
        near = sorted(rows, key=lambda other: apart(row, other))[: len(rows) - f]
        mixed.append(average(near))
    return [cut(column, f) for column in columns(mixed)]


def plain_geometric_median(rows: Rows) -> list[float]:
    z = average(rows)
    for _ in range(3000):
        pull = [1 / max(1e-6, apart(z, row)) for row in rows]
        z = [
            sum(p * value for p, value in zip(pull, column, strict=True)) / sum(pull)
            for column in columns(rows)
        ]
    return z


def plain_fltrust(rows: Rows, root: list[float]) -> list[float]:
    zero = [0.0] * len(root)
    length = apart(root, zero)
    trust, scaled = [], []
    for row in rows:
        norm = apart(row, zero)
        cosine = sum(a * b for a, b in zip(row, root, strict=True)) / (norm * length)
        trust.append(max(0.0, cosine))
        scaled.append([value * length / norm for value in row])
    return [
        sum(t * value for t, value in zip(trust, column, strict=True)) / sum(trust)
        for column in columns(scaled)
    ]


def plain_clip(rows: Rows) -> list[float]:
    norms = [apart(row, [0.0] * len(row)) for row in rows]
    ordered, half = sorted(norms), len(norms) // 2
    limit = ordered[half] if len(norms) % 2 else (ordered[half - 1] + ordered[half]) / 2
    return average(
        [[value * min(1, limit / norm) for value in row] for row, norm in zip(rows, norms, strict=True)]
    )


PLAIN: dict[str, Callable[[Rows, int], list[float]]] = {
    "mean": lambda rows, _f: average(rows),
    "norm-clip": lambda rows, _f: plain_clip(rows),
    "median": lambda rows, _f: plain_median(rows),
    "trimmed-mean": lambda rows, f: [cut(column, f) for column in columns(rows)],
    "krum": lambda rows, f: plain_krum(rows, f, 1),
    "multi-krum": lambda rows, f: plain_krum(rows, f, len(rows) - f),
    "bulyan": plain_bulyan,
    "geometric-median": lambda rows, _f: plain_geometric_median(rows),
    "nnm-trimmed-mean": plain_mixing,
    "fltrust": lambda rows, _f: plain_fltrust(rows, ROOT.tolist()),
}


@every
@pytest.mark.parametrize("count", [7, 11, 12, 20])
@pytest.mark.parametrize("hurt", [False, True])
def test_a_rule_equals_its_papers_equation(name: str, count: int, hurt: bool) -> None:
    # given updates of which one in five may be wild
    rows = honest(count, seed=count)
    if hurt:
        rows[::6] = [-4 * row for row in rows[::6]]
    updates = updates_of(rows)
    # when
    found = RULES[name].fold(updates, SIZE)
    # then
    most = {"bulyan": (count - 3) // 4, "krum": (count - 3) // 2, "multi-krum": (count - 3) // 2}
    f = min(max(1, count // 5), most.get(name, (count - 1) // 2))
    expected = PLAIN[name](matrix(updates), f)
    tolerance = 1e-6 if name == "geometric-median" else 1e-9
    assert np.allclose(found.mean, expected, rtol=tolerance, atol=tolerance)


# --- what all promise ---


@every
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 99), chance=st.randoms(use_true_random=False))
def test_who_is_called_what_changes_nothing(name: str, seed: int, chance: object) -> None:
    # given the same changes, sent by other vehicles, which changes their order in the fold
    rows = honest(9, seed=seed)
    shuffled = list(rows)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    # when both are folded
    one, two = (RULES[name].fold(updates_of(each), SIZE) for each in (rows, shuffled))
    # then the result is the same, up to the rounding of sums
    assert np.allclose(one.mean, two.mean, rtol=1e-9, atol=1e-12)


@every
def test_the_same_updates_give_the_same_bytes_held_or_streamed(name: str) -> None:
    updates = updates_of(honest(9))
    once = RULES[name].fold(updates, SIZE)
    again = RULES[name].fold(updates_of(honest(9)), SIZE)
    streamed = RULES[name].fold(Streamed(updates), SIZE)
    assert once.mean.tobytes() == again.mean.tobytes() == streamed.mean.tobytes()
    assert once.dropped == again.dropped == streamed.dropped


@pytest.mark.parametrize("block_bytes", [1, 2 * 4 * 9, 7 * 4 * 9, 10**6])
@pytest.mark.parametrize("kind", ["dense", "common", "own"])
def test_blocks_cover_every_coordinate_once_within_their_bytes(block_bytes: int, kind: str) -> None:
    # given updates that send all, the same, or their own coordinates
    rng = np.random.default_rng(5)
    common = np.sort(rng.choice(SIZE, 12, replace=False)).astype(np.int64)
    updates: list[Update] = []
    for n, row in enumerate(honest(9)):
        own = np.sort(rng.choice(SIZE, 12, replace=False)).astype(np.int64)
        where = {"dense": None, "common": common, "own": own}[kind]
        delta = Delta(SIZE, where, row if where is None else row[:12])
        updates.append((UpdateId(f"v{n}", 0, 0), delta, 1.0))
    # when they are put together from blocks
    whole, seen = np.zeros((SIZE, 9), np.float32), np.zeros(SIZE, int)
    for where, block in blocks(Streamed(updates), size=SIZE, count=9, block_bytes=block_bytes):
        assert block.nbytes <= max(block_bytes, 4 * 9)
        whole[where] = block
        seen[where] += 1
    # then each is there, once
    assert np.array_equal(whole.T, [delta.dense() for _, delta, _ in updates])
    assert seen.tolist() == ([int(n in common) for n in range(SIZE)] if kind == "common" else [1] * SIZE)


@every
def test_updates_with_common_coordinates_give_what_dense_ones_with_zeros_give(name: str) -> None:
    # given updates that all send the coordinates 3, 10 and 39 only
    where = np.array([3, 10, 39], dtype=np.int64)
    rows = honest(9, size=3)
    wide = [Delta(SIZE, where, row).dense() for row in rows]
    dense = updates_of(wide)
    place = {update[0]: Delta(SIZE, where, update[1].values[where]) for update in dense}
    sparse = [(id_, place[id_], weight) for id_, _, weight in dense]
    # then
    expected = RULES[name].fold(dense, SIZE).mean
    assert np.allclose(RULES[name].fold(sparse, SIZE).mean, expected, rtol=1e-9, atol=1e-12)
    assert np.flatnonzero(RULES[name].fold(sparse, SIZE).mean).tolist() in ([3, 10, 39], [])


def test_updates_with_coordinates_of_their_own_can_be_compared_pairwise() -> None:
    # given top-k updates
    rng = np.random.default_rng(4)
    updates = []
    for n in range(8):
        where = np.sort(rng.choice(SIZE, 11, replace=False)).astype(np.int64)
        updates.append(
            (UpdateId(f"v{n}", 0, 0), Delta(SIZE, where, rng.normal(size=11).astype(np.float32)), 1.0)
        )
    updates.sort(key=lambda update: fold_key(update[0]))
    dense = np.array(matrix(updates))
    # then their products and distances are those of the dense rows, held or streamed
    for given_ in (updates, Streamed(updates)):
        products = gram(given_, size=SIZE, count=8)
        assert np.allclose(products, dense @ dense.T, rtol=1e-12, atol=1e-14)
    wanted = ((dense[:, None] - dense[None]) ** 2).sum(axis=2)
    assert np.allclose(distances(products), wanted, atol=1e-12)
    for name in ("krum", "multi-krum", "geometric-median"):
        plain = PLAIN[name](matrix(updates), 1)
        assert np.allclose(RULES[name].fold(updates, SIZE).mean, plain, atol=1e-6)


@pytest.mark.parametrize("density", [0.001, 0.05, 0.6])
def test_inner_products_of_sparse_updates_over_many_stretches_of_columns(density: float) -> None:
    # given 40 updates of 200,000 parameters, so that columns are lonely, or crowded
    size, rng = 200_000, np.random.default_rng(8)
    updates: list[Update] = []
    for n in range(40):
        where = np.sort(rng.choice(size, int(density * size), replace=False)).astype(np.int64)
        values = rng.normal(size=where.size).astype(np.float32)
        updates.append((UpdateId(f"v{n}", 0, 0), Delta(size, where, values), 1.0))
    # then
    dense = np.array([delta.dense() for _, delta, _ in updates], dtype=np.float64)
    assert np.allclose(gram(updates, size=size, count=40), dense @ dense.T, rtol=1e-10, atol=1e-9)


# --- bounded influence ---


ATTACKS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "far": lambda centre: np.full_like(centre, 1e30),
    "largest": lambda centre: np.full_like(centre, np.finfo(np.float32).max),
    "flipped": lambda centre: -100 * centre,
    "one-coordinate": lambda centre: np.where(np.arange(centre.size) == 5, np.float32(1e12), centre),
}


@robust
@pytest.mark.parametrize("attack", ATTACKS)
def test_one_in_five_hostile_cannot_move_the_mean_far(name: str, attack: str) -> None:
    # given 16 honest updates and 4 hostile ones that agree, with the largest possible weight
    rows = honest(16)
    centre = np.mean(rows, axis=0)
    evil = [ATTACKS[attack](centre).astype(np.float32)] * 4
    updates = updates_of([*rows, *evil], weights=[10.0] * 16 + [20.0] * 4)
    # when
    found = RULES[name].fold(updates, SIZE)
    # then the result is within the reach of the honest ones; clipping bounds by the norm of a median update
    reach = max(float(np.linalg.norm(row - centre)) for row in rows)
    bound = float(np.linalg.norm(centre)) * 2 if name == "norm-clip" else 2 * reach
    assert np.linalg.norm(found.mean - centre) < bound
    # and the plain mean is not
    assert np.linalg.norm(RULES["mean"].fold(updates, SIZE).mean - centre) > 2 * reach


@pytest.mark.parametrize("name", ["median", "krum", "multi-krum", "bulyan", "geometric-median"])
def test_what_a_vehicle_says_of_its_examples_does_not_count(name: str) -> None:
    rows = honest(9)
    equal = RULES[name].fold(updates_of(rows), SIZE)
    boasting = RULES[name].fold(updates_of(rows, weights=[1e9] + [10.0] * 8), SIZE)
    assert equal.mean.tobytes() == boasting.mean.tobytes()
    assert boasting.weight <= 9 * 10.0


# --- what is left out is told ---


def test_krum_takes_one_and_tells_of_the_others() -> None:
    updates = updates_of(honest(7))
    found = RULES["krum"].fold(updates, SIZE)
    assert found.count == 1
    assert set(found.dropped.values()) == {"not-selected"}
    (taken,) = {id_ for id_, _, _ in updates} - set(found.dropped)
    rows = {id_: delta.dense() for id_, delta, _ in updates}
    assert np.array_equal(found.mean, rows[taken])


@pytest.mark.parametrize(
    ("name", "left_out"), [("multi-krum", 4), ("bulyan", 8), ("trimmed-mean", 0), ("median", 0)]
)
def test_how_many_are_left_out_of_twenty(name: str, left_out: int) -> None:
    found = RULES[name].fold(updates_of(honest(20)), SIZE)
    assert (len(found.dropped), found.count) == (left_out, 20 - left_out)


def test_multi_krum_leaves_the_hostile_out() -> None:
    rows = [*honest(16), *([np.full(SIZE, 9.0, np.float32)] * 4)]
    found = RULES["multi-krum"].fold(updates_of(rows), SIZE)
    assert {id_.vehicle for id_ in found.dropped} == {"v16", "v17", "v18", "v19"}


def test_fltrust_drops_who_points_away_from_the_root_update() -> None:
    # given one that points away, one that is zero, and one too long by far
    rows = [*honest(3), -ROOT, np.zeros(SIZE, np.float32), 1e20 * ROOT]
    found = RULES["fltrust"].fold(updates_of(rows), SIZE)
    # then
    assert {id_.vehicle: why for id_, why in found.dropped.items()} == {"v3": "no-trust", "v4": "no-trust"}
    assert np.linalg.norm(found.mean) <= np.linalg.norm(ROOT.astype(np.float64)) * (1 + 1e-12)


def test_clipping_leaves_what_is_short_enough() -> None:
    # given norms 3 and 30, and a bound of 10
    rows = [np.array([3.0, 0.0], np.float32), np.array([0.0, 30.0], np.float32)]
    found = norm_clip(10.0).fold(updates_of(rows), 2)
    assert found.mean == pytest.approx([1.5, 5.0], rel=1e-12)
    assert (found.count, dict(found.dropped)) == (2, {})


def test_clipping_where_most_send_nothing_moves_nothing() -> None:
    rows = [np.zeros(2, np.float32)] * 3 + [np.array([5.0, 5.0], np.float32)]
    assert norm_clip().fold(updates_of(rows), 2).mean.tolist() == [0.0, 0.0]


# --- what cannot be folded ---


@pytest.mark.parametrize(
    ("name", "few"),
    [
        ("median", 2),
        ("trimmed-mean", 2),
        ("krum", 4),
        ("multi-krum", 4),
        ("bulyan", 6),
        ("geometric-median", 2),
        ("nnm-trimmed-mean", 2),
    ],
)
def test_a_rule_with_too_few_updates_to_protect_says_so(name: str, few: int) -> None:
    with pytest.raises(VoidError, match=f"^{name} needs at least {few + 1} updates, got {few}$"):
        RULES[name].fold(updates_of(honest(few)), SIZE)
    assert RULES[name].smallest == few + 1
    assert RULES[name].fold(updates_of(honest(few + 1)), SIZE).count >= 1


@pytest.mark.parametrize(
    ("root", "text"),
    [
        (None, "root update is missing"),
        (np.zeros(SIZE, np.float32), "root update is zero"),
        (np.full(SIZE, np.nan, np.float32), "missing, not finite or of another size"),
        (np.ones(3, np.float32), "missing, not finite or of another size"),
        (-ROOT, "no update agrees with the root set"),
    ],
)
def test_fltrust_without_a_root_that_can_be_trusted_is_void(root: np.ndarray | None, text: str) -> None:
    with pytest.raises(VoidError, match=text):
        fltrust(root).fold(updates_of(honest(4)), SIZE)


@pytest.mark.parametrize("bound", [0.0, -1.0, float("nan"), float("inf")])
def test_a_bound_that_bounds_nothing_is_refused(bound: float) -> None:
    with pytest.raises(UsageError, match=f"clip_norm: expected a finite number above 0, got {bound}"):
        norm_clip(bound)


def test_the_number_of_hostile_is_the_share_but_one_at_least_and_no_more_than_the_rule_stands() -> None:
    assert [hostile(n, 0.2, 99) for n in (3, 9, 10, 14, 15)] == [1, 1, 2, 2, 3]
    assert hostile(100, 0.4, 24) == 24
    assert all(hostile(a, 0.2, 99) <= hostile(b, 0.2, 99) for a, b in pairwise(range(3, 60)))


def test_the_mean_is_the_weighted_fold() -> None:
    updates = updates_of(honest(5), weights=[1.0, 2.0, 3.0, 4.0, 5.0])
    plain: Aggregate = fold(updates, size=SIZE)
    assert mean().fold(updates, SIZE).mean.tobytes() == plain.mean.tobytes()


# --- shares ---


@pytest.mark.parametrize(
    ("share", "count", "expected"),
    [
        (0.29, 100, 29),
        (0.57, 100, 57),
        (0.07, 100, 7),
        (0.1, 10, 1),
        (1e-3, 1000, 1),
        (0.2, 4, 0),
        (0.3, 10, 3),
    ],
)
def test_a_share_counts_as_it_is_written(share: float, count: int, expected: int) -> None:
    assert part(share, count) == expected


def test_every_share_of_a_hundred_is_exact() -> None:
    assert [part(percent / 100, 100) for percent in range(101)] == list(range(101))
    assert [hostile(100, percent / 100, 49) for percent in range(1, 50)] == list(range(1, 50))


# --- clipping by the norms of other rounds ---


def test_clipping_with_a_factor_leaves_what_is_a_little_longer() -> None:
    # given norms 1, 1 and 1.4, and 30
    rows = [np.array([each, 0.0], np.float32) for each in (1.0, 1.0, 1.0, 1.4, 30.0)]
    found = norm_clip(factor=1.5).fold(updates_of(rows), 2)
    assert found.mean[0] == pytest.approx((3.0 + 1.4 + 1.5) / 5, rel=1e-6)


def test_of_two_updates_what_is_usual_bounds_the_long_one() -> None:
    # given one honest and one that is a million times as long as any before
    rows = [np.array([1.0, 0.0], np.float32), np.array([1e6, 0.0], np.float32)]
    found = norm_clip(factor=1.5, usual=1.0).fold(updates_of(rows), 2)
    assert found.mean[0] == pytest.approx((1.0 + 1.5 * HISTORY) / 2, rel=1e-6)


@pytest.mark.parametrize("factor", [0.5, float("nan"), float("inf")])
def test_a_factor_of_clipping_is_one_at_least(factor: float) -> None:
    with pytest.raises(UsageError, match=r"^clip_factor: expected a finite number of at least 1, got "):
        norm_clip(factor=factor)
