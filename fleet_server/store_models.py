"""Rows of models: the published vector with what belongs to it, releases, and scores."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np
import numpy.typing as npt
from sqlalchemy import ColumnElement, Connection, func, select

from fedfleet.fleet_server import schema, store_blobs, store_heads
from fedfleet.fleet_server.gate import Scores
from fedfleet.fleet_server.heads import Regional
from fedfleet.models import bundle
from fedfleet.protocol.messages import BlobRef

__all__ = [
    "BASELINE",
    "Model",
    "ReleaseRow",
    "add_release",
    "all_scores",
    "control_ref",
    "first_model",
    "first_release",
    "has_version",
    "model_row",
    "newest_model",
    "newest_release",
    "newest_version",
    "parameters",
    "replace_heads",
    "save_control",
    "save_model",
    "save_scores",
    "scores",
]

CONTROL = "control"
BASELINE = -1
"""The version under which the scores of the task's trivial answer stand."""


@dataclass(frozen=True, eq=False)
class Model:
    """A published model: x float32[M], the downlink's residual float32[M], the strategy's state float64[M] by name.

    ``delta_sha256`` names the blob that leads here from the version before; None for version 0. When regions have heads
    of their own, ``regions`` has what each gets, and nobody fetches the shared model: it has no blobs.
    """

    version: int
    vector: npt.NDArray[np.float32]
    error: npt.NDArray[np.float32]
    optimizer: Mapping[str, npt.NDArray[np.float64]]
    onnx_sha256: str
    full_sha256: str
    delta_sha256: str | None
    round: int | None
    created_at_s: float
    regions: Mapping[str, Regional] = field(default_factory=dict)
    step_norm: float | None = None

    def onnx_of(self, region: str) -> str:
        """Return the SHA-256 (hex) of the model file that a region's vehicles get."""
        return self.regions[region].onnx_sha256 if self.regions else self.onnx_sha256

    @property
    def vector_sha256(self) -> str:
        """SHA-256 (hex) of the vector's little-endian bytes."""
        return sha256(self.vector.astype("<f4", copy=False).tobytes()).hexdigest()


def first_model(
    vector: npt.NDArray[np.float32],
    optimizer: Mapping[str, npt.NDArray[np.float64]],
    *,
    onnx: bytes,
    full_sha256: str,
    now_s: float,
) -> Model:
    """Return version 0 with this vector float32[M] and model file."""
    return Model(
        version=0,
        vector=vector,
        error=np.zeros_like(vector),
        optimizer=optimizer,
        onnx_sha256=sha256(onnx).hexdigest(),
        full_sha256=full_sha256,
        delta_sha256=None,
        round=None,
        created_at_s=now_s,
    )


@dataclass(frozen=True)
class ReleaseRow:
    """A release: its number, the published version it promotes, the canary blob, and the policy that decided."""

    number: int
    version: int
    canary_sha256: str
    policy: str
    round: int
    released_at_s: float


def save_model(connection: Connection, model: Model) -> None:
    """Make this the newest model; the vectors of the older one go."""
    connection.execute(schema.model.update().values(vector=None, error=None))
    row = {
        "version": model.version,
        "round": model.round,
        "onnx_sha256": model.onnx_sha256,
        "vector_sha256": model.vector_sha256,
        "vector": model.vector.astype("<f4", copy=False).tobytes(),
        "error": model.error.astype("<f4", copy=False).tobytes(),
        "full_sha256": model.full_sha256,
        "delta_sha256": model.delta_sha256,
        "created_at_s": model.created_at_s,
        "step_norm": model.step_norm,
    }
    connection.execute(schema.model.insert(), row)
    replace_heads(connection, model)


def replace_heads(connection: Connection, model: Model) -> None:
    """Make the regional models of the newest version these, and the strategy's states those of the model."""
    store_heads.save(connection, model.version, model.regions)
    connection.execute(schema.optimizer.delete())
    for name, array in (dict(model.optimizer) | store_heads.states(model.regions)).items():
        data = array.astype("<f8", copy=False).tobytes()
        connection.execute(schema.optimizer.insert(), {"name": name, "data": data})


def newest_model(connection: Connection) -> Model | None:
    """Return the newest published model, or None before the first."""
    query = select(schema.model).order_by(schema.model.c.version.desc()).limit(1)
    row = connection.execute(query).one_or_none()
    if row is None:
        return None
    states = {each.name: _floats64(each.data) for each in connection.execute(select(schema.optimizer))}
    return Model(
        version=row.version,
        vector=_floats32(row.vector),
        error=_floats32(row.error),
        optimizer={name: each for name, each in states.items() if store_heads.is_shared(name)},
        onnx_sha256=row.onnx_sha256,
        full_sha256=row.full_sha256,
        delta_sha256=row.delta_sha256,
        round=row.round,
        created_at_s=row.created_at_s,
        regions=store_heads.load(connection, row.version, states),
        step_norm=row.step_norm,
    )


