"""What makes a folder one vehicle's: its key, and the lock that one process holds."""

import fcntl
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.signing import KEY_BYTES, SigningKey

__all__ = ["load_or_create", "lock"]

KEY_FILE = "vehicle.key"


def lock(folder: Path, vehicle: str) -> int:
    """Hold the folder until the returned handle is closed; UsageError when another process does."""
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise UsageError(f"vehicle {vehicle}: journal {folder} is in use by another process") from error
    return handle


def load_or_create(folder: Path, *, draw: Callable[[int], bytes] = secrets.token_bytes) -> SigningKey:
    """Return the key of the vehicle whose folder this is, made from ``draw(32)`` when there is none.

    Its file is written whole, flushed, mode 0600. UsageError when it cannot be used or is malformed.
    """
    path = folder / KEY_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _write(path, draw(KEY_BYTES).hex() + "\n")
        found = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except OSError as error:
        raise UsageError(f"{path}: cannot be used: {error.strerror}") from error
    except ValueError:
        found = b""
    if len(found) != KEY_BYTES:
        raise UsageError(f"{path}: expected {2 * KEY_BYTES} hex digits, the seed of the vehicle's key")
    return SigningKey(found)


def _write(path: Path, text: str) -> None:
    fresh = path.with_suffix(".new")
    with suppress(FileNotFoundError):
        fresh.unlink()
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
