"""Enrolment with a one-time code: how a vehicle and a server that share a short secret learn each other's keys.

The code never travels. Each side proves that it knows the code by HMAC-SHA256 over both names, the nonce and its
own public key (RFC 2104). The request is the one message whose key comes with it: it is opened by
``open_enrolment``, which checks size, header, digest, then the proof, then the signature by the offered key.
"""

import hmac
import re
from collections.abc import Callable
from hashlib import sha256
from math import log2

from fedfleet.protocol.envelope import Kind, check_digest, check_signature, peek
from fedfleet.protocol.errors import PeerError
from fedfleet.protocol.messages import Command, Request, decode

__all__ = [
    "MIN_BITS",
    "bits_of",
    "make_code",
    "open_enrolled",
    "open_enrolment",
    "secret_of",
    "server_proof",
    "vehicle_proof",
]

LIMIT_BYTES = 4096
MIN_BITS = 80
"""A code's proof travels where it can be tried against guesses for ever: so many bits are out of reach."""
_GROUPS, _GROUP_BYTES = 5, 4
_MADE = re.compile(r"[a-z2-7]{4}(-[a-z2-7]{4}){4}")
_HEX = re.compile(r"[0-9a-f]+|[0-9A-F]+")
_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
_CLASSES = ((str.isdigit, 10), (str.islower, 26), (str.isupper, 26))
_OTHER = 32
_FEWEST_DIFFERENT = 8


def make_code(draw: Callable[[int], bytes]) -> str:
    """Return a new code of 100 bits from ``draw(20)``: five groups of four, small letters and 2 to 7."""
    letters = [_ALPHABET[byte % 32] for byte in draw(_GROUPS * _GROUP_BYTES)]
    return "-".join("".join(letters[at : at + _GROUP_BYTES]) for at in range(0, len(letters), _GROUP_BYTES))


def secret_of(code: str) -> str:
    """Return what both sides prove to know of a code: a digest of one that `make_code` made, else the code itself.

    So a server keeps nothing from which a code could be read.
    """
    plain = code.strip().lower()
    if _MADE.fullmatch(plain) is None:
        return code
    return sha256(b"fedfleet enrolment code 1\x00" + plain.encode()).hexdigest()


def bits_of(code: str) -> float:
    """Return the bits of a code, were it drawn at random from the kinds of characters that it has; 0 when it is not."""
    if len(set(code)) < _FEWEST_DIFFERENT:
        return 0.0
    if _HEX.fullmatch(code):
        return 4.0 * len(code)
    counted = [size for is_one, size in _CLASSES if any(map(is_one, code))]
    known = sum(any(is_one(each) for is_one, _ in _CLASSES) for each in code)
    return len(code) * log2(sum(counted) + (_OTHER if known < len(code) else 0))


def _proof(code: str, *parts: str) -> str:
    message = b"fedfleet enrolment 1\x00" + "\x00".join(parts).encode()
    return hmac.new(code.encode(), message, sha256).hexdigest()


def vehicle_proof(code: str, *, fleet: str, vehicle: str, nonce: str, public_key: str) -> str:
    """Return the vehicle's proof (hex) that it knows ``code`` and owns ``public_key`` (hex)."""
    return _proof(code, "vehicle", fleet, vehicle, nonce, public_key)


def server_proof(code: str, *, fleet: str, vehicle: str, nonce: str, server_key: str) -> str:
    """Return the server's proof (hex) that it knows ``code`` and owns ``server_key`` (hex)."""
    return _proof(code, "server", fleet, vehicle, nonce, server_key)


def open_enrolment(sealed: bytes, codes: dict[str, str], *, fleet: str) -> Request:
    """Return a vehicle's enrolment request when it proves its open code (``codes``: vehicle to code).

    Raises PeerError, besides the envelope's reasons: not-an-enrolment, unknown-sender, wrong-code.
    """
    header = peek(sealed, limit_bytes=LIMIT_BYTES)
    check_digest(sealed, header)
    code = codes.get(header.sender)
    if header.kind is not Kind.REQUEST or code is None:
        raise PeerError("unknown-sender", f"{header.sender} is not enrolled and has no open enrolment code")
    request = decode(Request, sealed[header.body_start :], sender=header.sender)
    if request.kind != "enrol" or request.vehicle != header.sender:
        raise PeerError("not-an-enrolment", f"{header.sender} is not enrolled and asks for {request.kind}")
    expected = vehicle_proof(
        code, fleet=fleet, vehicle=request.vehicle, nonce=request.nonce, public_key=request.public_key
    )
    if not hmac.compare_digest(expected, request.proof):
        raise PeerError("wrong-code", f"{header.sender} does not prove its enrolment code")
    check_signature(sealed, header, bytes.fromhex(request.public_key), fleet=fleet)
    return request


def open_enrolled(sealed: bytes, code: str, *, fleet: str, vehicle: str, nonce: str) -> Command:
    """Return the server's answer to this vehicle's enrolment when it proves the code; the key to pin is in it."""
    header = peek(sealed, limit_bytes=LIMIT_BYTES)
    check_digest(sealed, header)
    command = decode(Command, sealed[header.body_start :], sender=header.sender)
    if header.kind is not Kind.COMMAND or command.kind != "enrolled" or command.vehicle != vehicle:
        raise PeerError("not-an-enrolment", f"{header.sender} answers {vehicle} with {command.kind}")
    expected = server_proof(code, fleet=fleet, vehicle=vehicle, nonce=nonce, server_key=command.server_key)
    if command.nonce != nonce or not hmac.compare_digest(expected, command.proof):
        raise PeerError("wrong-code", f"{header.sender} does not prove the enrolment code of {vehicle}")
    check_signature(sealed, header, bytes.fromhex(command.server_key), fleet=fleet)
    return command
