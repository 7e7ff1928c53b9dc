"""The messages in MCAP files and in the SQLite files of ROS 2 bags, one by one: no file is ever held whole.

May live here: the containers and their limits. MCAP by its specification (mcap.dev/spec) with the package `mcap`,
SQLite by the tables of rosbag2_storage_sqlite3. What a message says is the business of `object_lists` and
`camera_messages`.
"""

from __future__ import annotations

import shutil
import sqlite3
import struct
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, Final
from urllib.parse import quote

from fedfleet.protocol.errors import UsageError
from fedfleet.scenarios.members import MAX_RATIO
from fedfleet.scenarios.records import ScenarioError
from fedfleet.scenarios.ros_definitions import DEFINITIONS
from fedfleet.scenarios.words import in_words

__all__ = ["Packed", "Place", "Topic", "opened", "packed"]

MAX_RECORD_BYTES: Final = 64 * 2**20
MAX_CHUNK_BYTES: Final = 128 * 2**20
MAX_COPY_BYTES: Final = 8 * 2**30
_LOGS: Final = ("-wal", "-journal")
_MAGIC_BYTES: Final = 8

Place = tuple[int, int]
"""Where a message is in its file: of MCAP the byte of the record and the message's number in it; of SQLite the row."""


@dataclass(frozen=True)
class Topic:
    """Where messages come from: topic, the name of their schema, how they are encoded, and the schema's text."""

    name: str
    schema: str
    encoding: str
    text: bytes


@dataclass(frozen=True)
class Packed:
    """One message as it is in the file, when it was written, and where it is."""

    topic: Topic
    written_s: float
    data: bytes
    place: Place


def packed(path: Path, where: str, wanted: Callable[[Topic], bool]) -> Iterator[Packed]:
    """The messages of wanted topics, in the file's order; `wanted` is asked about every topic once.

    Raises ScenarioError naming `where` for a file that is damaged, cut short, compressed as a whole, or unpacks to too
    much; UsageError where the package that reads it is not installed.
    """
    messages = _sqlite if path.suffix == ".db3" else _mcap
    yield from messages(path, where, wanted)


@contextmanager
def opened(path: Path, where: str) -> Iterator[Callable[[Place], bytes]]:
    """Gives messages by their places as long as the block runs; ScenarioError for one that is no longer there."""
    if path.suffix == ".db3":
        with _store(path, where) as store:
            yield lambda place: _row(store, place, where)
        return
    held: dict[int, list[bytes]] = {}
    with _whole(where):
        reading = path.open("rb")
    with reading as file:

        def take(place: Place) -> bytes:
            at, number = place
            if at not in held:
                held.clear()  # of one chunk at a time
                held[at] = _record_at(file, at, where)
            if number >= len(held[at]):
                raise ScenarioError(
                    "damaged-bag", f"{where}: no message {number} at byte {at}: it has changed"
                )
            return held[at][number]

        yield take


def _mcap(path: Path, where: str, wanted: Callable[[Topic], bool]) -> Iterator[Packed]:
    records, stream_reader = _package()
    contents = _Contents(where, wanted, records, stream_reader.breakup_chunk)
    with _whole(where), path.open("rb") as file:
        reading = stream_reader.StreamReader(file, emit_chunks=True, record_size_limit=MAX_RECORD_BYTES)
        at = _MAGIC_BYTES
        for record in reading.records:
            contents.at, contents.number = at, 0
            yield from contents.messages(record)
            at = file.tell()


def _record_at(file: BinaryIO, at: int, where: str) -> list[bytes]:
    """All messages of the record that starts at a byte: those of a chunk, or the one that it is."""
    records, stream_reader = _package()
    with _whole(where):
        file.seek(at)
        options = {"skip_magic": True, "emit_chunks": True, "record_size_limit": MAX_RECORD_BYTES}
        record = next(stream_reader.StreamReader(file, **options).records)
        inside = [record]
        if isinstance(record, records.Chunk):
            inside = stream_reader.breakup_chunk(_unpacked(record, where), validate_crc=True)
        return [each.data for each in inside if isinstance(each, records.Message)]


