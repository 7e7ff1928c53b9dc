"""The server's signing key on disk, and what the store knows of it: made once, with the store, and never in silence.

Vehicles believe one key, which they pinned when they enrolled. A server that comes with another one is a stranger to
all of them.
"""

from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Connection

from fedfleet.fleet_server import store_models, store_properties
from fedfleet.fleet_server.files import write_file
from fedfleet.fleet_server.store import Store
from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.signing import KEY_BYTES, SigningKey

__all__ = ["PRIVATE", "PUBLIC", "load_key", "make_anew"]

PRIVATE = "server.key"
PUBLIC = "server.pub"
PROPERTY = "server_key"
"""Property of the store: the public half (hex)."""
WAY_OUT = (
    "restore server.key from a backup of this server, or make a new key with `fedfleet server rekey`: then every "
    "vehicle must enrol again"
)


def load_key(store: Store, draw: Callable[[int], bytes]) -> SigningKey:
    """Return the key of ``server.key``, made from ``draw(32)`` with a new store; ``server.pub`` has its public half.

    Both files hold hex. UsageError when the key is gone or is another than the store knows, and when its file is
    malformed or open to others: nothing is changed then.
    """
    path = store.folder / PRIVATE
    with store.read() as connection:
        known = _known(connection, store.folder)
    if not path.exists():
        if known is not None:
            whose = f" ({known[:12]}…)" if known else ""
            raise UsageError(f"{path}: the server's key{whose} is gone; {WAY_OUT}")
        write_file(path, f"{draw(KEY_BYTES).hex()}\n".encode(), mode=0o600)
    key = _read(path)
    if known and key.public.hex() != known:
        told = f"is {key.public.hex()[:12]}…, the vehicles of this store believe {known[:12]}…"
        raise UsageError(f"{path}: {told}; {WAY_OUT}")
    _keep(store, key)
    return key


def make_anew(store: Store, draw: Callable[[int], bytes]) -> tuple[str, str]:
    """Give the server a new key, made from ``draw(32)``; return the public half (hex) of the old one, and the new.

    The old one is "" where it is not known. A key file that is there stays as ``server.key.old``.
    """
    path = store.folder / PRIVATE
    with store.read() as connection:
        before = _known(connection, store.folder) or ""
    if path.exists():
        write_file(path.with_name(f"{PRIVATE}.old"), path.read_bytes(), mode=0o600)
    seed = draw(KEY_BYTES)
    key = SigningKey(seed)
    with (
        store.write() as connection
    ):  # first: killed between the two, no server starts, and this is done again
        store_properties.put(connection, PROPERTY, key.public.hex())
    write_file(path, f"{seed.hex()}\n".encode(), mode=0o600)
    _keep(store, key)
    return before, key.public.hex()


def _known(connection: Connection, folder: Path) -> str | None:
    """Return the public key (hex) that vehicles may believe, "" when it is not known; None: none yet."""
    known = store_properties.get(connection, PROPERTY)
    if known:
        return known
    public = folder / PUBLIC
    if public.exists():  # a store of an earlier version
        return public.read_text(encoding="ascii", errors="replace").strip()
    begun = store_models.newest_version(connection) is not None
    return "" if begun else None


def _read(path: Path) -> SigningKey:
    try:
        if path.stat().st_mode & 0o077:
            raise UsageError(f"{path}: expected a key that only its owner may read (chmod 600)")
        text = path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        text = ""
    try:
        return SigningKey(bytes.fromhex(text))
    except (ValueError, UsageError) as error:
        raise UsageError(
            f"{path}: expected {2 * KEY_BYTES} hex digits, got {len(text)} characters; {WAY_OUT}"
        ) from error


def _keep(store: Store, key: SigningKey) -> None:
    """Note the public half in the store and in its file, where they are not there."""
    digits = key.public.hex()
    with store.read() as connection:
        known = store_properties.get(connection, PROPERTY)
    if known != digits:
        with store.write() as connection:
            store_properties.put(connection, PROPERTY, digits)
    public = store.folder / PUBLIC
    text = f"{digits}\n".encode()
    if not public.exists() or public.read_bytes() != text:
        write_file(public, text, mode=0o644)
