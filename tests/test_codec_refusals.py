"""Bytes that are not exactly a payload are refused with a reason, and nothing is added or allocated for them."""

import random
import re
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import slow_decoder
from hypothesis import given
from hypothesis import strategies as st

from fedfleet.codec import container, payload
from fedfleet.codec.settings import Settings
from fedfleet.codec.wire import varint
from fedfleet.protocol.errors import PeerError

SIZE = 300
ALL = [
    Settings(density=0.1),
    Settings(value="int8", density=0.1),
    *(Settings(value=value, density=0.1) for value in ("int2", "int3", "int4")),
    *(Settings("dense", value) for value in ("sign", "int2", "int3", "int4", "int8", "float32")),
    Settings("dense", "stochastic4", 0.3),
]
FORMAT = Path(__file__).parents[1] / "docs" / "codec-format.md"


def valid(settings: Settings, size: int = SIZE) -> bytes:
    delta = np.random.default_rng(2).standard_normal(size).astype(np.float32)
    return payload.encode(delta, settings, steps=200, examples=5000, seed=4)


def with_checksum(inner: bytes) -> bytes:
    return inner + zlib.crc32(inner).to_bytes(4, "little")


def section(kind: int, body: bytes) -> bytes:
    return bytes((kind,)) + varint(len(body)) + body


STEPS = section(0x10, b"\x01")
EXAMPLES = section(0x11, b"\x02")
# M = 8: coordinates 2 and 6 (b = 1), mean 3.0, signs - and +
SPARSE = bytes.fromhex("0010080201015040") + bytes.fromhex("0000404080")
DELTA = section(0x01, SPARSE)
SET = "01 0201015040"  # as the two coordinates of SPARSE, with their mode before them
NAMED = {
    "coordinates-mismatch": [2, 6],
    "count-mismatch  ": [2, 6],
    "count-out-of-range  ": [2, 6],
    "unexpected-mode ": [2, 6],
}
"""Where the plan names coordinates."""


def build(*sections: bytes) -> bytes:
    return with_checksum(b"fdu\x01" + b"".join(sections))


def with_delta(body_hex: str) -> bytes:
    return build(section(0x01, bytes.fromhex(body_hex)), STEPS, EXAMPLES)


def test_the_hand_made_payload_is_valid() -> None:
    got = payload.decode(build(DELTA, STEPS, EXAMPLES), size=8)
    assert got.delta.dense().tolist() == [0, 0, -3, 0, 0, 0, 3, 0]