def _package() -> tuple[Any, Any]:
    try:
        from mcap import records, stream_reader
    except ImportError as error:
        raise UsageError("MCAP files need mcap: pip install 'fedfleet[formats]'") from error
    return records, stream_reader


@contextmanager
def _whole(where: str) -> Iterator[None]:
    from mcap.exceptions import McapError

    try:
        yield
    except (McapError, ValueError, ArithmeticError, struct.error, EOFError, OSError, MemoryError) as error:
        text = f"{where}: expected a whole MCAP file: {in_words(error)}"
        raise ScenarioError("damaged-bag", text) from error


@dataclass
class _Contents:
    """What the records of an MCAP file have told so far; `kinds` and `open_chunk` are of the package."""

    where: str
    wanted: Callable[[Topic], bool]
    kinds: Any
    open_chunk: Callable[..., list[Any]]
    schemas: dict[int, Any] = field(default_factory=dict)
    topics: dict[int, Topic | None] = field(default_factory=dict)
    at: int = 0
    number: int = 0

    def messages(self, record: Any) -> Iterator[Packed]:  # noqa: ANN401 - of mcap
        """The wanted messages in a record."""
        if isinstance(record, self.kinds.Chunk):
            for inside in self.open_chunk(_unpacked(record, self.where), validate_crc=True):
                yield from self.messages(inside)
        elif isinstance(record, self.kinds.Schema):
            self.schemas[record.id] = record
        elif isinstance(record, self.kinds.Channel) and record.id not in self.topics:
            topic = self.topic(record)
            self.topics[record.id] = topic if self.wanted(topic) else None
        elif isinstance(record, self.kinds.Message):
            known = self.topics.get(record.channel_id)
            place = self.at, self.number
            self.number += 1
            if known is not None:
                yield Packed(known, record.log_time * 1e-9, record.data, place)

    def topic(self, channel: Any) -> Topic:  # noqa: ANN401 - of mcap
        schema = self.schemas.get(channel.schema_id)
        if schema is None:
            return Topic(channel.topic, "", channel.message_encoding, b"")
        encoding = channel.message_encoding
        if encoding == "cdr" and schema.encoding != "ros2msg":
            encoding = f"cdr with {schema.encoding}"
        return Topic(channel.topic, schema.name, encoding, schema.data)


def _unpacked(chunk: Any, where: str) -> Any:  # noqa: ANN401 - of mcap
    """The chunk without its compression, of exactly the size that it tells."""
    import lz4.frame
    import zstandard

    size, packed_size = chunk.uncompressed_size, len(chunk.data)
    if size > min(MAX_CHUNK_BYTES, MAX_RATIO * max(packed_size, 1)):
        text = (
            f"{where}: a chunk of {packed_size} bytes unpacks to {size}, limit {MAX_RATIO} times and 128 MiB"
        )
        raise ScenarioError("zip-bomb", text)
    try:
        if chunk.compression == "zstd":
            data = zstandard.ZstdDecompressor().stream_reader(chunk.data).read(size + 1)
        elif chunk.compression == "lz4":
            data = lz4.frame.LZ4FrameDecompressor().decompress(chunk.data, max_length=size + 1)
        elif chunk.compression == "":
            data = chunk.data
        else:
            raise ScenarioError("damaged-bag", f"{where}: a chunk packed with {chunk.compression!r:.20}")
    except (zstandard.ZstdError, RuntimeError) as error:
        raise ScenarioError(
            "damaged-bag", f"{where}: a chunk cannot be unpacked: {in_words(error)}"
        ) from error
    if len(data) != size:
        raise ScenarioError("damaged-bag", f"{where}: expected a chunk of {size} bytes, got {len(data)}")
    return replace(chunk, compression="", data=data)


