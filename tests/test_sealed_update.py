"""A sealed update on its whole way in: cut at every byte, bits flipped, signed again: refused, and nothing changes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedfleet.codec import payload
from fedfleet.codec.settings import Settings
from fedfleet.protocol import update
from fedfleet.protocol.envelope import Kind, open_sealed, seal
from fedfleet.protocol.errors import PeerError
from fedfleet.protocol.ids import UpdateId
from fedfleet.protocol.signing import Keyring, SigningKey

SIZE = 500
KEY = SigningKey(b"\x07" * 32)
RING = Keyring({"v01": KEY.public})
LIMIT = 10_000
DELTA = np.random.default_rng(1).normal(size=SIZE).astype(np.float32)
MODES = {
    "sign": Settings("rice", "sign", 0.1),
    "int8": Settings("rice", "int8", 0.1),
    "float32": Settings("dense", "float32", 1.0),
}


def sealed(mode: str, key: SigningKey = KEY) -> bytes:
    manifest = update.Manifest(UpdateId("v01", 9, 4), "motion-forecast", "north", round=3, base_version=2)
    body = update.pack(manifest, payload.encode(DELTA, MODES[mode], steps=5, examples=40))
    return seal(body, key, kind=Kind.UPDATE, sender="v01", fleet="demo")


def take_in(message: bytes, accumulator: NDArray[np.float64]) -> None:
    """Open, check, decode and add, in the order of the server."""
    opened = open_sealed(message, RING, fleet="demo", limit_bytes=LIMIT)
    _, encoded = update.unpack(opened.body, sender=opened.sender)
    payload.decode(encoded, size=SIZE).delta.add_to(accumulator, 40.0)


def is_refused(message: bytes) -> None:
    accumulator = np.full(SIZE, 0.25)
    with pytest.raises(PeerError):
        take_in(message, accumulator)
    assert (accumulator == 0.25).all()


@pytest.mark.parametrize("mode", MODES)
def test_an_untouched_update_is_added(mode: str) -> None:
    accumulator = np.zeros(SIZE)
    take_in(sealed(mode), accumulator)
    assert np.abs(accumulator).sum() > 0


@pytest.mark.parametrize("mode", MODES)
def test_cut_at_every_byte_it_is_refused(mode: str) -> None:
    whole = sealed(mode)
    for end in range(len(whole)):
        is_refused(whole[:end])


@pytest.mark.parametrize("mode", ["sign", "int8"])
def test_with_any_bit_flipped_it_is_refused(mode: str) -> None:
    whole = sealed(mode)
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << (place % 8)
        is_refused(bytes(flipped))


@given(mode=st.sampled_from(sorted(MODES)), data=st.data())
@settings(max_examples=200, deadline=None)
def test_several_flipped_bits_are_refused(mode: str, data: st.DataObject) -> None:
    whole = sealed(mode)
    places = data.draw(st.sets(st.integers(0, 8 * len(whole) - 1), min_size=1, max_size=20))
    flipped = bytearray(whole)
    for place in places:
        flipped[place // 8] ^= 1 << (place % 8)
    is_refused(bytes(flipped))


def test_signed_again_by_someone_else_it_is_refused() -> None:
    is_refused(sealed("sign", SigningKey(b"\x08" * 32)))


@given(cut=st.integers(0, 2**30), mode=st.sampled_from(sorted(MODES)))
@settings(max_examples=200, deadline=None)
def test_a_cut_payload_that_its_vehicle_signed_itself_is_refused(cut: int, mode: str) -> None:
    whole = payload.encode(DELTA, MODES[mode], steps=5, examples=40)
    manifest = update.Manifest(UpdateId("v01", 9, 4), "motion-forecast", "north", round=3, base_version=2)
    body = update.pack(manifest, whole[: cut % len(whole)])
    is_refused(seal(body, KEY, kind=Kind.UPDATE, sender="v01", fleet="demo"))
