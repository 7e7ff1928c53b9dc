"""What makes a folder one vehicle's: the lock that one process holds, and the seed of its key."""

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.signing import KEY_BYTES

__all__ = ["KEY_FILE", "key_seed", "lock"]

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


def key_seed(path: Path, seed: bytes) -> bytes:
    """Return the seed in the key file, which is made with ``seed`` when absent: whole, flushed, mode 0600.

    Raises UsageError when the file is malformed or cannot be used.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _write(path, seed.hex() + "\n")
        found = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except OSError as error:
        raise UsageError(f"{path}: cannot be used: {error.strerror}") from error
    except ValueError:
        found = b""
    if len(found) != KEY_BYTES:
        raise UsageError(f"{path}: expected {2 * KEY_BYTES} hex digits, the seed of the vehicle's key")
    return found


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
