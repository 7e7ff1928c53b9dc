"""Every index mode brings the set back, a second decoder agrees, and what lies is refused before it costs memory."""

import tracemalloc
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import slow_index
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_bytes import Bytes, Refused

from fedfleet.codec import payload
from fedfleet.codec.entropy import ADAPTIVE, ALL, BITMAP, RICE, ROWS, UNARY_ZSTD, pack_indices, unpack_indices
from fedfleet.codec.entropy_rice import gaps_of, pack_adaptive, pack_rice
from fedfleet.codec.entropy_rows import MAX_COUNT, MAX_ROWS, pack_rows, row_length
from fedfleet.codec.entropy_zstd import pack_bitmap, pack_unary_zstd
from fedfleet.codec.parts import Part, Parts
from fedfleet.codec.settings import Settings
from fedfleet.codec.wire import Reader, deflate, inflate, varint
from fedfleet.protocol.errors import PeerError

Ints = npt.NDArray[np.int64]
BEHIND = bytes(100)  # the values, which every index part stands before


def indices_of(numbers: object) -> Ints:
    return np.array(sorted(numbers), dtype=np.int64)  # type: ignore[call-overload, no-any-return]


@st.composite
def sets(draw: st.DrawFn) -> tuple[Ints, int]:
    """Sets of all kinds: few, many, in stretches, in columns."""
    size = draw(st.integers(1, 500))
    single = draw(st.sets(st.integers(0, size - 1), max_size=40))
    first, length = draw(st.integers(0, size - 1)), draw(st.integers(0, 120))
    column, step = draw(st.integers(0, 30)), draw(st.integers(7, 60))
    chosen = single | set(range(first, min(size, first + length))) | set(range(column, size, step))
    return indices_of(chosen or {first}), size


@st.composite
def rows_of(draw: st.DrawFn, size: int) -> tuple[tuple[int, int], ...]:
    """Tensors that together have `size` coordinates."""
    found, left = [], size
    while left:
        columns = draw(st.integers(1, min(left, 40)))
        rows = draw(st.integers(1, left // columns))
        found.append((rows, columns))
        left -= rows * columns
        if len(found) == 6:
            found.append((1, left)) if left else None
            break
    return tuple(found)


PACK: dict[int, Callable[[Ints, int, tuple[tuple[int, int], ...]], bytes | None]] = {
    RICE: lambda indices, _size, _rows: pack_rice(gaps_of(indices)),
    ADAPTIVE: lambda indices, _size, _rows: pack_adaptive(gaps_of(indices)),
    UNARY_ZSTD: lambda indices, _size, _rows: pack_unary_zstd(gaps_of(indices)),
    BITMAP: lambda indices, size, _rows: pack_bitmap(indices, size=size),
    ROWS: lambda indices, size, rows: pack_rows(indices, rows, size=size),
}


def unpack(mode: int, data: bytes, size: int, *, valued: bool = True) -> Ints:
    reader = Reader(memoryview(data), what="test")
    found = unpack_indices(reader, size=size, mode=mode, valued=valued)
    assert reader.left == len(BEHIND)
    return found


@pytest.mark.parametrize("mode", ALL)
@given(st.data())
@settings(max_examples=60)
def test_round_trip_and_the_slow_decoder_agrees(mode: int, data: st.DataObject) -> None:
    # given any set, and tensors that have as many coordinates
    indices, size = data.draw(sets())
    coded = PACK[mode](indices, size, data.draw(rows_of(size)))
    if coded is None:  # one parameter does for all blocks
        assert mode == ADAPTIVE
        return
    # when, then
    np.testing.assert_array_equal(unpack(mode, coded + BEHIND, size), indices)
    slow = Bytes(coded + BEHIND)
    assert slow_index.MODES[mode](slow, size, True) == indices.tolist()
    assert bytes(slow.rest) == BEHIND


@given(st.data())
@settings(max_examples=60)
def test_the_smallest_is_taken(data: st.DataObject) -> None:
    indices, size = data.draw(sets())
    rows = data.draw(rows_of(size))
    mode, coded = pack_indices(indices, size=size, rows=rows)
    assert len(coded) <= min(len(pack_indices(indices, size=size, modes=(one,), rows=rows)[1]) for one in ALL)
    np.testing.assert_array_equal(unpack(mode, coded + BEHIND, size), indices)


@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0, 3.0])
def test_rows_that_are_not_coded_would_not_have_been_smaller(spread: float) -> None:
    # given sets from uniform to one where some rows have nearly all
    rng = np.random.default_rng(int(10 * spread))
    rows, size = ((256, 128), (1, 256)), 258 * 128
    for _ in range(5):
        weights = np.exp(rng.normal(0.0, spread, 258)).repeat(128)[:size] * rng.uniform(0.5, 1.5, size)
        indices = np.sort(rng.choice(size, 600, replace=False, p=weights / weights.sum()))
        # when
        mode, coded = pack_indices(indices, size=size, rows=rows)
        # then
        by_rows = PACK[ROWS](indices, size, rows)
        assert by_rows is not None
        assert len(coded) <= len(by_rows) + 2
        assert mode == ROWS or len(by_rows) >= len(coded)


