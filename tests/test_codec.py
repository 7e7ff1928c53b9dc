"""A payload brings back what was sent, in every mode, and both decoders agree."""

import numpy as np
import numpy.typing as npt
import pytest
import slow_decoder
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedfleet.codec import payload
from fedfleet.codec.delta import Delta
from fedfleet.codec.entropy import RICE, pack_indices, unpack_indices
from fedfleet.codec.entropy_rice import rice_parameter
from fedfleet.codec.settings import Settings
from fedfleet.codec.wire import MAX_VARINT, Reader, varint
from fedfleet.protocol.errors import PeerError, UsageError

Vector = npt.NDArray[np.float32]

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
DELTAS = hnp.arrays(np.float32, st.integers(1, 300), elements=st.one_of(st.just(0.0), FINITE))
SETTINGS = st.one_of(
    st.builds(
        Settings,
        index=st.just("rice"),
        value=st.sampled_from(["sign", "int8"]),
        density=st.floats(0.001, 1.0),
    ),
    st.builds(Settings, index=st.just("dense"), value=st.sampled_from(["sign", "int8", "float32"])),
)
EXTREMES = np.array([3.4028235e38, -1e-45, 0.0, -0.0], dtype=np.float32)
ONE_TOO_MANY = np.array([190e-45, -190e-45], dtype=np.float32)


def vector(*values: float) -> Vector:
    return np.array(values, dtype=np.float32)


def expected_sent(delta: Vector, settings: Settings) -> npt.NDArray[np.int64]:
    if settings.index == "dense":
        return np.arange(delta.size)
    strongest_first = np.argsort(-np.abs(delta), kind="stable")[: settings.count(delta.size)]
    return np.sort(strongest_first[delta[strongest_first] != 0])


def expected_values(sent: Vector, value: str) -> tuple[Vector, float]:
    """Return the ideal values, and how far a decoded one may be from them."""
    if value == "float32" or not sent.size:
        return sent, 0.0
    largest = float(np.abs(sent).max())
    if value == "int8":
        return sent, largest / 127 * 0.5001 + largest * 1e-6 + 64 * 1.5e-45
    mean = np.float32(np.abs(sent).astype(np.float64).sum() / sent.size)
    return np.where(sent < 0, -mean, mean).astype(np.float32), float(mean) * 1e-7 + 1.5e-45


