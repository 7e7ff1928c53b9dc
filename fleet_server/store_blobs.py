"""Rows of blobs: what vehicles fetch by digest, as long as something names it and a grace after; what to clear."""

from collections.abc import Iterable
from hashlib import sha256

from sqlalchemy import Connection, select

from fedfleet.fleet_server import schema
from fedfleet.fleet_server.upsert import insert
from fedfleet.models import bundle
from fedfleet.protocol.chunks import CHUNK_BYTES
from fedfleet.protocol.messages import BlobRef

__all__ = [
    "canary_inputs",
    "cleared",
    "content",
    "find",
    "graph",
    "kept",
    "piece_bytes",
    "put",
    "put_canary",
    "ref",
    "reference",
    "retire",
    "set_piece_bytes",
    "to_clear",
]

CANARY_BYTES = 64_000_000
PIECE = "piece_bytes"
"""Property with the length of the pieces in which the broker takes blobs."""


def piece_bytes(connection: Connection) -> int:
    """Return the length of the pieces in which blobs are published, in bytes."""
    table = schema.property_
    found = connection.execute(select(table.c.value).where(table.c.name == PIECE)).scalar_one_or_none()
    return CHUNK_BYTES if found is None else int(found)


def set_piece_bytes(connection: Connection, size: int) -> None:
    """Publish blobs in pieces of this length, one of ``protocol.chunks.PIECES``, from now on."""
    values = {"name": PIECE, "value": str(size)}
    statement = insert(connection, schema.property_).values(**values)
    connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_=values))


def put(connection: Connection, kind: str, data: bytes) -> str:
    """Keep a blob, live again if it was retired, and return its SHA-256."""
    digest = sha256(data).hexdigest()
    table = schema.blob
    if connection.execute(select(table.c.sha256).where(table.c.sha256 == digest)).one_or_none() is None:
        row = {"sha256": digest, "kind": kind, "data": data, "size_bytes": len(data)}
        connection.execute(table.insert(), row)
    connection.execute(table.update().where(table.c.sha256 == digest).values(retired_round=None))
    return digest


def put_canary(connection: Connection, *, inputs: bytes, answers: bytes) -> str:
    """Keep a canary's two blobs; return the SHA-256 of the answers, which name the inputs."""
    put(connection, "inputs", inputs)
    return put(connection, "canary", answers)


def canary_inputs(connection: Connection, digest: str) -> BlobRef | None:
    """Return the reference to the inputs of a kept canary; None when they are in it, as an older server made it."""
    found = bundle.canary_inputs(content(connection, digest), limit_bytes=CANARY_BYTES)
    return None if found is None else ref(connection, found)


def content(connection: Connection, digest: str) -> bytes:
    """Return a kept blob."""
    found = connection.execute(select(schema.blob.c.data).where(schema.blob.c.sha256 == digest)).scalar_one()
    return bytes(found)


def find(connection: Connection, digest: str) -> bytes | None:
    """Return a blob, None when it is not kept any more."""
    found = connection.execute(
        select(schema.blob.c.data).where(schema.blob.c.sha256 == digest)
    ).scalar_one_or_none()
    return None if found is None else bytes(found)


def ref(connection: Connection, digest: str) -> BlobRef:
    """Return the reference to a kept blob, as messages carry it."""
    query = select(schema.blob.c.size_bytes).where(schema.blob.c.sha256 == digest)
    return reference(digest, connection.execute(query).scalar_one(), piece=piece_bytes(connection))


def reference(digest: str, size_bytes: int, *, piece: int) -> BlobRef:
    """Return the reference to a blob of this length, in pieces of ``piece`` bytes."""
    return BlobRef(sha256=digest, size_bytes=size_bytes, chunks=max(1, -(-size_bytes // piece)))


def kept(connection: Connection) -> list[BlobRef]:
    """Return the references to all kept blobs: the live ones, and those whose grace is not over."""
    query = select(schema.blob.c.sha256, schema.blob.c.size_bytes).order_by(schema.blob.c.sha256)
    piece = piece_bytes(connection)
    return [reference(row.sha256, row.size_bytes, piece=piece) for row in connection.execute(query)]


def graph(connection: Connection) -> BlobRef:
    """Return the reference to the graph, of which there is one per store."""
    query = select(schema.blob.c.sha256, schema.blob.c.size_bytes).where(schema.blob.c.kind == "graph")
    return reference(*connection.execute(query).one(), piece=piece_bytes(connection))


def retire(
    connection: Connection, live: Iterable[BlobRef], *, round_: int, grace_rounds: int
) -> list[BlobRef]:
    """Retire blobs that are not live any more, and forget those whose grace is over, which are returned."""
    table = schema.blob
    dead = table.c.sha256.not_in([each.sha256 for each in live])
    connection.execute(
        table.update().where(dead, table.c.retired_round.is_(None)).values(retired_round=round_)
    )
    over = table.c.retired_round <= round_ - grace_rounds
    digests = connection.execute(select(table.c.sha256).where(over)).scalars().all()
    gone = [ref(connection, digest) for digest in digests]
    connection.execute(table.delete().where(over))
    return gone


def to_clear(connection: Connection, topics: Iterable[str] = ()) -> list[str]:
    """Add retained topics that the broker is to forget; return all such topics."""
    for topic in topics:
        statement = insert(connection, schema.clearing).values(topic=topic)
        connection.execute(statement.on_conflict_do_nothing())
    return list(
        connection.execute(select(schema.clearing.c.topic).order_by(schema.clearing.c.topic)).scalars()
    )


def cleared(connection: Connection, topics: Iterable[str]) -> None:
    """Note that the broker has taken over the clearing of these topics."""
    connection.execute(schema.clearing.delete().where(schema.clearing.c.topic.in_(list(topics))))