@pytest.mark.parametrize("mode", [ADAPTIVE, UNARY_ZSTD, BITMAP, ROWS])
@given(st.data())
@settings(max_examples=150)
def test_both_decoders_judge_alike_what_was_changed(mode: int, data: st.DataObject) -> None:
    # given an index part with one byte changed, put in or taken out
    indices, size = data.draw(sets())
    coded = PACK[mode](indices, size, data.draw(rows_of(size)))
    if coded is None:
        return
    at = data.draw(st.integers(0, len(coded) - 1))
    changed = (
        coded[:at] + data.draw(st.binary(max_size=2)) + coded[at + data.draw(st.integers(0, 2)) :] + BEHIND
    )
    # when the slow one has judged
    try:
        slow: list[int] | str = slow_index.MODES[mode](Bytes(changed), size, True)
    except Refused as refused:
        slow = str(refused)
    # then ours says the same
    if isinstance(slow, str):
        with pytest.raises(PeerError) as caught:
            unpack_indices(Reader(memoryview(changed), what="test"), size=size, mode=mode)
        assert caught.value.reason == slow
    else:
        found = unpack_indices(Reader(memoryview(changed), what="test"), size=size, mode=mode)
        assert found.tolist() == slow


def learned(rng: np.random.Generator, outputs: int, inputs: int) -> npt.NDArray[np.float32]:
    """A layer's change: rows and columns of different strength."""
    rows, columns = rng.lognormal(0, 1, (outputs, 1)), rng.lognormal(0, 1, (1, inputs))
    return (rng.standard_normal((outputs, inputs)) * rows * columns).astype(np.float32).reshape(-1)


def test_layers_hints_save_bytes_and_the_receiver_needs_none() -> None:
    # given two layers whose rows and columns differ in strength
    rng = np.random.default_rng(3)
    delta = np.concatenate([learned(rng, 100, 80), learned(rng, 1, 100), learned(rng, 60, 100)])
    spans = ((0, 8000), (8000, 8100), (8100, 14100))
    hinted = Parts(delta.size, (Part("body", spans, columns=(80, 100, 100)),))
    # when it is sent with and without hints
    plain = payload.encode(delta, Settings(), steps=1, examples=1)
    small = payload.encode(delta, Settings(), steps=1, examples=1, parts=hinted)
    # then the hints save a fifth at least, and both say the same to a receiver without any
    assert len(small) < 0.8 * len(plain)
    one, other = (payload.decode(data, size=delta.size).delta for data in (plain, small))
    assert one.indices is not None
    assert other.indices is not None
    np.testing.assert_array_equal(one.indices, other.indices)
    np.testing.assert_array_equal(one.values, other.values)


def test_uniform_sets_stay_rice() -> None:
    delta = np.random.default_rng(5).standard_normal(300_000).astype(np.float32)
    strongest = np.sort(np.argsort(-np.abs(delta))[:3000]).astype(np.int64)
    assert pack_indices(strongest, size=delta.size)[0] == RICE


@pytest.mark.parametrize(
    ("shape", "length"),
    [
        ((), 1),
        ((7,), 7),
        ((240, 200), 200),
        ((8, 3, 5, 5), 75),
        ((3, 5000), 2500),
        ((6000,), 3000),
        ((4, 8191), 1),
    ],
)
def test_rows_of_a_tensor(shape: tuple[int, ...], length: int) -> None:
    assert row_length(shape) == length


def test_too_many_rows_are_coded_otherwise() -> None:
    indices = np.array([3, 70_000], dtype=np.int64)
    assert pack_rows(indices, ((MAX_ROWS + 1, 6),), size=6 * (MAX_ROWS + 1)) is None
    assert pack_indices(indices, size=6 * (MAX_ROWS + 1), rows=((MAX_ROWS + 1, 6),))[0] == RICE


def test_all_in_one_row_and_none_in_the_others() -> None:
    indices = np.arange(4096, 4096 + 4096, dtype=np.int64)
    coded = pack_rows(indices, ((8, 4096),), size=8 * 4096)
    assert coded is not None
    assert len(coded) < 60
    np.testing.assert_array_equal(unpack(ROWS, coded + bytes(100), 8 * 4096, valued=False), indices)