def _sqlite(path: Path, where: str, wanted: Callable[[Topic], bool]) -> Iterator[Packed]:
    with _store(path, where) as store:
        topics = {number: topic for number, topic in _topics(store) if wanted(topic)}
        for number, topic in topics.items():
            rows = store.execute(
                "SELECT timestamp, length(data), CASE WHEN length(data) <= ? THEN data END, id FROM messages "
                "WHERE topic_id = ? ORDER BY id",  # as they came: a clock that is set steps back
                (MAX_RECORD_BYTES, number),
            )
            for timestamp, size, data, row in rows:
                if not isinstance(data, bytes) or not isinstance(timestamp, int):
                    text = f"{where}: a message of {size} bytes in {topic.name:.60}, limit {MAX_RECORD_BYTES}"
                    raise ScenarioError("member-too-large", text)
                yield Packed(topic, timestamp * 1e-9, data, (row, 0))


@contextmanager
def _store(path: Path, where: str) -> Iterator[sqlite3.Connection]:
    try:
        with closing(_connect(path, where)) as store:
            store.execute("PRAGMA trusted_schema = OFF")
            yield store
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise ScenarioError(
            "damaged-bag", f"{where}: expected a ROS 2 bag in SQLite: {in_words(error)}"
        ) from error


def _connect(path: Path, where: str) -> sqlite3.Connection:
    """Open a bag without changing anything beside it.

    A recorder that was killed leaves what it wrote last in a log beside the file: then a copy of both is opened.
    """
    left = [path.with_name(path.name + end) for end in _LOGS]
    logs = [log for log in left if log.is_file() and log.stat().st_size]
    if not logs:
        return sqlite3.connect(f"file:{quote(str(path))}?mode=ro&immutable=1", uri=True)
    size = sum(each.stat().st_size for each in (path, *logs))
    if size > MAX_COPY_BYTES:
        text = f"{where}: {logs[0].name} beside it holds messages that are not in it yet, and {size} bytes are too many"
        do = f"to copy; close the bag with: sqlite3 {path.name} 'PRAGMA journal_mode=delete'"
        raise ScenarioError("unfinished-bag", f"{text} {do}")
    stamp = tuple((str(each), each.stat().st_mtime_ns, each.stat().st_size) for each in (path, *logs))
    return sqlite3.connect(_copy(stamp).path)


@dataclass(frozen=True)
class _Copy:
    """A bag and its log in a folder of their own, which goes with this object."""

    folder: TemporaryDirectory[str]
    path: Path


@lru_cache(maxsize=1)
def _copy(stamp: tuple[tuple[str, int, int], ...]) -> _Copy:
    folder = TemporaryDirectory(prefix="fedfleet-bag-")
    for source, _, _ in stamp:
        shutil.copyfile(source, Path(folder.name, Path(source).name))
    return _Copy(folder, Path(folder.name, Path(stamp[0][0]).name))


def _row(store: sqlite3.Connection, place: Place, where: str) -> bytes:
    query = "SELECT data FROM messages WHERE id = ? AND length(data) <= ?"
    try:
        row = store.execute(query, (place[0], MAX_RECORD_BYTES)).fetchone()
    except sqlite3.Error as error:
        raise ScenarioError("damaged-bag", f"{where}: row {place[0]}: {in_words(error)}") from error
    if row is None or not isinstance(row[0], bytes):
        raise ScenarioError("damaged-bag", f"{where}: no message in row {place[0]}: it has changed")
    return row[0]


def _topics(store: sqlite3.Connection) -> list[tuple[int, Topic]]:
    definitions: dict[str, bytes] = {name: text.encode() for name, text in DEFINITIONS.items()}
    if store.execute("SELECT 1 FROM sqlite_master WHERE name = 'message_definitions'").fetchone():
        for name, encoding, text in store.execute(
            "SELECT topic_type, encoding, encoded_message_definition FROM message_definitions"
        ):
            if encoding == "ros2msg":
                definitions[str(name).replace("/msg/", "/")] = str(text).encode()
    rows = store.execute("SELECT id, name, type, serialization_format FROM topics ORDER BY id")
    return [
        (
            number,
            Topic(str(name), str(kind), str(form), definitions.get(str(kind).replace("/msg/", "/"), b"")),
        )
        for number, name, kind, form in rows
    ]
