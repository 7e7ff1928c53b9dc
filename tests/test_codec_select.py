"""The strongest coordinates, exactly, whatever the sample guessed."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedfleet.codec.select import top_k
from fedfleet.protocol.errors import UsageError

Vector = npt.NDArray[np.float32]


def plain(values: Vector, count: int) -> npt.NDArray[np.int64]:
    """Return what top_k promises, by sorting: strongest first, the lowest index among equals, no zeros."""
    order = np.argsort(-np.abs(values), kind="stable")[:count]
    return np.sort(order[values[order] != 0])


@given(
    hnp.arrays(np.float32, st.integers(1, 80), elements=st.integers(-4, 4).map(float)),
    st.integers(1, 80),
)
def test_ties_go_to_the_lowest_index(values: Vector, count: int) -> None:
    np.testing.assert_array_equal(top_k(values, count), plain(values, count))


def normal(rng: np.random.Generator, size: int) -> Vector:
    return rng.standard_normal(size).astype(np.float32)


def heavy_tailed(rng: np.random.Generator, size: int) -> Vector:
    return rng.standard_cauchy(size).astype(np.float32)


def few_levels(rng: np.random.Generator, size: int) -> Vector:
    return rng.integers(-3, 4, size).astype(np.float32)


def hidden_from_the_sample(rng: np.random.Generator, size: int) -> Vector:
    values = rng.standard_normal(size).astype(np.float32) * np.float32(1e-3)
    values[1::4] *= 1e6
    return values


def seen_by_the_sample_only(rng: np.random.Generator, size: int) -> Vector:
    values = rng.standard_normal(size).astype(np.float32) * np.float32(1e-3)
    values[:: size // 16_384] *= 1e6
    return values


def mostly_zero(rng: np.random.Generator, size: int) -> Vector:
    values = np.zeros(size, dtype=np.float32)
    values[rng.integers(0, size, 50)] = -1
    return values


@pytest.mark.parametrize(
    "draw",
    [normal, heavy_tailed, few_levels, hidden_from_the_sample, seen_by_the_sample_only, mostly_zero],
)
@pytest.mark.parametrize("share", [1e-5, 0.001, 0.01, 0.3, 0.9, 1.0])
def test_equals_plain_selection(draw: object, share: float) -> None:
    # given a vector long enough that the threshold is sampled
    assert callable(draw)
    values = draw(np.random.default_rng(11), 70_001)
    count = max(1, round(share * values.size))
    # when, then
    got = top_k(values, count)
    assert got.dtype == np.int64
    np.testing.assert_array_equal(got, plain(values, count))


@given(st.integers(1, 400), st.integers(0, 2**32 - 1))
def test_argpartition_finds_the_same_set(count: int, seed: int) -> None:
    # given distinct magnitudes
    values = np.random.default_rng(seed).permutation(np.arange(1, 20_001)).astype(np.float32)
    values[::2] *= -1
    # when
    strongest = np.argpartition(np.abs(values), values.size - count)[values.size - count :]
    # then
    np.testing.assert_array_equal(top_k(values, count), np.sort(strongest))


def test_nan_deep_in_a_long_vector_is_named() -> None:
    values = np.ones(100_000, dtype=np.float32)
    values[99_999] = np.nan
    with pytest.raises(
        UsageError, match=r"^delta: expected finite numbers, got nan at index 99999 of 100000$"
    ):
        top_k(values, 10)