@given(DELTAS, SETTINGS, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
@example(EXTREMES, Settings(value="int8", density=1.0), 0, 0)
@example(ONE_TOO_MANY, Settings(value="int8", density=1.0), 1, 1)
@example(EXTREMES, Settings(index="dense", value="int8"), 1, 1)
@example(EXTREMES, Settings(index="dense", value="sign"), 1, 1)
def test_round_trip(delta: Vector, settings: Settings, steps: int, examples: int) -> None:
    # given a delta, when it is encoded and decoded
    data = payload.encode(delta, settings, steps=steps, examples=examples)
    got = payload.decode(data, size=delta.size)
    # then the counts, the coordinates and the values are those that were to be sent
    assert (got.steps, got.examples, got.delta.size) == (steps, examples, delta.size)
    coordinates = expected_sent(delta, settings)
    if settings.index == "dense":
        assert got.delta.indices is None
    else:
        assert got.delta.indices is not None
        np.testing.assert_array_equal(got.delta.indices, coordinates)
    ideal, tolerance = expected_values(delta[coordinates], settings.value)
    assert got.delta.values.dtype == np.float32
    assert np.isfinite(got.delta.values).all()
    far = np.abs(got.delta.values.astype(np.float64) - ideal.astype(np.float64))
    assert (far <= tolerance).all()


@given(DELTAS, SETTINGS)
def test_slow_decoder_agrees_to_the_last_bit(delta: Vector, settings: Settings) -> None:
    data = payload.encode(delta, settings, steps=7, examples=300)
    fast, slow = payload.decode(data, size=delta.size), slow_decoder.decode(data, delta.size)
    assert_same(fast, slow)


def assert_same(fast: payload.Payload, slow: slow_decoder.SlowPayload) -> None:
    assert (fast.steps, fast.examples) == (slow.steps, slow.examples)
    assert (fast.delta.indices is None) == slow.dense
    if fast.delta.indices is not None:
        assert fast.delta.indices.dtype == np.int64
        assert fast.delta.indices.tolist() == slow.coordinates
    assert fast.delta.values.tobytes() == np.array(slow.values, dtype=np.float32).tobytes()


@pytest.mark.parametrize("value", ["sign", "int8"])
@pytest.mark.parametrize(("size", "density"), [(1, 1.0), (2, 0.5), (2, 1.0), (1000, 1e-9), (257, 1.0)])
def test_tiny_and_full(size: int, density: float, value: str) -> None:
    # given a model of few parameters, or every one of them sent
    delta = np.arange(1, size + 1, dtype=np.float32)
    settings = Settings(value=value, density=density)
    # when
    data = payload.encode(delta, settings, steps=1, examples=1)
    got = payload.decode(data, size=size)
    # then the strongest are there, at least one
    count = max(1, round(density * size))
    assert got.delta.indices is not None
    assert got.delta.indices.tolist() == list(range(size - count, size))
    assert_same(got, slow_decoder.decode(data, size))


@pytest.mark.parametrize("settings", [Settings(density=0.5), Settings(value="int8", density=1.0)])
def test_all_zero_delta_sends_no_coordinate(settings: Settings) -> None:
    data = payload.encode(np.zeros(50, dtype=np.float32), settings, steps=2, examples=9)
    got = payload.decode(data, size=50)
    assert got.delta.indices is not None
    assert got.delta.indices.size == got.delta.values.size == 0
    assert not got.delta.dense().any()
    assert len(data) == 20
    assert_same(got, slow_decoder.decode(data, 50))


@pytest.mark.parametrize("value", ["sign", "int8", "float32"])
def test_all_zero_dense(value: str) -> None:
    data = payload.encode(np.zeros(9, dtype=np.float32), Settings("dense", value), steps=0, examples=0)
    got = payload.decode(data, size=9)
    assert got.delta.values.tolist() == [0.0] * 9
    assert_same(got, slow_decoder.decode(data, 9))


def test_far_apart_coordinates_of_a_large_model() -> None:
    # given rising indices over the largest size there is
    indices = np.array([0, 1, 5, 2**24, 2**30, 2**31 - 3, 2**31 - 2], dtype=np.int64)
    # when
    mode, data = pack_indices(indices, size=2**31 - 1, modes=(RICE,))
    got = unpack_indices(Reader(memoryview(data), what="test"), size=2**31 - 1, mode=mode)
    # then they come back, and would be refused for a model one smaller
    np.testing.assert_array_equal(got, indices)
    with pytest.raises(PeerError, match=r"^index-out-of-range: rice: index 2147483646 of 2147483646 coord"):
        unpack_indices(Reader(memoryview(data), what="test"), size=2**31 - 2, mode=mode)


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=60))
def test_rice_parameter_is_the_optimum(gaps: list[int]) -> None:
    def bits(b: int) -> int:
        return sum((gap >> b) + 1 + b for gap in gaps)

    assert rice_parameter(np.array(gaps, dtype=np.int64)) == min(range(32), key=bits)


@pytest.mark.parametrize(
    ("density", "limit_bytes"),
    [(0.01, 11_440), (0.001, 1_640)],
)
def test_size_of_a_million_parameters(density: float, limit_bytes: int) -> None:
    # given normal noise, so that the strongest form a uniform set
    delta = np.random.default_rng(5).standard_normal(1_000_000).astype(np.float32)
    # when
    data = payload.encode(delta, Settings(density=density), steps=1000, examples=20_000)
    # then the payload with its header is near the entropy bound
    assert len(data) <= limit_bytes
    assert payload.decode(data, size=delta.size).delta.values.size == round(density * 1_000_000)


@given(st.integers(0, MAX_VARINT))
def test_varint_round_trip(number: int) -> None:
    reader = Reader(memoryview(varint(number)), what="test")
    assert reader.varint() == number
    reader.end()