REFUSED = {
    "payload-too-long": build(DELTA, STEPS, EXAMPLES, section(0x80, bytes(4200))),
    "truncated": build(DELTA, STEPS, EXAMPLES[:-1]),
    "truncated ": b"fdu\x01",
    "truncated  ": b"",
    "truncated   ": build(section(0x01, b""), STEPS, EXAMPLES),
    "truncated    ": with_delta("00100802010150400000404"[:-1]),
    "truncated     ": with_delta("00"),
    "checksum-mismatch": build(DELTA, STEPS, EXAMPLES)[:-1] + b"\0",
    "wrong-magic": with_checksum(b"fdv\x01" + DELTA + STEPS + EXAMPLES),
    "unknown-version": with_checksum(b"fdu\x02" + DELTA + STEPS + EXAMPLES),
    "unknown-section": build(DELTA, section(0x02, b"\0"), STEPS, EXAMPLES),
    "duplicate-section": build(DELTA, DELTA, STEPS, EXAMPLES),
    "duplicate-section ": build(DELTA, STEPS, EXAMPLES, section(0x90, b""), section(0x90, b"x")),
    "section-order": build(STEPS, DELTA, EXAMPLES),
    "section-order ": build(DELTA, STEPS, EXAMPLES, section(0x91, b""), section(0x90, b"")),
    "missing-section": build(DELTA, STEPS),
    "missing-section ": build(),
    "unknown-segment": build(DELTA, section(0x01, b"\x07" + SPARSE[1:]), STEPS, EXAMPLES),
    "unknown-mode": with_delta("00f0080201015040 0000404080"),
    "unknown-mode ": with_delta("0012080201015040 0000404080"),
    "unknown-mode  ": with_delta("0007080201015040 0000404080"),
    "unknown-mode   ": with_delta("0016080201015040 0000404080"),
    "unknown-mode    ": with_delta("00060800"),
    "unexpected-mode": with_delta("00500802ffe1f8b8 0000404080"),
    "coordinates-mismatch": with_delta("00500802ffe1f8b8 0000404080"),
    "count-mismatch  ": with_delta("00500801ffe1f8b8 0000404080"),
    "count-out-of-range  ": with_delta("00500809ffe1f8b8 0000404080"),
    "unexpected-mode ": build(DELTA, STEPS, EXAMPLES),
    "size-mismatch": with_delta("0010090201015040 0000404080"),
    "count-out-of-range": with_delta("0010080901015040 0000404080"),
    "count-out-of-range ": build(DELTA, section(0x10, varint(2**32)), EXAMPLES),
    "bad-parameter": with_delta("0010080220015040 0000404080"),
    "stream-length": with_delta("001008020102500040 0000404080"),
    "stream-length ": with_delta("0010080201000000404080"),
    "stream-length  ": with_delta("0010080201010040 0000404080"),
    "count-mismatch": with_delta("0010080201014040 0000404080"),
    "count-mismatch ": with_delta("0010080201017040 0000404080"),
    "index-out-of-range": with_delta("0010080201010940 0000404080"),
    "padding-not-zero": with_delta("0010080201015060 0000404080"),
    "padding-not-zero ": with_delta("0010080201015040 00004040a0"),
    "bad-scale": with_delta("0010080201015040 0000c07f80"),
    "bad-scale ": with_delta("0010080201015040 0000807f80"),
    "bad-scale  ": with_delta("0010080201015040 000040c080"),
    "bad-scale   ": with_delta("0010080201015040 0000000080"),
    "bad-scale    ": with_delta("0011080201015040 0402017c 0101"),
    "bad-scale     ": with_delta("000008 00000080 00"),
    "bad-scale      ": with_delta("000608" + SET + "0000c07f" + "00804000 0100"),
    "bad-scale       ": with_delta("000608" + SET + "00000000" + "00804000 0100"),
    "bad-scale        ": with_delta("000608" + SET + "0000807f" + "00804000 0100"),
    "bad-scale         ": with_delta("000608" + SET + "0000803f" + "80800100"),
    "padding-not-zero  ": with_delta("000608" + SET + "0000803f" + "0081 0100"),
    "count-out-of-range   ": with_delta("000608" + SET + "0000803f" + "0080 0103"),
    "bad-frame": with_delta("00400802 03ffffff 0000404080"),
    "bad-frame ": with_delta("00300802 0101 03ffffff 40 0000404080"),
    "bad-rows": with_delta("00600802 0000 0100 0000404080"),
    "bad-rows ": with_delta("00600802 01020401 0100 0000404080"),
    "bad-stream": with_delta("00600802 0002 06ffffffffffff 0000404080"),
    "stream-length   ": with_delta("00600802 0008 0100 0000404080"),
    "bad-parameter ": with_delta("00200802 1f0100 0000404080"),
    "bad-parameter  ": with_delta("00200802 000000 0000404080"),
    "count-out-of-range    ": with_delta("00200800"),
    "truncated      ": with_delta("00600808"),
    "bad-centroid": with_delta("0013080201015040 0000c07f 00008040 8080"),
    "bad-centroid ": with_delta("0013080201015040 00008040 0000c07f 8080"),
    "bad-centroid  ": with_delta("0013080201015040 0000803f 0000807f 8080"),
    "bad-centroid   ": with_delta("0013080201015040 00008040 0000803f 8080"),
    "bad-centroid    ": with_delta("0013080201015040 00000000 0000803f 8080"),
    "bad-centroid     ": with_delta("000308 00000080 0000803f 8080"),
    "bad-centroid      ": with_delta("0013080201015040 000080bf 0000803f 8080"),
    "padding-not-zero   ": with_delta("0013080201015040 0000803f 00008040 8180"),
    "padding-not-zero    ": with_delta("0013080201015040 0000803f 00008040 8081"),
    "bad-level": with_delta("0011080201015040 00004040 0180"),
    "non-finite-value": with_delta("000208" + "0000803f" * 7 + "0000c0ff"),
    "varint-not-canonical": build(DELTA, section(0x10, b"\x80\x00"), EXAMPLES),
    "varint-not-canonical ": build(DELTA, section(0x10, b"\xff\xff\xff\xff\xff\x01"), EXAMPLES),
    "trailing-bytes": with_delta("0010080201015040 0000404080 00"),
    "trailing-bytes ": with_delta("00100800 00000000"),
    "trailing-bytes  ": build(DELTA, section(0x10, b"\x01\x01"), EXAMPLES),
}


