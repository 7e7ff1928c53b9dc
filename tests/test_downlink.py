"""The downlink's step: vehicles compute the same vector, and nothing that was not sent is lost."""

import numpy as np
import pytest

from fedfleet.codec.payload import decode
from fedfleet.codec.settings import Settings
from fedfleet.fleet_server.downlink import DivergedError, step

SIZE = 400
SETTINGS = [Settings("rice", "sign", 0.01), Settings("rice", "int8", 0.1), Settings("dense", "float32", 1.0)]
each = pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: f"{s.index}-{s.value}")


def vectors(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x, error = rng.normal(size=(2, SIZE)).astype(np.float32)
    return x, error * np.float32(0.01), rng.normal(size=SIZE) * 0.1


@each
def test_a_vehicle_computes_the_published_vector_to_the_bit(settings: Settings) -> None:
    # given a step
    x, error, update = vectors()
    made = step(x, error, update, settings)
    # when a vehicle that holds x adds what it decodes
    held = x + decode(made.payload, size=SIZE).delta.dense()
    # then it has x_next
    assert held.dtype == made.x_next.dtype == np.float32
    assert held.tobytes() == made.x_next.tobytes()


@each
def test_what_is_not_sent_stays_in_the_error(settings: Settings) -> None:
    x, error, update = vectors()
    made = step(x, error, update, settings)
    sent = decode(made.payload, size=SIZE).delta.dense()
    assert np.allclose(sent + made.error_next, error + update, rtol=1e-6, atol=1e-7)
    assert made.error_next.dtype == np.float32


@each
def test_no_argument_is_changed_and_equal_inputs_give_equal_bytes(settings: Settings) -> None:
    x, error, update = vectors()
    one, two = step(x, error, update, settings), step(x, error, update, settings)
    assert [a.tobytes() for a in (x, error, update)] == [a.tobytes() for a in vectors()]
    assert one.payload == two.payload
    assert one.x_next.tobytes() == two.x_next.tobytes()
    assert one.error_next.tobytes() == two.error_next.tobytes()


def test_dense_float32_leaves_no_error() -> None:
    assert not step(*vectors(), SETTINGS[2]).error_next.any()


def test_over_many_steps_the_published_vector_follows_the_sum_of_updates() -> None:
    # given the same small update again and again, of which each step sends a tenth
    x = error = np.zeros(SIZE, dtype=np.float32)
    update = np.random.default_rng(3).normal(size=SIZE)
    for _ in range(200):
        made = step(x, error, update, Settings("rice", "int8", 0.1))
        x, error = made.x_next, made.error_next
    # then vector and error together hold all of them, and the error does not grow with time
    assert np.allclose(x + error, 200 * update, rtol=1e-3, atol=1e-2)
    assert np.abs(error).mean() < 20 * np.abs(update).mean()


def test_a_zero_update_without_error_changes_nothing() -> None:
    x, _, _ = vectors()
    made = step(x, np.zeros(SIZE, dtype=np.float32), np.zeros(SIZE), SETTINGS[0])
    assert made.x_next.tobytes() == x.tobytes()
    assert not made.error_next.any()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
def test_an_update_that_is_not_finite_in_float32_is_refused(value: float) -> None:
    x, error, update = vectors()
    update[7] = value
    with pytest.raises(DivergedError, match=r"the update is (nan|inf) at parameter 7 of 400 \(1 such\)"):
        step(x, error, update, SETTINGS[1])


def test_a_vector_that_overflows_is_refused() -> None:
    x, error, update = vectors()
    x[9] = np.finfo(np.float32).max
    update[9] = 3e38
    with pytest.raises(DivergedError, match="the next vector is inf at parameter 9 of 400"):
        step(x, error, update, SETTINGS[2])


def test_other_shapes_and_types_are_refused() -> None:
    x, error, update = vectors()
    with pytest.raises(ValueError, match="three vectors of one size"):
        step(x, error, update[:-1], SETTINGS[0])
    with pytest.raises(
        ValueError, match="expected float32, float32 and float64, got float32, float32, float32"
    ):
        step(x, error, update.astype(np.float32), SETTINGS[0])
