"""Rows of variants: the other forms of a release's model file, published or not good enough."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, select

from fedfleet.fleet_server import schema, store_blobs
from fedfleet.protocol.messages import BlobRef, Variant

__all__ = ["Row", "add", "blobs", "of_release", "published", "views"]


@dataclass(frozen=True)
class Row:
    """A variant of what a release gives a region ("" where all get the same): what it is worth, and what it takes.

    ``file_sha256`` and ``canary_sha256`` name its blobs, None when it is not published; ``reason`` says why, or how
    good it is. ``loss`` is the share by which the primary metric got worse, negative when it got better.
    """

    release: int
    region: str
    kind: str
    onnx_sha256: str = ""
    file_sha256: str | None = None
    canary_sha256: str | None = None
    tolerance: float = 0.0
    size_bytes: int = 0
    float32_bytes: int = 0
    latency_ms: float = 0.0
    float32_ms: float = 0.0
    loss: float | None = None
    metrics: str = "{}"
    reason: str = ""

    @property
    def accepted(self) -> bool:
        """Whether vehicles may have it."""
        return self.file_sha256 is not None


def add(connection: Connection, row: Row) -> None:
    """Record a variant, once."""
    connection.execute(schema.variant.insert(), asdict(row))


def of_release(connection: Connection, release: int) -> list[Row]:
    """Return the variants of a release, also those that are not published."""
    table = schema.variant
    query = select(table).where(table.c.release == release).order_by(table.c.region, table.c.kind)
    return [Row(**row) for row in connection.execute(query).mappings()]


def published(connection: Connection, release: int, region: str) -> tuple[Variant, ...]:
    """Return the variants of a release that a region's vehicles may have."""
    return tuple(
        Variant(
            kind=row.kind,
            onnx_sha256=row.onnx_sha256,
            size_bytes=row.size_bytes,
            file=store_blobs.ref(connection, row.file_sha256),
            canary=store_blobs.ref(connection, row.canary_sha256),
            canary_inputs=store_blobs.canary_inputs(connection, row.canary_sha256),
            tolerance=row.tolerance,
        )
        for row in of_release(connection, release)
        if row.region in {"", region} and row.file_sha256 and row.canary_sha256
    )


def blobs(connection: Connection, release: int) -> list[BlobRef]:
    """Return the blobs that a release's variants name."""
    found: list[BlobRef] = []
    for row in of_release(connection, release):
        digests = (row.file_sha256, row.canary_sha256)
        found += [store_blobs.ref(connection, digest) for digest in digests if digest is not None]
        if row.canary_sha256 and (inputs := store_blobs.canary_inputs(connection, row.canary_sha256)):
            found.append(inputs)
    return found


def views(connection: Connection) -> dict[int, list[dict[str, Any]]]:
    """Return what there is to tell of the variants, by the version that their release promotes."""
    table, release = schema.variant, schema.release
    query = select(table, release.c.version).join(release, release.c.number == table.c.release)
    found: dict[int, list[dict[str, Any]]] = {}
    for row in connection.execute(query.order_by(table.c.release, table.c.region)).mappings():
        found.setdefault(row["version"], []).append(_view(dict(row)))
    return found


def _view(row: Mapping[str, Any]) -> dict[str, Any]:
    told = ("kind", "region", "size_bytes", "float32_bytes", "latency_ms", "float32_ms", "loss", "reason")
    return {
        **{name: row[name] for name in told},
        "published": row["file_sha256"] is not None,
        "metrics": json.loads(row["metrics"]),
    }