@pytest.mark.parametrize("name", REFUSED)
def test_each_reason(name: str) -> None:
    # given bytes with one thing wrong; when they are decoded; then both decoders give this reason
    named = NAMED.get(name)
    with pytest.raises(PeerError) as caught:
        payload.decode(REFUSED[name], size=8, common=None if named is None else np.array(named))
    assert caught.value.reason == name.strip()
    with pytest.raises(slow_decoder.Refused, match=f"^{name.strip()}$"):
        slow_decoder.decode(REFUSED[name], 8, named=named)


def test_the_format_lists_every_reason() -> None:
    table = FORMAT.read_text().split("## Refusals")[1].split("## Example")[0]
    assert set(re.findall(r"^\| `([a-z0-9-]+)`", table, re.MULTILINE)) == {name.strip() for name in REFUSED}


def test_the_format_s_example_is_what_we_encode() -> None:
    example = FORMAT.read_text().split("## Example")[1]
    listed = "".join(re.findall(r"^ {4,}((?:[0-9a-f]{2} )*[0-9a-f]{2})(?:  |$)", example, re.MULTILINE))
    delta = np.array([0, 0, -2, 0, 0, 0, 4, 0], dtype=np.float32)
    assert bytes.fromhex(listed) == payload.encode(delta, Settings(density=0.25), steps=3, examples=5)


def test_messages_say_expected_and_got() -> None:
    with pytest.raises(PeerError, match=r"^size-mismatch: delta of 300 parameters, the model has 301$"):
        payload.decode(valid(ALL[0]), size=SIZE + 1)
    with pytest.raises(PeerError, match=r"^payload-too-long: payload of 4296 bytes, limit 4100$"):
        payload.decode(bytes(4296), size=1)


def test_unknown_optional_sections_are_skipped() -> None:
    data = build(DELTA, STEPS, EXAMPLES, section(0x80, b"from the future"), section(0xFF, b""))
    assert payload.decode(data, size=8).delta.values.tolist() == [-3, 3]
    assert slow_decoder.decode(data, 8).values == [-3, 3]


@pytest.mark.parametrize("settings", ALL)
def test_cut_anywhere(settings: Settings) -> None:
    # given a valid payload, cut at every byte, with its old checksum or a new one
    data = valid(settings)
    for cut in range(len(data)):
        for damaged in (data[:cut], with_checksum(data[: min(cut, len(data) - 5)])):
            with pytest.raises(PeerError):
                payload.decode(damaged, size=SIZE)


@pytest.mark.parametrize("settings", ALL)
def test_every_flipped_bit_is_found(settings: Settings) -> None:
    data = valid(settings)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(PeerError):
            payload.decode(bytes(damaged), size=SIZE)


@given(st.binary(max_size=400), st.integers(1, 400))
def test_random_bytes(data: bytes, size: int) -> None:
    for tried in (data, with_checksum(b"fdu\x01" + data)):
        check_against_slow(tried, size)


@given(
    st.binary(max_size=60),
    st.integers(1, 20),
    st.sampled_from([0, 1, 2, 3, 4, 5, 6, *range(0x10, 0x16), 0x20, 0x30, 0x40, 0x50, 0x60]),
)
def test_random_delta_bodies(body: bytes, size: int, mode: int) -> None:
    delta = section(0x01, bytes((0, mode)) + varint(size) + body)
    check_against_slow(build(delta, STEPS, EXAMPLES), size)


def slow_verdict(data: bytes, size: int) -> slow_decoder.SlowPayload | str:
    try:
        return slow_decoder.decode(data, size)
    except slow_decoder.Refused as refused:
        return str(refused)


