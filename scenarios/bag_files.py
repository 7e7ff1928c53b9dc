"""The messages in MCAP files and in the SQLite files of ROS 2 bags, one by one: no file is ever held whole.

May live here: the containers and their limits. MCAP by its specification (mcap.dev/spec) with the package `mcap`,
SQLite by the tables of rosbag2_storage_sqlite3. What a message says is the business of `object_lists`.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from fedfleet.protocol.errors import UsageError
from fedfleet.scenarios.members import MAX_RATIO
from fedfleet.scenarios.records import ScenarioError
from fedfleet.scenarios.ros_definitions import DEFINITIONS

__all__ = ["Packed", "Topic", "packed"]

MAX_RECORD_BYTES: Final = 64 * 2**20
MAX_CHUNK_BYTES: Final = 128 * 2**20


@dataclass(frozen=True)
class Topic:
    """Where messages come from: topic, the name of their schema, how they are encoded, and the schema's text."""

    name: str
    schema: str
    encoding: str
    text: bytes


@dataclass(frozen=True)
class Packed:
    """One message as it is in the file, and when it was written."""

    topic: Topic
    written_s: float
    data: bytes


def packed(path: Path, where: str, wanted: Callable[[Topic], bool]) -> Iterator[Packed]:
    """The messages of wanted topics, in the file's order; `wanted` is asked about every topic once.

    Raises ScenarioError naming `where` for a file that is damaged, cut short, compressed as a whole, or unpacks to too
    much; UsageError where the package that reads it is not installed.
    """
    messages = _sqlite if path.suffix == ".db3" else _mcap
    yield from messages(path, where, wanted)


def _mcap(path: Path, where: str, wanted: Callable[[Topic], bool]) -> Iterator[Packed]:
    try:
        from mcap import records, stream_reader
        from mcap.exceptions import McapError
    except ImportError as error:
        raise UsageError("MCAP files need mcap: install fedfleet[formats]") from error
    contents = _Contents(where, wanted, records, stream_reader.breakup_chunk)
    try:
        with path.open("rb") as file:
            reading = stream_reader.StreamReader(file, emit_chunks=True, record_size_limit=MAX_RECORD_BYTES)
            for record in reading.records:
                yield from contents.messages(record)
    except (McapError, ValueError, ArithmeticError, struct.error, EOFError, OSError, MemoryError) as error:
        text = f"{where}: expected a whole MCAP file: {type(error).__name__} {_line(error)}"
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
            if known is not None:
                yield Packed(known, record.log_time * 1e-9, record.data)

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
        raise ScenarioError("damaged-bag", f"{where}: a chunk cannot be unpacked: {error}") from error
    if len(data) != size:
        raise ScenarioError("damaged-bag", f"{where}: expected a chunk of {size} bytes, got {len(data)}")
    return replace(chunk, compression="", data=data)


def _sqlite(path: Path, where: str, wanted: Callable[[Topic], bool]) -> Iterator[Packed]:
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro&immutable=1", uri=True)) as store:
            store.execute("PRAGMA trusted_schema = OFF")
            topics = {number: topic for number, topic in _topics(store) if wanted(topic)}
            for number, topic in topics.items():
                rows = store.execute(
                    "SELECT timestamp, length(data), CASE WHEN length(data) <= ? THEN data END FROM messages "
                    "WHERE topic_id = ? ORDER BY timestamp, id",
                    (MAX_RECORD_BYTES, number),
                )
                for timestamp, size, data in rows:
                    if not isinstance(data, bytes) or not isinstance(timestamp, int):
                        text = f"{where}: a message of {size} bytes in {topic.name:.60}, limit {MAX_RECORD_BYTES}"
                        raise ScenarioError("member-too-large", text)
                    yield Packed(topic, timestamp * 1e-9, data)
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise ScenarioError(
            "damaged-bag", f"{where}: expected a ROS 2 bag in SQLite: {_line(error)}"
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


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
