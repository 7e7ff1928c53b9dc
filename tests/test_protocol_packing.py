"""Messages travel packed: shorter, bounded, and still read when they are plain JSON."""

import agent_world as aw
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from fedfleet.protocol.errors import PeerError
from fedfleet.protocol.messages import DeltaRef, ModelPointer, Plan, decode, encode
from fedfleet.protocol.packing import LIMIT_BYTES, pack, unpack


@given(st.binary(max_size=2000).map(lambda data: b"{" + data))
def test_what_is_packed_is_unpacked_and_never_longer(text: bytes) -> None:
    assert unpack(pack(text)) == text
    assert len(pack(text)) <= len(text)


def test_a_plain_message_of_an_older_peer_is_read() -> None:
    plan = aw.plan(3, 2)
    plain = plan.model_dump_json().encode()
    assert decode(Plan, plain, sender="s") == decode(Plan, encode(plan), sender="s") == plan
    assert len(encode(plan)) < len(plain)


def test_a_pointer_with_many_deltas_travels_in_less_than_half_of_its_json() -> None:
    told = [
        DeltaRef(from_version=i, to_version=i + 1, kind="add", blob=aw.blob_of(bytes([i]))) for i in range(16)
    ]
    pointer = aw.pointer(16, deltas=tuple(told))
    assert len(encode(pointer)) < len(pointer.model_dump_json()) / 2


def frame(data: bytes, *, told: bool = True) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=told).compress(data)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (frame(b" " * (LIMIT_BYTES + 1)), "too-large"),
        (frame(b"{}", told=False)[:-1], "too-large"),
        (frame(b"{}")[:-1], "malformed-message"),
        (frame(b"{}") + b"x", "malformed-message"),
        (frame(b"{}")[:4], "malformed-message"),
        (frame(b"not json"), "malformed-message"),
    ],
)
def test_a_frame_that_is_not_sound_is_refused(body: bytes, reason: str) -> None:
    with pytest.raises(PeerError) as caught:
        decode(ModelPointer, body, sender="v01")
    assert caught.value.reason == reason
