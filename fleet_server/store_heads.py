"""Rows of regional models: what each region's vehicles get when regions have heads of their own."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, select

from fedfleet.fleet_server import schema
from fedfleet.fleet_server.heads import Regional

__all__ = ["digests", "is_shared", "load", "save", "states"]

_PREFIX = "head:"


def save(connection: Connection, version: int, regions: Mapping[str, Regional]) -> None:
    """Make these the newest regional models; the vectors of the older ones go. Their states are `states`."""
    table = schema.regional
    connection.execute(table.delete().where(table.c.version == version))
    connection.execute(table.update().values(vector=None, error=None))
    rows = [
        {
            "version": version,
            "region": region,
            "head_version": one.head_version,
            "onnx_sha256": one.onnx_sha256,
            "vector_sha256": one.vector_sha256,
            "full_sha256": one.full_sha256,
            "delta_sha256": one.delta_sha256,
            "canary_sha256": one.canary_sha256,
            "vector": one.vector.astype("<f4", copy=False).tobytes(),
            "error": one.error.astype("<f4", copy=False).tobytes(),
        }
        for region, one in regions.items()
    ]
    if rows:
        connection.execute(table.insert(), rows)


def load(
    connection: Connection, version: int, optimizer: Mapping[str, npt.NDArray[np.float64]]
) -> dict[str, Regional]:
    """Return the regional models of the newest version, by region; ``optimizer`` has the states of heads too."""
    table = schema.regional
    query = select(table).where(table.c.version == version).order_by(table.c.region)
    found = {}
    for row in connection.execute(query):
        mark = f"{_PREFIX}{row.region}/"
        own = {name.removeprefix(mark): each for name, each in optimizer.items() if name.startswith(mark)}
        found[row.region] = Regional(
            vector=np.frombuffer(row.vector, dtype="<f4").astype(np.float32),
            error=np.frombuffer(row.error, dtype="<f4").astype(np.float32),
            optimizer=own,
            head_version=row.head_version,
            onnx_sha256=row.onnx_sha256,
            full_sha256=row.full_sha256,
            delta_sha256=row.delta_sha256,
            canary_sha256=row.canary_sha256,
        )
    return found


def states(regions: Mapping[str, Regional]) -> dict[str, npt.NDArray[np.float64]]:
    """Return the strategy's states of all heads by the names under which the store keeps them."""
    return {
        f"{_PREFIX}{region}/{name}": each
        for region, one in regions.items()
        for name, each in one.optimizer.items()
    }


def is_shared(name: str) -> bool:
    """Tell whether a state of this name is that of the shared model."""
    return not name.startswith(_PREFIX)


def digests(connection: Connection, version: int) -> dict[str, tuple[str, str, str, str, int]]:
    """Return by region (ONNX, vector, full and canary SHA-256, version of the head) of a published version."""
    table = schema.regional
    columns = (table.c.onnx_sha256, table.c.vector_sha256, table.c.full_sha256, table.c.canary_sha256)
    query = select(table.c.region, *columns, table.c.head_version).where(table.c.version == version)
    rows = connection.execute(query.order_by(table.c.region))
    return {row[0]: (row[1], row[2], row[3], row[4], row[5]) for row in rows}