def check_against_slow(data: bytes, size: int) -> bool:
    """Whether the payload is accepted; both decoders must say the same, with the same reason or values."""
    slow = slow_verdict(data, size)
    if isinstance(slow, str):
        with pytest.raises(PeerError) as caught:
            payload.decode(data, size=size)
        assert caught.value.reason == slow
        return False
    fast = payload.decode(data, size=size)
    assert (fast.steps, fast.examples) == (slow.steps, slow.examples)
    assert (fast.delta.indices is None) == slow.dense
    assert fast.delta.indices is None or fast.delta.indices.tolist() == slow.coordinates
    assert fast.delta.values.tobytes() == np.array(slow.values, dtype=np.float32).tobytes()
    return True


def flip(inner: bytearray, rng: random.Random) -> None:
    inner[rng.randrange(len(inner))] ^= 1 << rng.randrange(8)


def overwrite(inner: bytearray, rng: random.Random) -> None:
    inner[rng.randrange(len(inner))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def overwrite_head(inner: bytearray, rng: random.Random) -> None:
    inner[min(rng.randrange(4, 20), len(inner) - 1)] = rng.randrange(256)


def insert(inner: bytearray, rng: random.Random) -> None:
    inner.insert(rng.randrange(len(inner) + 1), rng.randrange(256))


def cut_out(inner: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(inner))
    del inner[at : at + rng.randrange(1, 9)]


def repeat(inner: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(inner))
    inner[at:at] = inner[at : at + rng.randrange(1, 30)]


MUTATIONS: list[Callable[[bytearray, random.Random], None]] = [
    flip,
    overwrite,
    overwrite_head,
    insert,
    cut_out,
    repeat,
]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Return the payload with one to three mutations and a checksum that is right again."""
    inner = bytearray(data[:-4])
    for _ in range(rng.randrange(1, 4)):
        rng.choice(MUTATIONS)(inner, rng)
        inner = inner or bytearray(b"f")
    return with_checksum(bytes(inner))


def test_ten_thousand_mutations_behind_a_right_checksum() -> None:
    # given valid payloads of every mode, an accumulator, and a witness of what it should hold
    rng = random.Random(20)
    size = 40
    sources = [valid(settings, size) for settings in ALL]
    accumulator, witness = np.zeros(size), np.zeros(size)
    accepted = 0
    # when ten thousand mutated ones are decoded and added
    for number in range(10_000):
        data = mutated(sources[number % len(sources)], rng)
        if check_against_slow(data, size):
            accepted += 1
            change = payload.decode(data, size=size).delta
            change.add_to(accumulator, 1.0)
            witness += change.dense().astype(np.float64)
    # then only PeerError was ever raised, and only accepted payloads count
    np.testing.assert_array_equal(accumulator, witness)
    assert 500 < accepted < 5_000


@pytest.mark.parametrize(
    "body_hex",
    [
        "0010ffffffff07 ffffffff07 00 ffffff7f",  # k = M = 2^31 - 1, with a unary stream that is not there
        "0010ffffffff07 8080808004 1f 8080808001",
        "0011ffffffff07 01 00 ffffff7f",
        "0000ffffffff07 0000803f",
        "0002ffffffff07 0000803f",
    ],
)
def test_lies_about_lengths_cost_no_memory(body_hex: str) -> None:
    # given a short payload that claims a huge model's worth of data
    data = with_delta(body_hex)
    tracemalloc.start()
    # when
    with pytest.raises(PeerError, match=r"^(truncated|stream-length):"):
        payload.decode(data, size=2**31 - 1)
    # then nothing was allocated for the claim
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


def test_memory_is_bounded_by_the_payload() -> None:
    # given the densest payload there is: a coordinate of each, two bits for each
    size = 100_000
    data = payload.encode(np.ones(size, dtype=np.float32), Settings(density=1.0), steps=1, examples=1)
    assert len(data) < size // 4 + 40
    tracemalloc.start()
    # when
    payload.decode(data, size=size)
    # then
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * size


def test_a_section_for_every_type_is_bounded_by_the_length_limit() -> None:
    assert container.limit_bytes(1) == 4100
    data = build(DELTA, STEPS, EXAMPLES, *(section(kind, b"") for kind in range(0x80, 0x100)))
    assert payload.decode(data, size=8).steps == 1