@pytest.mark.parametrize(
    ("mode", "body", "reason"),
    [
        (2, "00", "count-out-of-range"),  # an empty set is Rice's
        (4, "00", "count-out-of-range"),
        (2, "02 1e 02 00", "bad-parameter"),  # parameters from 30 in two bits
        (2, "02 00 05 00", "bad-parameter"),
        (3, "02 20 01 01 00", "bad-parameter"),
        (3, "02 00 7f 01 00", "stream-length"),
        (4, "02 01 00", "bad-frame"),
        (6, "02 00 00 00", "bad-rows"),  # rows of no columns
        (6, "02 00 8140 00", "bad-rows"),  # of 8193
        (6, "02 01 08 00 08 00", "bad-rows"),  # a run of no rows
        (6, "02 01 08 ffffff7f 08 00", "bad-rows"),  # a run behind the end
        (6, "02 00 08 02 0100", "stream-length"),  # a last byte of zero
        (7, "02 00", "unknown-mode"),
    ],
)
def test_refusals(mode: int, body: str, reason: str) -> None:
    data = bytes.fromhex(body) + BEHIND
    with pytest.raises(PeerError) as caught:
        unpack_indices(Reader(memoryview(data), what="test"), size=1000, mode=mode)
    assert caught.value.reason == reason


def test_more_indices_than_rows_take_are_refused() -> None:
    data = varint(MAX_COUNT + 1) + bytes(40_000)
    with pytest.raises(PeerError, match=r"^count-out-of-range: rows: 16385 indices, limit 16384$"):
        unpack_indices(Reader(memoryview(data), what="test"), size=1_000_000, mode=ROWS)


def bomb(told: int, held: int) -> bytes:
    """A frame that tells one size and holds zeros of another."""
    frame = bytearray(deflate(bytes(held)))
    if told != held:
        at = 1 + (1 - (frame[0] >> 5 & 1))
        length = (1, 2, 4, 8)[frame[0] >> 6]
        frame[at : at + length] = (told - (256 if length == 2 else 0)).to_bytes(length, "little")
    return bytes(frame)


@pytest.mark.parametrize("told", [100_000_000, 125_000])
def test_a_bomb_of_100_megabytes_is_refused_with_little_memory(told: int) -> None:
    # given a frame of 100 MB, honest about it or not, where a bitmap of 125,000 bytes is expected
    frame = bomb(told, 100_000_000)
    assert len(frame) < 100_000
    data = varint(5) + varint(len(frame)) + frame + BEHIND
    tracemalloc.start()
    # when
    with pytest.raises(PeerError, match=r"^bad-frame: bitmap: "):
        unpack_indices(Reader(memoryview(data), what="test"), size=1_000_000, mode=BITMAP)
    # then
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_a_window_larger_than_ours_is_refused() -> None:
    # given an honest frame of 10 MB of noise with a window of 8 MB
    content = np.random.default_rng(1).bytes(10_000_000)
    wide = zstandard.ZstdCompressionParameters(
        window_log=23, format=zstandard.FORMAT_ZSTD1_MAGICLESS, write_content_size=1, write_checksum=0
    )
    frame = zstandard.ZstdCompressor(compression_params=wide).compress(content)
    with pytest.raises(PeerError, match=r"^bad-frame: test: zstd window of 8388608 bytes for 10000000$"):
        inflate(memoryview(frame), size=10_000_000, what="test")


@pytest.mark.parametrize("spoil", [lambda f: f + b"\0", lambda f: f + f, lambda f: f[:-1], lambda _: b""])
@pytest.mark.parametrize("size", [1, 1000, 200_000])
def test_only_one_whole_frame_is_read(size: int, spoil: Callable[[bytes], bytes]) -> None:
    content = np.random.default_rng(2).bytes(size)
    frame = deflate(content)
    assert inflate(memoryview(frame), size=size, what="test") == content
    with pytest.raises(PeerError, match=r"^bad-frame:"):
        inflate(memoryview(spoil(frame)), size=size, what="test")


def test_a_sparse_bitmap_of_a_huge_model_costs_its_indices_only() -> None:
    # given five coordinates of 40 million, as a bitmap of 5 MB in a few hundred bytes
    indices = np.array([0, 9, 77_777, 20_000_000, 39_999_999], dtype=np.int64)
    data = pack_bitmap(indices, size=40_000_000) + BEHIND
    assert len(data) < 2000
    tracemalloc.start()
    # when
    found = unpack(BITMAP, data, 40_000_000)
    # then a block at a time was looked at
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(found, indices)
    assert peak < 2_000_000


def test_a_claim_of_more_values_than_bytes_costs_no_memory() -> None:
    # given a frame for a full bitmap of 100 million, but no values behind it
    data = varint(100_000_000) + varint(20) + bytes(20)
    tracemalloc.start()
    with pytest.raises(PeerError, match=r"^truncated: bitmap: 100000000 indices in 21 bytes$"):
        unpack_indices(Reader(memoryview(data), what="test"), size=2**31 - 1, mode=BITMAP)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000
