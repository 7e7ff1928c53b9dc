"""The envelope: what makes bytes from a broker trustworthy. Byte layout in ``docs/protocol.md``.

Opening checks in this order and no other, so that nothing unproven is parsed and nothing unbounded is read:
size cap, fixed header, digest, the sender's enrolled key and the deny-list, Ed25519 signature. Parsing and
freshness come after, with the caller. A key never travels in its own message.
"""

import hmac
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256
from struct import Struct

from fedfleet.protocol.errors import PeerError
from fedfleet.protocol.ids import is_id
from fedfleet.protocol.signing import SIGNATURE_BYTES, Keyring, SigningKey, is_valid

__all__ = [
    "OVERHEAD_BYTES",
    "Cipher",
    "Header",
    "Kind",
    "Opened",
    "open_head",
    "open_sealed",
    "peek",
    "prove",
    "seal",
]

MAGIC = b"FFEN"
VERSION = 1
_FIXED = Struct(">4sBBBBI")
_DIGEST_BYTES = 32
_CONTEXT = b"fedfleet envelope 1\x00"
OVERHEAD_BYTES = _FIXED.size + _DIGEST_BYTES + SIGNATURE_BYTES
"""Bytes that an envelope adds to its body, besides the sender's name."""


class Kind(IntEnum):
    """What the body is."""

    PLAN = 1
    SETTLEMENT = 2
    MODEL = 3
    RELEASE = 4
    STATUS = 5
    UPDATE = 6
    METRICS = 7
    REQUEST = 8
    RECEIPT = 9
    COMMAND = 10


class Cipher(IntEnum):
    """How the body is encrypted. Only CLEAR is in use; the others are reserved and refused."""

    CLEAR = 0
    HPKE = 1
    MASKED = 2


@dataclass(frozen=True)
class Header:
    """The fixed header, checked for form but not yet for truth."""

    kind: Kind
    sender: str
    body_start: int
    body_bytes: int


@dataclass(frozen=True)
class Opened:
    """A message whose sender is proven. ``digest`` is the SHA-256 (hex) of the whole sealed message."""

    kind: Kind
    sender: str
    body: bytes
    digest: str


def seal(body: bytes, key: SigningKey, *, kind: Kind, sender: str, fleet: str) -> bytes:
    """Return the sealed message. The signature covers kind, sender, fleet and body."""
    name = sender.encode()
    head = _FIXED.pack(MAGIC, VERSION, kind, Cipher.CLEAR, len(name), len(body)) + name
    digest = sha256(head + body).digest()
    return head + digest + key.sign(_signed(fleet, digest)) + body


def peek(sealed: bytes, *, limit_bytes: int) -> Header:
    """Check the size cap and the fixed header; nothing else is believed or read."""
    return _peek(sealed, len(sealed), limit_bytes=limit_bytes)


def _peek(sealed: bytes, size_bytes: int, *, limit_bytes: int) -> Header:
    """Check the header of a message of ``size_bytes``, of which at least the beginning is here."""
    if size_bytes > limit_bytes:
        raise PeerError("too-large", f"message is {size_bytes} bytes, limit {limit_bytes}")
    if len(sealed) < OVERHEAD_BYTES:
        raise PeerError(
            "truncated", f"message is {len(sealed)} bytes, an envelope has at least {OVERHEAD_BYTES}"
        )
    magic, version, kind, cipher, name_bytes, body_bytes = _FIXED.unpack_from(sealed)
    if magic != MAGIC:
        raise PeerError("not-an-envelope", f"message begins {magic!r}, expected {MAGIC!r}")
    if version != VERSION:
        raise PeerError("unknown-version", f"envelope version {version}, this side reads {VERSION}")
    if kind not in Kind.__members__.values():
        raise PeerError("unknown-kind", f"message kind {kind} is not known")
    if cipher != Cipher.CLEAR:
        raise PeerError("unknown-cipher", f"cipher {cipher} is reserved, this side reads {int(Cipher.CLEAR)}")
    start = OVERHEAD_BYTES + name_bytes
    if size_bytes != start + body_bytes:
        raise PeerError("truncated", f"message is {size_bytes} bytes, its header says {start + body_bytes}")
    try:
        sender = sealed[_FIXED.size : _FIXED.size + name_bytes].decode("ascii")
    except UnicodeDecodeError as error:
        raise PeerError("malformed-id", "the sender's name is not ASCII") from error
    if not is_id(sender):
        raise PeerError("malformed-id", f"sender {sender[:40]!r} is not an id")
    return Header(Kind(kind), sender, start, body_bytes)


