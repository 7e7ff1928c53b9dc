"""What may never go back on a vehicle, whatever becomes of its journal: one small file, replaced whole and synced.

A journal may be damaged, lost, or an older copy of itself. Whom the vehicle trusts, the newest that it has seen and the
numbers that it has used are therefore kept beside it.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.signing import KEY_BYTES
from fedfleet.vehicle_agent.trusted import Seen

__all__ = ["Floors", "FloorsFile", "write_file"]

NAME = "floors"
OLD_PIN = "server.pin"
VERSION = 1
EPOCHS_KEPT = 16
_MAGIC = b"fedfleet floors"


@dataclass(frozen=True)
class Floors:
    """``server_key`` and ``vehicle_key`` are public keys (hex), empty when unknown; ``enrolled`` as in the journal.

    ``session`` is the last number of a connection, ``sequences`` the last update number by epoch (hex, newest last),
    ``seen`` the newest of each kind by task and region.
    """

    server_key: str = ""
    vehicle_key: str = ""
    enrolled: bool = False
    session: int = 0
    sequences: Mapping[str, int] = field(default_factory=dict)
    seen: Mapping[str, Mapping[str, Seen]] = field(default_factory=dict)

    def counting(self, epoch: int, sequence: int) -> "Floors":
        """Return the same with this number as the last of an epoch, which is now the newest."""
        name = f"{epoch:016x}"
        others = {one: last for one, last in self.sequences.items() if one != name}
        kept = dict(list(others.items())[-EPOCHS_KEPT + 1 :])
        return replace(self, sequences={**kept, name: max(sequence, self.sequences.get(name, 0))})

    def seeing(self, task: str, region: str, seen: Seen) -> "Floors":
        """Return the same with this as the newest of a task in a region, nowhere below what it was."""
        regions = self.seen.get(task, {})
        newest = regions[region].joined(seen) if region in regions else seen
        return replace(self, seen={**self.seen, task: {**regions, region: newest}})


_ADAPTER: TypeAdapter[Floors] = TypeAdapter(Floors)


class FloorsFile:
    """The file ``floors`` in a vehicle's folder. ``damaged`` is where an unreadable one was put; None mostly.

    Raises UsageError when a newer program wrote it, OSError when it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self.damaged: Path | None = None
        self.now = Floors()
        try:
            self.now = _read(self._path)
        except FileNotFoundError:
            self.now = _from_pin(folder / OLD_PIN)
        except ValueError:
            self.damaged = _set_aside(self._path)
            self.now = _from_pin(folder / OLD_PIN)

    def change(self, floors: Floors) -> None:
        """Keep these instead; OSError, and no change, when they cannot be written."""
        if floors == self.now:
            return
        body = _ADAPTER.dump_json(floors)
        head = _MAGIC + f" {VERSION} {sha256(body).hexdigest()}\n".encode()
        write_file(self._path, head + body + b"\n")
        self.now = floors
        self._path.with_name(OLD_PIN).unlink(missing_ok=True)


def _read(path: Path) -> Floors:
    """Return the floors of a file; ValueError when it is not whole."""
    head, _, body = path.read_bytes().partition(b"\n")
    words = head.rpartition(b" ")
    magic, _, version = words[0].rpartition(b" ")
    if magic != _MAGIC or not version.isdigit():
        raise ValueError("no floors")
    if int(version) > VERSION:
        raise UsageError(f"{path} has version {int(version)}, this program writes {VERSION}")
    body = body.removesuffix(b"\n")
    if sha256(body).hexdigest().encode() != words[2]:
        raise ValueError("digest")
    try:
        return _ADAPTER.validate_json(body)
    except ValidationError as error:
        raise ValueError(str(error)) from error


def _from_pin(path: Path) -> Floors:
    """Return what an older program kept: the server's key, empty when none was known."""
    try:
        text = path.read_text(encoding="ascii").strip()
        known = len(bytes.fromhex(text)) in {0, KEY_BYTES}
    except (OSError, ValueError):
        return Floors()
    return Floors(server_key=text, enrolled=True) if known else Floors()


def _set_aside(path: Path) -> Path:
    number = 1
    while (kept := path.with_name(f"{NAME}.damaged-{number}")).exists():
        number += 1
    path.replace(kept)
    return kept


def write_file(path: Path, data: bytes) -> None:
    """Write a file, readable by its owner only: whole and on the disk, or as before (OSError)."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
