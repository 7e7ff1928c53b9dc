"""Ed25519 signatures (RFC 8032) and the keys that a party trusts.

A key is its 32 raw bytes. Keys are made from a seed that the caller draws; nothing here is random.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedfleet.protocol.errors import UsageError

__all__ = ["KEY_BYTES", "SIGNATURE_BYTES", "Keyring", "SigningKey", "is_valid"]

KEY_BYTES = 32
SIGNATURE_BYTES = 64


class SigningKey:
    """A private key. Its text forms never show the seed."""

    def __init__(self, seed: bytes) -> None:
        """Make the key of this 32-byte seed; UsageError for any other length."""
        if len(seed) != KEY_BYTES:
            msg = f"a signing key's seed has {KEY_BYTES} bytes, got {len(seed)}"
            raise UsageError(msg)
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public: bytes = self._key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature of ``message``."""
        return self._key.sign(message)

    def __repr__(self) -> str:
        """Show the public half only."""
        return f"SigningKey(public={self.public.hex()[:16]}…)"


def is_valid(public: bytes, message: bytes, signature: bytes) -> bool:
    """Tell whether ``signature`` is that of ``message`` by the key ``public``; False for a malformed key."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


@dataclass(frozen=True)
class Keyring:
    """The enrolled public keys by sender, and the senders that are denied although enrolled."""

    keys: Mapping[str, bytes]
    denied: frozenset[str] = field(default_factory=frozenset)
