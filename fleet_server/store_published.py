"""The newest numbers that this server has published, in a file of its own beside the store.

Vehicles follow rising numbers only. A store that goes back in time (a copied file, half a restore, a database of last
week) would publish numbers that they ignore, and nobody would be told. So the numbers are also kept outside of what
such a thing brings back, written before vehicles can see them, and compared when the server starts.
"""

import json
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path

from sqlalchemy import Connection, func, select

from fedfleet.fleet_server import store_properties
from fedfleet.fleet_server.files import write_file
from fedfleet.fleet_server.schema import model, release, round_
from fedfleet.protocol.errors import UsageError

__all__ = [
    "FILE",
    "Published",
    "begin_at",
    "check",
    "leave_out",
    "left_out",
    "note",
    "of_store",
    "planned_begin",
    "read",
    "went_back",
]

FILE = "published.json"
FORMAT = "fedfleet published numbers"
VERSION = 1
LARGEST = 2**32 - 1
BEGIN, LEFT_OUT = "begin_at", "left_out"
"""Properties: how many numbers the first model is to leave out; how many numbers of rounds were left out so far."""


@dataclass(frozen=True)
class Published:
    """Numbers that vehicles may have seen: the newest round, version and release; -1: none."""

    round: int = -1
    version: int = -1
    release: int = -1

    def __or__(self, other: "Published") -> "Published":
        """Return the newer of each."""
        return Published(*(max(pair) for pair in zip(astuple(self), astuple(other), strict=True)))

    def above(self, other: "Published") -> int:
        """Return by how much the one that is furthest ahead of the other is; 0 when none is."""
        ahead = (self.round - other.round, self.version - other.version, self.release - other.release)
        return max(0, *ahead)

    def told_beside(self, store: "Published") -> str:
        """Return in words which numbers are ahead of a store's."""
        names = [each.name for each in fields(self)]
        rows = zip(names, astuple(self), astuple(store), strict=True)
        return ", ".join(
            f"{name} {mine} (the store has {_count(its)})" for name, mine, its in rows if mine > its
        )


def _count(number: int) -> str:
    return "none" if number < 0 else str(number)


def read(folder: Path) -> Published:
    """Return what is noted in a server's folder; nothing when there is no file. UsageError for one that is not ours."""
    path = folder / FILE
    try:
        told = json.loads(path.read_bytes())
        if (told["format"], told["version"]) != (FORMAT, VERSION):
            raise UsageError(
                f"{path}: {told['format']!r} version {told['version']}, expected {FORMAT!r} version 1"
            )
        numbers = [_checked(told["newest"][each.name]) for each in fields(Published)]
    except FileNotFoundError:
        return Published()
    except (OSError, ValueError, KeyError, TypeError) as error:
        told = "if the store is the newest that there is, remove this file"
        raise UsageError(f"{path}: cannot be read: {error}; {told}") from error
    return Published(*numbers)


def _checked(number: object) -> int:
    if not isinstance(number, int) or not -1 <= number <= LARGEST:
        raise ValueError(f"number {number!r}")
    return number


def note(folder: Path, numbers: Published) -> None:
    """Keep these numbers, on the disk when this returns; none of those kept ever falls. Raises OSError."""
    before = read(folder)
    newest = before | numbers
    if newest != before:
        told = {"format": FORMAT, "version": VERSION, "newest": asdict(newest)}
        write_file(folder / FILE, json.dumps(told).encode(), mode=0o600)


def of_store(connection: Connection) -> Published:
    """Return the newest numbers that a store knows."""
    columns = (round_.c.round, model.c.version, release.c.number)
    found = [connection.execute(select(func.max(column))).scalar_one() for column in columns]
    round_number, version, number = (-1 if each is None else each for each in found)
    return Published(max(round_number, left_out(connection) or -1), version, number)


def check(folder: Path, connection: Connection, *, store: str) -> None:
    """Raise UsageError when more was published than the store knows: it went back in time."""
    noted, found = read(folder), of_store(connection)
    if found.version < 0 and (begin := planned_begin(connection)):
        found |= Published(begin, begin, begin)
    if noted.above(found):
        raise UsageError(f"store {store} {went_back('published was ' + noted.told_beside(found))}")


def went_back(told: str) -> str:
    """Return the words for a store that is behind what vehicles know, and for the way out."""
    return (
        f"went back in time: {told}; vehicles would ignore what it publishes: bring the newer store back, or run "
        "`fedfleet server ahead` to go on from this one at numbers that no vehicle has seen"
    )


def planned_begin(connection: Connection) -> int:
    """Return how many numbers the first model of a store is to leave out; 0 for one that begins as any."""
    return int(store_properties.get(connection, BEGIN) or 0)


def begin_at(connection: Connection, numbers: int) -> None:
    """Have the first model of a store leave out so many numbers."""
    store_properties.put(connection, BEGIN, str(numbers))


def left_out(connection: Connection) -> int:
    """Return how many numbers of rounds were left out so far: those that ran are counted without them."""
    return int(store_properties.get(connection, LEFT_OUT) or 0)


def leave_out(connection: Connection, numbers: int) -> None:
    """Count so many more."""
    store_properties.put(connection, LEFT_OUT, str(left_out(connection) + numbers))
