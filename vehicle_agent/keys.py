"""What makes a folder one vehicle's: its key, and the lock that one process holds."""

import fcntl
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.signing import KEY_BYTES, SigningKey
from fedfleet.vehicle_agent.floors import FloorsFile, write_file

__all__ = ["KEY_FILE", "load_or_create", "lock"]

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


def load_or_create(
    folder: Path,
    *,
    draw: Callable[[int], bytes] = secrets.token_bytes,
    floors: FloorsFile | None = None,
    has_code: bool = False,
) -> SigningKey:
    """Return the key of the vehicle whose folder this is, made from ``draw(32)`` when it never had one.

    Its file is written whole, flushed, mode 0600. ``floors`` are those of the folder, when they are read already.
    UsageError when the file cannot be used or is malformed; also when the server knows this vehicle by another key
    (the file was lost or exchanged) and there is no code to enrol a new key with: ``has_code``.
    """
    path, vehicle = folder / KEY_FILE, folder.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        known = (FloorsFile(folder) if floors is None else floors).now
        if not path.exists():
            if known.enrolled and not has_code:
                raise UsageError(f"{path}: the key of vehicle {vehicle} is gone, {_way_out(vehicle)}")
            write_file(path, f"{draw(KEY_BYTES).hex()}\n".encode())
        found = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except OSError as error:
        raise UsageError(f"{path}: cannot be used: {error.strerror}") from error
    except ValueError:
        found = b""
    if len(found) != KEY_BYTES:
        told = f"expected {2 * KEY_BYTES} hex digits, the seed of the vehicle's key"
        raise UsageError(f"{path}: {told}; restore it from a copy, or remove it and {_fresh_code(vehicle)}")
    key = SigningKey(found)
    if known.vehicle_key not in {"", key.public.hex()} and not has_code:
        raise UsageError(f"{path}: not the key that vehicle {vehicle} enrolled with, {_way_out(vehicle)}")
    return key


def _way_out(vehicle: str) -> str:
    return f"by which the server knows it: restore the file from a copy, or {_fresh_code(vehicle)}"


def _fresh_code(vehicle: str) -> str:
    return f"ask the operator for a fresh code (fedfleet server code {vehicle}) and start again with it"
