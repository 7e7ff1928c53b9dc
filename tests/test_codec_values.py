"""Value modes with a table of magnitudes, and the stochastic one: how near, how unbiased, and the odd inputs."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
import slow_decoder
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedfleet.codec import payload, stochastic
from fedfleet.codec.settings import Settings
from fedfleet.codec.wire import Reader
from fedfleet.protocol.errors import UsageError

Vector = npt.NDArray[np.float32]

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
DELTAS = hnp.arrays(np.float32, st.integers(1, 200), elements=st.one_of(st.just(0.0), FINITE))
EXTREMES = np.array([3.4028235e38, -1e-45, 0.0, -0.0, 1.0], dtype=np.float32)
TABLES = {"int2": 2, "int3": 4, "int4": 8}
FLAT = [
    *(Settings(value=value, density=0.5) for value in TABLES),
    *(Settings("dense", value) for value in TABLES),
    *(Settings("dense", "stochastic4", density) for density in (0.01, 0.3, 1.0)),
]


def noise(size: int, seed: int = 1) -> Vector:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def through(delta: Vector, settings: Settings, seed: int = 0) -> Vector:
    data = payload.encode(delta, settings, steps=1, examples=1, seed=seed)
    return payload.decode(data, size=delta.size).delta.dense()


@given(DELTAS, st.sampled_from(FLAT), st.integers(0, 2**64))
@example(EXTREMES, Settings("dense", "stochastic4", 0.5), 1)
@example(EXTREMES, Settings("dense", "int4"), 1)
@example(-EXTREMES[:1], Settings("dense", "stochastic4", 1.0), 1)
@example(EXTREMES[1:2], Settings("dense", "stochastic4", 0.01), 5)
def test_any_finite_delta_is_read_alike_by_both_decoders(
    delta: Vector, settings: Settings, seed: int
) -> None:
    # given any delta, when it is encoded, then it is accepted, finite, and the same to the last bit
    data = payload.encode(delta, settings, steps=7, examples=300, seed=seed)
    fast, slow = payload.decode(data, size=delta.size).delta, slow_decoder.decode(data, delta.size)
    assert (None if fast.indices is None else fast.indices.tolist()) == (
        None if slow.dense else slow.coordinates
    )
    assert fast.values.tobytes() == np.array(slow.values, dtype=np.float32).tobytes()
    assert np.isfinite(fast.values).all()
    # and no value has the other sign, or is beyond what was to be sent but for the level above it
    got = fast.dense()
    assert (got * np.sign(delta) >= 0).all()
    if settings.value in TABLES:
        assert np.abs(got).max() <= np.abs(delta).max()


@pytest.mark.parametrize("value", TABLES)
@pytest.mark.parametrize("size", [1, 3, 1000, 200_000])
def test_each_value_goes_to_the_nearest_of_its_table(value: str, size: int) -> None:
    delta = noise(size)
    got = through(delta, Settings("dense", value))
    table = np.unique(np.abs(got))
    assert table.size <= TABLES[value]
    off = np.abs(np.abs(delta)[:, None].astype(np.float64) - table).min(axis=1)
    np.testing.assert_array_equal(np.abs(delta.astype(np.float64) - got), off)


def test_more_bits_are_nearer_and_as_near_as_theory_has_it() -> None:
    # given normal noise, of which the least error of 2, 3, 4 bits is known (Max 1960, table I)
    delta = noise(200_000)
    errors = [float(((through(delta, Settings("dense", value)) - delta) ** 2).mean()) for value in TABLES]
    # then Lloyd's iteration comes near it
    assert errors == pytest.approx([0.1175, 0.03454, 0.009497], rel=0.1)


def test_a_table_of_few_magnitudes_is_exact() -> None:
    delta = np.array([1, -1, 3, -3, 3, 1], dtype=np.float32)
    for value in TABLES:
        np.testing.assert_array_equal(through(delta, Settings("dense", value)), delta)


@pytest.mark.parametrize("value", [*TABLES, "stochastic4"])
def test_zeros_and_one_parameter(value: str) -> None:
    settings = Settings("dense", value, density=1.0)
    assert not through(np.zeros(9, dtype=np.float32), settings).any()
    assert through(np.array([-0.75], dtype=np.float32), settings).tolist() == [-0.75]
    assert not through(np.zeros(1, dtype=np.float32), Settings(value="int4", density=1.0)).any()


def draws(delta: Vector, density: float, count: int) -> Iterator[Vector]:
    for seed in range(count):
        yield through(delta, Settings("dense", "stochastic4", density), seed)


@pytest.mark.parametrize("density", [0.02, 0.1, 0.6])
def test_the_mean_of_many_draws_is_the_delta(density: float) -> None:
    # given values of all sizes over three blocks, one of them much larger
    delta = noise(3 * stochastic.BLOCK - 77) ** 3
    delta[stochastic.BLOCK : 2 * stochastic.BLOCK] *= 50
    # when the mean of 300 draws is taken (fixed seeds: the same in every run)
    total, squares = np.zeros(delta.size), np.zeros(delta.size)
    for got in draws(delta, density, 300):
        total += got
        squares += (got.astype(np.float64) - delta) ** 2
    # then no coordinate is further from the truth than Bernstein's inequality has it at one in a billion, ...
    steps, variance = rounding(delta, density)
    bound = np.sqrt(2 * 21 * variance / 300) + 21 * steps / (3 * 300)
    assert (np.abs(total / 300 - delta) <= bound).all()
    # ... nor is any block's sum further than five deviations, and the error of one draw is that of its steps
    for start in range(0, delta.size, stochastic.BLOCK):
        block = slice(start, start + stochastic.BLOCK)
        off = abs(float((total[block] / 300 - delta[block]).sum()))
        assert off <= 5 * float(np.sqrt(variance[block].sum() / 300))
    assert squares.sum() / 300 == pytest.approx(variance.sum(), rel=0.05)


def rounding(delta: Vector, density: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The step of each value that its payload states, and the variance of rounding at random to its multiples."""
    data = stochastic.pack(delta, density=density, seed=(1,))
    reader = Reader(memoryview(data), what="test")
    stochastic.unpack_set(reader, delta.size)
    step, blocks = reader.f32(), -(-delta.size // stochastic.BLOCK)
    exponents = np.frombuffer(reader.take(blocks), dtype=np.uint8).astype(np.int32)
    steps = np.repeat(np.ldexp(step, exponents), stochastic.BLOCK)[: delta.size]
    fraction = np.abs(delta) / steps % 1
    return steps, steps**2 * fraction * (1 - fraction)


@pytest.mark.parametrize("density", [0.01, 0.1, 0.3])
def test_the_density_is_the_share_of_levels_that_are_not_zero(density: float) -> None:
    sent = np.count_nonzero(through(noise(100_000), Settings("dense", "stochastic4", density)))
    assert sent / 100_000 == pytest.approx(density, rel=0.05)


def test_a_tenth_of_the_levels_cost_six_tenths_of_a_bit() -> None:
    data = payload.encode(
        noise(1_000_000), Settings("dense", "stochastic4", 0.1), steps=1000, examples=20_000, seed=1
    )
    assert 4_000_000 / len(data) > 55


def test_an_outlier_coarsens_its_own_block_only() -> None:
    # given a delta, and the same with one value that is a million times as large
    delta = noise(4 * stochastic.BLOCK)
    wild = delta.copy()
    wild[5] = 1e6
    settings = Settings("dense", "stochastic4", 0.5)

    def error(vector: Vector) -> float:
        outside = slice(stochastic.BLOCK, None)
        return float(((through(vector, settings)[outside] - vector[outside]) ** 2).mean())

    # then the others are hardly worse off
    assert error(wild) <= 1.5 * error(delta)


def test_a_seed_fixes_the_draw_and_is_required() -> None:
    delta, settings = noise(100), Settings("dense", "stochastic4", 0.3)
    one = payload.encode(delta, settings, steps=1, examples=1, seed=5)
    assert one == payload.encode(delta, settings, steps=1, examples=1, seed=5)
    assert one != payload.encode(delta, settings, steps=1, examples=1, seed=6)
    with pytest.raises(UsageError, match=r'^codec value "stochastic4" needs a seed$'):
        payload.encode(delta, settings, steps=1, examples=1)


def test_the_control_variate_is_drawn_apart_from_the_delta() -> None:
    delta, settings = noise(2000), Settings("dense", "stochastic4", 0.3)
    data = payload.encode(delta, settings, steps=1, examples=1, seed=5, control=delta)
    got = payload.decode(data, size=2000, control=True)
    assert got.control is not None
    assert got.control.dense().tolist() != got.delta.dense().tolist()


@pytest.mark.parametrize("value", ["float32", "stochastic4"])
def test_modes_that_need_all_coordinates_say_so(value: str) -> None:
    with pytest.raises(UsageError, match=rf'^codec value "{value}" needs index "dense", got index "rice"$'):
        Settings("rice", value)


@pytest.mark.parametrize("floor", [-0.1, 1.1, float("nan")])
def test_a_floor_is_a_share(floor: float) -> None:
    with pytest.raises(UsageError, match=rf"^codec layer_floor: expected a number from 0 to 1, got {floor}$"):
        Settings(layer_floor=floor)