def open_sealed(sealed: bytes, keyring: Keyring, *, fleet: str, limit_bytes: int) -> Opened:
    """Return the message when its sender is enrolled, not denied, and signed exactly these bytes for this fleet.

    Raises PeerError with one of: too-large, truncated, not-an-envelope, unknown-version, unknown-kind,
    unknown-cipher, malformed-id, digest-mismatch, unknown-sender, denied-sender, bad-signature.
    """
    header = prove(sealed, keyring, fleet=fleet, limit_bytes=limit_bytes)
    return Opened(header.kind, header.sender, sealed[header.body_start :], sha256(sealed).hexdigest())


def prove(sealed: bytes, keyring: Keyring, *, fleet: str, limit_bytes: int) -> Header:
    """Check all that `open_sealed` does and raise as it does, without a copy of the body."""
    header = peek(sealed, limit_bytes=limit_bytes)
    check_digest(sealed, header)
    check_signature(sealed, header, _enrolled_key(header.sender, keyring, fleet), fleet=fleet)
    return header


def open_head(beginning: bytes, keyring: Keyring, *, fleet: str, size_bytes: int, limit_bytes: int) -> Header:
    """Prove the sender of a message of ``size_bytes`` by its beginning, before the rest is here.

    The signature covers the digest in the header, the digest covers the body: what is proven is that the sender
    signed some message of this kind and length. Only `open_sealed` proves the body. Raises PeerError with the reasons
    of `open_sealed` but digest-mismatch; ``truncated`` when the beginning is shorter than the header.
    """
    header = _peek(beginning, size_bytes, limit_bytes=limit_bytes)
    if len(beginning) < header.body_start:
        raise PeerError("truncated", f"{len(beginning)} bytes do not hold the header of {header.body_start}")
    check_signature(beginning, header, _enrolled_key(header.sender, keyring, fleet), fleet=fleet)
    return header


def _enrolled_key(sender: str, keyring: Keyring, fleet: str) -> bytes:
    public = keyring.keys.get(sender)
    if public is None:
        raise PeerError("unknown-sender", f"{sender} is not enrolled in fleet {fleet}")
    if sender in keyring.denied:
        raise PeerError("denied-sender", f"{sender} is on the deny-list of fleet {fleet}")
    return public


def check_digest(sealed: bytes, header: Header) -> None:
    """Raise PeerError ``digest-mismatch`` unless the digest is that of header and body."""
    head_bytes = header.body_start - _DIGEST_BYTES - SIGNATURE_BYTES
    told = sealed[head_bytes : head_bytes + _DIGEST_BYTES]
    hashed = sha256(sealed[:head_bytes])
    hashed.update(memoryview(sealed)[header.body_start :])
    found = hashed.digest()
    if not hmac.compare_digest(told, found):
        raise PeerError(
            "digest-mismatch",
            f"bytes from {header.sender} have SHA-256 {found.hex()[:12]}…, expected {told.hex()[:12]}…",
        )


def check_signature(sealed: bytes, header: Header, public: bytes, *, fleet: str) -> None:
    """Raise PeerError ``bad-signature`` unless ``public`` signed this message for this fleet."""
    signature_start = header.body_start - SIGNATURE_BYTES
    digest = sealed[signature_start - _DIGEST_BYTES : signature_start]
    if not is_valid(public, _signed(fleet, digest), sealed[signature_start : header.body_start]):
        raise PeerError(
            "bad-signature",
            f"the signature is not {header.sender}'s enrolled key {public.hex()[:12]}… in fleet {fleet}",
        )


def _signed(fleet: str, digest: bytes) -> bytes:
    return _CONTEXT + fleet.encode() + b"\x00" + digest
