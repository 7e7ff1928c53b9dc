"""What was not sent is kept, to the last bit."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedfleet.codec import payload
from fedfleet.codec.residual import Feedback, encode_with_feedback
from fedfleet.codec.settings import Settings
from fedfleet.protocol.errors import UsageError

Vector = npt.NDArray[np.float32]

ALL = [
    Settings(density=0.1),
    Settings(value="int8", density=0.1),
    Settings("dense", "sign"),
    Settings("dense", "int8"),
    Settings("dense", "float32"),
]
PAIRS = hnp.arrays(
    np.float32,
    st.tuples(st.just(2), st.integers(1, 100)),
    elements=st.floats(-(2.0**100), 2.0**100, width=32),
)


@given(PAIRS, st.sampled_from(ALL))
def test_residual_is_what_the_receiver_lacks(pair: npt.NDArray[np.float32], settings: Settings) -> None:
    # given
    delta, residual = pair[0].copy(), pair[1].copy()
    # when
    data, left = encode_with_feedback(delta, residual, settings, steps=1, examples=1)
    # then sender's and receiver's arithmetic agree bit by bit, and the inputs stay as they were
    wanted = delta + residual
    received = payload.decode(data, size=delta.size).delta.dense()
    assert left.dtype == np.float32
    np.testing.assert_array_equal(left, wanted - received)
    np.testing.assert_array_equal(pair, np.stack((delta, residual)))
    assert data == payload.encode(wanted, settings, steps=1, examples=1)


@pytest.mark.parametrize("settings", ALL)
def test_nothing_is_lost_over_many_rounds(settings: Settings) -> None:
    # given a constant wish of small whole numbers, so that float32 sums are nearly exact
    rng = np.random.default_rng(3)
    delta = rng.integers(-8, 9, 500).astype(np.float32)
    residual = np.zeros(500, dtype=np.float32)
    received = np.zeros(500)
    # when it is sent for fifty rounds
    for _ in range(50):
        data, residual = encode_with_feedback(delta, residual, settings, steps=1, examples=1)
        payload.decode(data, size=500).delta.add_to(received, 1.0)
    # then what arrived and what is left make the whole
    np.testing.assert_allclose(received + residual, 50.0 * delta, atol=1e-2)


def test_exact_values_leave_nothing() -> None:
    delta = np.random.default_rng(1).standard_normal(100).astype(np.float32)
    _, left = encode_with_feedback(delta, delta, Settings("dense", "float32"), steps=1, examples=1)
    assert not left.any()


def test_a_residual_of_another_model_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^residual: expected float32\[3\] as the delta, got float64\[4\]$"):
        encode_with_feedback(
            np.ones(3, dtype=np.float32),
            np.ones(4),  # type: ignore[arg-type]  # the mistake under test
            Settings(),
            steps=1,
            examples=1,
        )


def test_a_sum_beyond_float32_is_refused() -> None:
    huge = np.full(3, 3e38, dtype=np.float32)
    with pytest.raises(UsageError, match="got inf at index 0 of 3"):
        encode_with_feedback(huge, huge, Settings(), steps=1, examples=1)


def test_a_young_residual_enters_whole_and_an_old_one_not_at_all() -> None:
    # given
    residual = np.array([1.5, -2.0, 0.0], dtype=np.float32)
    rule = Feedback(drop_after=5)
    # when, then at the last round that counts it is the same, one later it is gone, and the input stays as it was
    np.testing.assert_array_equal(rule.entering(residual, age=5), residual)
    np.testing.assert_array_equal(rule.entering(residual, age=6), np.zeros(3, dtype=np.float32))
    np.testing.assert_array_equal(residual, np.array([1.5, -2.0, 0.0], dtype=np.float32))


@pytest.mark.parametrize("age", [0, 1, 10**9])
def test_without_a_rule_a_residual_never_grows_too_old(age: int) -> None:
    residual = np.ones(4, dtype=np.float32)
    assert Feedback().entering(residual, age=age) is residual


def test_a_share_of_the_residual_enters() -> None:
    residual = np.array([1.0, -4.0], dtype=np.float32)
    half = Feedback(keep=0.5).entering(residual, age=1)
    assert half.dtype == np.float32
    assert half.tolist() == [0.5, -2.0]
    assert not Feedback(keep=0.0).entering(residual, age=0).any()


@pytest.mark.parametrize(
    ("keep", "drop_after", "text"),
    [
        (1.5, 0, "feedback keep: expected a share from 0 to 1, got 1.5"),
        (float("nan"), 0, "feedback keep: expected a share from 0 to 1, got nan"),
        (1.0, -1, "feedback drop_after: expected 0 or more rounds, got -1"),
    ],
)
def test_a_rule_out_of_range_is_refused(keep: float, drop_after: int, text: str) -> None:
    with pytest.raises(UsageError, match=f"^{text}$"):
        Feedback(keep, drop_after)


def test_a_factor_below_one_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^feedback catch_up: expected a factor of 1 or more, got 0$"):
        Feedback(catch_up=0)


@pytest.mark.parametrize(("age", "density"), [(0, 0.02), (1, 0.02), (3, 0.06), (10, 0.2), (11, 0.2)])
def test_who_was_away_sends_what_it_would_have_sent(age: int, density: float) -> None:
    found = Feedback(catch_up=10).settings(Settings(value="int8", density=0.02), age=age)
    assert (found.value, found.density) == ("int8", pytest.approx(density))


def test_nobody_sends_more_than_everything() -> None:
    assert Feedback(catch_up=10).settings(Settings(density=0.3), age=9).density == 1.0


@pytest.mark.parametrize("wished", [Settings("dense", "stochastic4", 0.1), Settings("common", "sign", 0.1)])
def test_a_density_that_is_not_the_vehicles_stays(wished: Settings) -> None:
    assert Feedback(catch_up=10).settings(wished, age=5) is wished


@pytest.mark.parametrize("share", [-0.1, 1.5, float("inf")])
def test_a_step_ahead_that_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(UsageError, match=r"^feedback step_ahead: expected a share from 0 to 1, got "):
        Feedback(step_ahead=share)


def test_who_missed_rounds_starts_ahead_of_the_base() -> None:
    base, residual = np.array([1.0, 2.0], dtype=np.float32), np.array([4.0, -2.0], dtype=np.float32)
    rule = Feedback(step_ahead=0.5, drop_after=3)
    # away for two rounds, in every round, and with a residual that is too old
    assert rule.start(base, residual, age=3).tolist() == [3.0, 1.0]
    assert rule.start(base, residual, age=1) is base
    assert rule.start(base, residual, age=4).tolist() == [1.0, 2.0]
    assert Feedback().start(base, residual, age=9) is base


def test_an_age_below_zero_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^feedback: expected an age of 0 or more rounds, got -1$"):
        Feedback().entering(np.ones(1, dtype=np.float32), age=-1)
