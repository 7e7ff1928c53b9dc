"""The server's signing key on disk: made at the first start, readable by its owner only."""

from collections.abc import Callable
from pathlib import Path

from fedfleet.fleet_server.files import write_file
from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.signing import KEY_BYTES, SigningKey

__all__ = ["load_key"]

PRIVATE = "server.key"
PUBLIC = "server.pub"


def load_key(data_dir: Path, draw: Callable[[int], bytes]) -> SigningKey:
    """Return the key of ``server.key``, made from ``draw(32)`` when there is none; ``server.pub`` has its public half.

    Both files hold hex. UsageError when the key file is malformed or open to others.
    """
    path = data_dir / PRIVATE
    data_dir.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        write_file(path, f"{draw(KEY_BYTES).hex()}\n".encode(), mode=0o600)
    if path.stat().st_mode & 0o077:
        raise UsageError(f"{path}: expected a key that only its owner may read (chmod 600)")
    try:
        key = SigningKey(bytes.fromhex(path.read_text(encoding="ascii").strip()))
    except (ValueError, UsageError) as error:
        raise UsageError(f"{path}: expected {KEY_BYTES} bytes in hex: {error}") from error
    public = data_dir / PUBLIC
    text = f"{key.public.hex()}\n".encode()
    if not public.exists() or public.read_bytes() != text:
        write_file(public, text, mode=0o644)
    return key