def recent_norms(connection: Connection, *, last: int = 10) -> list[float]:
    """Return the lengths of the newest steps, as far as they were written down, the newest first."""
    norm = schema.model.c.step_norm
    query = select(norm).where(norm.is_not(None)).order_by(schema.model.c.version.desc()).limit(last)
    return list(connection.execute(query).scalars())


def _floats32(data: bytes) -> npt.NDArray[np.float32]:
    return np.frombuffer(data, dtype="<f4").astype(np.float32)


def _floats64(data: bytes) -> npt.NDArray[np.float64]:
    return np.frombuffer(data, dtype="<f8").astype(np.float64)


def newest_version(connection: Connection) -> int | None:
    """Return the newest published version, or None before the first."""
    newest: int | None = connection.execute(select(func.max(schema.model.c.version))).scalar_one()
    return newest


def has_version(connection: Connection, version: int) -> bool:
    """Tell whether a version is recorded."""
    query = select(schema.model.c.version).where(schema.model.c.version == version)
    return connection.execute(query).one_or_none() is not None


def parameters(connection: Connection) -> int:
    """Return the number of parameters of the model."""
    query = select(func.length(schema.model.c.vector)).order_by(schema.model.c.version.desc()).limit(1)
    return int(connection.execute(query).scalar_one()) // 4


def model_row(connection: Connection, version: int) -> tuple[str, str, str]:
    """Return (ONNX SHA-256, vector SHA-256, SHA-256 of the full blob) of a published version."""
    columns = (schema.model.c.onnx_sha256, schema.model.c.vector_sha256, schema.model.c.full_sha256)
    row = connection.execute(select(*columns).where(schema.model.c.version == version)).one()
    return row.onnx_sha256, row.vector_sha256, row.full_sha256


def add_release(connection: Connection, row: ReleaseRow) -> None:
    """Add the newest release."""
    connection.execute(schema.release.insert(), vars(row))


def newest_release(connection: Connection) -> ReleaseRow | None:
    """Return the newest release."""
    return _release(connection, schema.release.c.number.desc())


def first_release(connection: Connection) -> ReleaseRow | None:
    """Return the first release, which is the model that the fleet began with."""
    return _release(connection, schema.release.c.number)


def _release(connection: Connection, order: ColumnElement[int]) -> ReleaseRow | None:
    row = connection.execute(select(schema.release).order_by(order).limit(1)).mappings().one_or_none()
    return None if row is None else ReleaseRow(**row)


def save_scores(connection: Connection, version: int, found: Scores) -> None:
    """Record the validation scores of a version, by region and metric."""
    rows = [
        {"version": version, "region": region, "metric": metric, "sum": total, "count": count}
        for region, by_metric in found.items()
        for metric, (total, count) in by_metric.items()
    ]
    if rows:
        connection.execute(schema.score.insert(), rows)


def scores(connection: Connection, version: int) -> Scores:
    """Return the validation scores of a version."""
    return all_scores(connection, version=version).get(version, {})


def all_scores(connection: Connection, *, version: int | None = None) -> dict[int, Scores]:
    """Return the validation scores of all versions, or of one."""
    query = select(schema.score).order_by(
        schema.score.c.version, schema.score.c.region, schema.score.c.metric
    )
    if version is not None:
        query = query.where(schema.score.c.version == version)
    found: dict[int, dict[str, dict[str, tuple[float, int]]]] = {}
    for row in connection.execute(query).mappings():
        regions = found.setdefault(row["version"], {})
        regions.setdefault(row["region"], {})[row["metric"]] = (row["sum"], row["count"])
    return dict(found)


def save_control(connection: Connection, control: npt.NDArray[np.float64] | None) -> None:
    """Keep the newest model's control variate float64[M] as a blob for the vehicles; None: it has none."""
    table = schema.property_
    connection.execute(table.delete().where(table.c.name == CONTROL))
    if control is not None:
        digest = store_blobs.put(connection, "control", bundle.pack_vector(control.astype(np.float32)))
        connection.execute(table.insert(), {"name": CONTROL, "value": digest})


def control_ref(connection: Connection) -> BlobRef | None:
    """Return the reference to the newest model's control variate; None when it has none."""
    query = select(schema.property_.c.value).where(schema.property_.c.name == CONTROL)
    digest = connection.execute(query).scalar_one_or_none()
    return None if digest is None else store_blobs.ref(connection, digest)
