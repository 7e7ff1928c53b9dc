"""Rows of the chain: which deltas and packs of deltas are live, by the version that they lead to."""

from sqlalchemy import ColumnElement, Connection, Table, select, true

from fedfleet.fleet_server import schema, store_blobs
from fedfleet.fleet_server.chain import Chain, live, pack_due
from fedfleet.fleet_server.upsert import insert
from fedfleet.models import bundle
from fedfleet.protocol.messages import BlobRef

__all__ = ["SHARED", "chain", "pack", "step_sha256"]

SHARED = ""
"""The chain of a model that is the same in all regions."""


def chain(connection: Connection, *, version: int, full_bytes: int, region: str = SHARED) -> Chain:
    """Return the live chain to a published version."""
    deltas = _deltas(connection, region, version)
    return live(deltas, _packs(connection, region, version), version=version, full_bytes=full_bytes)


def pack(connection: Connection, version: int, *, region: str = SHARED) -> None:
    """Pack the deltas that are due now that this version is published, when all of them are still live."""
    due = pack_due(version)
    deltas = _deltas(connection, region, version) if due else {}
    if due is None or any(one not in deltas for one in due):
        return
    found: list[tuple[bundle.DeltaKind, bytes]] = [
        ("add", store_blobs.content(connection, deltas[one].sha256)) for one in due
    ]
    start = due[0] - 1
    digest = store_blobs.put(connection, "pack", bundle.pack_deltas(start, found))
    row = {"region": region, "to_version": due[-1], "from_version": start, "sha256": digest}
    connection.execute(insert(connection, schema.pack).values(row).on_conflict_do_nothing())


def step_sha256(connection: Connection, version: int, region: str) -> str | None:
    """Return the digest of the delta that led to a region's version; None when there was none."""
    for table, own in _tables(region):
        query = select(table.c.delta_sha256).where(table.c.version == version, own)
        digest: str | None = connection.execute(query).scalar_one_or_none()
        if digest is not None:
            return digest
    return None


def _tables(region: str) -> list[tuple[Table, ColumnElement[bool]]]:
    """Return where deltas of a region are: with its own head, or shared."""
    return [(schema.regional, schema.regional.c.region == region), (schema.model, true())]


def _deltas(connection: Connection, region: str, version: int) -> dict[int, BlobRef]:
    table, own = _tables(region)[region == SHARED]
    query = (
        select(table.c.version, schema.blob.c.sha256, schema.blob.c.size_bytes)
        .join(schema.blob, schema.blob.c.sha256 == table.c.delta_sha256)
        .where(table.c.version <= version, own, schema.blob.c.retired_round.is_(None))
    )
    piece = store_blobs.piece_bytes(connection)
    return {
        row.version: store_blobs.reference(row.sha256, row.size_bytes, piece=piece)
        for row in connection.execute(query)
    }


def _packs(connection: Connection, region: str, version: int) -> dict[int, BlobRef]:
    table = schema.pack
    query = (
        select(table.c.to_version, schema.blob.c.sha256, schema.blob.c.size_bytes)
        .join(schema.blob, schema.blob.c.sha256 == table.c.sha256)
        .where(table.c.region == region, table.c.to_version <= version, schema.blob.c.retired_round.is_(None))
    )
    piece = store_blobs.piece_bytes(connection)
    return {
        row.to_version: store_blobs.reference(row.sha256, row.size_bytes, piece=piece)
        for row in connection.execute(query)
    }