@pytest.mark.parametrize("number", [-1, MAX_VARINT + 1])
def test_varint_bounds(number: int) -> None:
    with pytest.raises(ValueError, match=f"expected 0 to {MAX_VARINT}, got {number}"):
        varint(number)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("settings", [Settings(), Settings("dense", "sign"), Settings("dense", "float32")])
def test_what_is_not_finite_is_not_encoded(bad: float, settings: Settings) -> None:
    delta = np.zeros(100, dtype=np.float32)
    delta[[41, 77]] = bad
    with pytest.raises(UsageError, match=f"^delta: expected finite numbers, got {bad} at index 41 of 100$"):
        payload.encode(delta, settings, steps=1, examples=1)


@pytest.mark.parametrize(
    ("delta", "text"),
    [
        (np.zeros(0, dtype=np.float32), r"got float32\[0\]"),
        (np.zeros(3), r"got float64\[3\]"),
        (np.zeros((2, 3), dtype=np.float32), r"got float32\[2, 3\]"),
    ],
)
def test_wrong_arrays_are_not_encoded(delta: npt.NDArray[np.float32], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        payload.encode(delta, Settings(), steps=1, examples=1)


@pytest.mark.parametrize("count", [-1, 2**32])
def test_counts_out_of_range_are_not_encoded(count: int) -> None:
    with pytest.raises(UsageError, match=f"^steps: expected 0 to 4294967295, got {count}$"):
        payload.encode(vector(1), Settings(), steps=count, examples=1)
    with pytest.raises(UsageError, match=f"^examples: expected 0 to 4294967295, got {count}$"):
        payload.encode(vector(1), Settings(), steps=1, examples=count)


@pytest.mark.parametrize(
    ("index", "value", "density", "text"),
    [
        ("golomb", "sign", 0.1, 'codec index: expected one of rice, dense, common, got "golomb"'),
        (
            "rice",
            "int5",
            0.1,
            'codec value: expected one of sign, int2, int3, int4, int8, float32, stochastic4, got "int5"',
        ),
        ("rice", "sign", 0.0, "codec density: expected a number above 0 and up to 1, got 0.0"),
        ("rice", "sign", float("nan"), "codec density: expected a number above 0 and up to 1, got nan"),
        ("rice", "float32", 0.1, 'codec value "float32" needs index "dense", got index "rice"'),
    ],
)
def test_settings_refuse(index: str, value: str, density: float, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Settings(index, value, density)
    assert str(caught.value) == text


@given(DELTAS, SETTINGS, FINITE)
def test_add_to_equals_adding_the_dense_vector(delta: Vector, settings: Settings, weight: float) -> None:
    # given
    data = payload.encode(delta, settings, steps=1, examples=1)
    change = payload.decode(data, size=delta.size).delta
    accumulator = np.linspace(-1, 1, delta.size)
    # when
    expected = accumulator + change.dense().astype(np.float64) * weight
    change.add_to(accumulator, weight)
    # then
    np.testing.assert_array_equal(accumulator, expected)


def test_add_to_in_blocks() -> None:
    values = np.random.default_rng(1).standard_normal(200_001).astype(np.float32)
    accumulator = np.ones(200_001)
    Delta(200_001, None, values).add_to(accumulator, 0.3)
    np.testing.assert_array_equal(accumulator, 1 + values.astype(np.float64) * 0.3)


@pytest.mark.parametrize(
    ("accumulator", "weight", "text"),
    [
        (np.zeros(4), 1.0, r"expected float64\[3\], got float64\[4\]"),
        (np.zeros(3, dtype=np.float32), 1.0, r"expected float64\[3\], got float32\[3\]"),
        (np.zeros(3), np.nan, "weight: expected a finite number, got nan"),
    ],
)
def test_add_to_refuses(accumulator: npt.NDArray[np.float64], weight: float, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        Delta(3, None, vector(1, 2, 3)).add_to(accumulator, weight)
    assert not accumulator.any()


def test_zero_weight_adds_nothing() -> None:
    accumulator = np.ones(3)
    Delta(3, np.array([1]), vector(5)).add_to(accumulator, 0.0)
    assert accumulator.tolist() == [1, 1, 1]
