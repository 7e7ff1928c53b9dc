"""The envelope: what is refused, in which order, and that nothing but PeerError ever comes out."""

import json
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfleet.protocol import chunks, update
from fedfleet.protocol.envelope import OVERHEAD_BYTES, Kind, open_head, open_sealed, peek, seal
from fedfleet.protocol.errors import PeerError, UsageError
from fedfleet.protocol.ids import UpdateId
from fedfleet.protocol.signing import Keyring, SigningKey

KEY = SigningKey(b"\x01" * 32)
STRANGER = SigningKey(b"\x02" * 32)
RING = Keyring({"v01": KEY.public, "v02": STRANGER.public}, denied=frozenset({"v02"}))
GOLDEN = json.loads((Path(__file__).parent / "golden/protocol/v1.json").read_text())


def sealed(body: bytes = b"hello", key: SigningKey = KEY, sender: str = "v01", fleet: str = "demo") -> bytes:
    return seal(body, key, kind=Kind.UPDATE, sender=sender, fleet=fleet)


def reason(message: bytes, *, limit_bytes: int = 10_000, fleet: str = "demo") -> str:
    with pytest.raises(PeerError) as caught:
        open_sealed(message, RING, fleet=fleet, limit_bytes=limit_bytes)
    return caught.value.reason


def test_a_sealed_message_opens_to_what_was_sealed() -> None:
    opened = open_sealed(sealed(), RING, fleet="demo", limit_bytes=1000)
    assert (opened.kind, opened.sender, opened.body) == (Kind.UPDATE, "v01", b"hello")
    assert opened.digest == sha256(sealed()).hexdigest()
    assert len(sealed()) == OVERHEAD_BYTES + len("v01") + len("hello")


def test_golden_messages_still_read_and_are_still_written() -> None:
    body = bytes.fromhex(GOLDEN["manifest_and_payload"])
    message = bytes.fromhex(GOLDEN["sealed_update"])
    ring = Keyring({"v01": bytes.fromhex(GOLDEN["public_key"])})
    assert open_sealed(message, ring, fleet="demo", limit_bytes=1000).body == body
    assert seal(body, SigningKey(bytes(range(32))), kind=Kind.UPDATE, sender="v01", fleet="demo") == message
    manifest, payload = update.unpack(body, sender="v01")
    assert manifest.id == UpdateId("v01", 0x0123456789ABCDEF, 7)
    assert (manifest.task, manifest.region, manifest.round, manifest.base_version) == (
        "motion-forecast",
        "north",
        12,
        11,
    )
    assert payload == b"\x01\x02\x03"
    frames = [bytes.fromhex(GOLDEN[f"chunk_{n}"]) for n in (0, 1)]
    assert chunks.join(
        chunks.read_chunk(f, number=n, limit_bytes=100) for n, f in enumerate(frames)
    ) == bytes(range(100))


@given(cut=st.integers(0, OVERHEAD_BYTES + 7))
def test_a_message_cut_anywhere_is_refused(cut: int) -> None:
    assert reason(sealed()[:cut]) == "truncated"


@given(where=st.integers(0, (OVERHEAD_BYTES + 8) * 8 - 1))
@settings(max_examples=300)
def test_any_flipped_bit_is_refused(where: int) -> None:
    message = bytearray(sealed())
    message[where // 8] ^= 1 << (where % 8)
    assert reason(bytes(message)) != ""


@given(junk=st.binary(max_size=400))
def test_junk_is_refused_and_never_crashes(junk: bytes) -> None:
    assert reason(junk) in {"truncated", "not-an-envelope"}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (sealed(b"x" * 20_000), "too-large"),
        (b"XXXX" + sealed()[4:], "not-an-envelope"),
        (sealed()[:4] + b"\x02" + sealed()[5:], "unknown-version"),
        (sealed()[:5] + b"\x63" + sealed()[6:], "unknown-kind"),
        (sealed()[:6] + b"\x01" + sealed()[7:], "unknown-cipher"),
        (sealed()[:-1] + b"!", "digest-mismatch"),
        (sealed(sender="v09"), "unknown-sender"),
        (sealed(key=STRANGER, sender="v02"), "denied-sender"),
        (sealed(key=STRANGER), "bad-signature"),
        (sealed(fleet="other"), "bad-signature"),
    ],
)
def test_each_refusal_has_its_reason(message: bytes, expected: str) -> None:
    assert reason(message) == expected


def test_the_digest_is_checked_before_the_key_is_looked_up() -> None:
    message = sealed(sender="v09")[:-1] + b"!"
    assert reason(message) == "digest-mismatch"


def test_a_sender_outside_the_alphabet_is_refused() -> None:
    message = seal(b"", KEY, kind=Kind.STATUS, sender="V_1", fleet="demo")
    assert reason(message) == "malformed-id"


def test_the_refusal_says_what_expected_got_and_who() -> None:
    with pytest.raises(PeerError, match=r"too-large: message is 20111 bytes, limit 10000"):
        peek(sealed(b"x" * 20_000)[:20_111], limit_bytes=10_000)


def test_a_key_of_a_wrong_length_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="32 bytes, got 5"):
        SigningKey(b"short")


def test_a_key_never_shows_its_seed() -> None:
    assert KEY.public.hex()[:16] in repr(KEY)
    assert (b"\x01" * 8).hex() not in repr(KEY)


def head_reason(beginning: bytes, size_bytes: int, *, limit_bytes: int = 10_000) -> str:
    with pytest.raises(PeerError) as caught:
        open_head(beginning, RING, fleet="demo", size_bytes=size_bytes, limit_bytes=limit_bytes)
    return caught.value.reason


def test_the_beginning_of_a_message_proves_who_sealed_it() -> None:
    message = sealed(bytes(5000))
    header = open_head(message[:200], RING, fleet="demo", size_bytes=len(message), limit_bytes=10_000)
    assert (header.kind, header.sender, header.body_bytes) == (Kind.UPDATE, "v01", 5000)


def test_a_beginning_that_proves_nothing_is_refused() -> None:
    message = sealed(bytes(5000))
    size = len(message)
    assert head_reason(message[:200], size + 1) == "truncated"
    assert head_reason(message[:110], size) == "truncated"
    assert head_reason(message[:200], size, limit_bytes=size - 1) == "too-large"
    assert head_reason(sealed(bytes(5000), STRANGER)[:200], size) == "bad-signature"
    assert head_reason(sealed(bytes(5000), STRANGER, "v02")[:200], size) == "denied-sender"
    assert head_reason(sealed(bytes(5000), STRANGER, "v03")[:200], size) == "unknown-sender"
    assert head_reason(sealed(bytes(5000), fleet="other")[:200], size) == "bad-signature"


@given(st.integers(0, 110), st.integers(0, 7))
def test_a_flipped_bit_of_the_header_is_refused(place: int, bit: int) -> None:
    beginning = bytearray(sealed(bytes(5000))[:200])
    beginning[place] ^= 1 << bit
    head_reason(bytes(beginning), 5000 + OVERHEAD_BYTES + 3)
