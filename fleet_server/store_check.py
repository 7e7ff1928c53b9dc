"""Is a store whole: the file itself, and what must hold between its rows whatever was killed when. Reads only."""

from collections.abc import Callable, Iterator
from hashlib import sha256

import numpy as np
import numpy.typing as npt
from sqlalchemy import ColumnElement, Connection, func, select, text

from fedfleet.fleet_server import schema, store_blobs, store_heads, store_models
from fedfleet.fleet_server.model_state import open_graph
from fedfleet.fleet_server.rounds import FINAL
from fedfleet.fleet_server.schema import WITH_FILE
from fedfleet.fleet_server.store_files import UPDATES, files_of
from fedfleet.fleet_server.store_updates import audit_leaf, named_files
from fedfleet.models import bundle
from fedfleet.protocol.errors import PeerError
from fedfleet.protocol.messages import Settlement, decode, digest_key

__all__ = ["orphans", "problems"]

SHOWN = 20
"""Problems of one kind that are told."""
FILE_PROBLEMS = 10


def problems(connection: Connection) -> list[str]:
    """Return what is wrong, one line each; empty when everything holds. At most 20 of one kind are told."""
    damaged = list(_file(connection))
    if damaged:
        return damaged  # what such a file says about itself means nothing
    found: list[str] = []
    for look in CHECKS:
        lines = look(connection)
        kind = [line for _, line in zip(range(SHOWN + 1), lines, strict=False)]
        found += kind[:SHOWN] + ([f"… and more like: {kind[0]}"] if len(kind) > SHOWN else [])
    return found


def _file(connection: Connection) -> Iterator[str]:
    if connection.dialect.name != "sqlite":
        return
    for line in connection.exec_driver_sql(f"PRAGMA integrity_check({FILE_PROBLEMS})").scalars():
        if line != "ok":
            yield f"file: {line}"
    for row in connection.exec_driver_sql("PRAGMA foreign_key_check"):
        yield f"file: broken reference in {row[0]}"


def _audit(connection: Connection) -> Iterator[str]:
    """Every leaf follows from the one before; every update that has a row has its leaf, with the same digest."""
    table, update, leaf = schema.audit, schema.update, ""
    rows = connection.execution_options(yield_per=1000).execute(select(table).order_by(table.c.position))
    for expected, row in enumerate(rows, start=1):
        leaf = audit_leaf(leaf, row.update_id, row.sealed_sha256)
        if row.position != expected or row.leaf != leaf:
            yield f"audit chain: leaf {expected} is not what follows from the ones before"
            return
    digests = (table.c.update_id == update.c.id) & (table.c.sealed_sha256 == update.c.sealed_sha256)
    query = select(update.c.id, func.count(table.c.position).label("leaves"))
    query = query.select_from(update.outerjoin(table, digests)).group_by(update.c.id)
    for row in connection.execute(query.having(func.count(table.c.position) != 1)):
        yield f"update {row.id}: {row.leaves} leaves in the audit chain, expected 1"


def _fates(connection: Connection) -> Iterator[str]:
    """What a final round was sent has exactly one fate, the one that its settlement tells."""
    update, round_ = schema.update, schema.round_
    mine = (round_.c.round == update.c.round) & (round_.c.region == update.c.region)
    query = select(update.c.id, update.c.round, update.c.region).join(round_, mine)
    for row in connection.execute(query.where(round_.c.state.in_(FINAL), update.c.fate.is_(None))):
        yield f"update {row.id}: round {row.round} of {row.region} is over and it has no fate"
    by_id, by_digest = {}, {}
    for row in connection.execute(select(update.c.id, update.c.sealed_sha256, update.c.fate)):
        by_id[row.id] = by_digest[digest_key(row.sealed_sha256)] = (row.id, row.fate)
    for data in connection.execute(select(schema.settlement.c.message)).scalars():
        told = decode(Settlement, data, sender="the store")
        known = by_id if told.named_by == "id" else by_digest
        for key, fate in told.fates.items():
            id_, recorded = known.get(key, ("", fate))
            # a carried one gets its last fate in a later settlement
            if fate not in {recorded, "carried"}:
                where = f"round {told.round} of {told.region}"
                yield f"update {id_}: {where} settled it as {fate}, its record says {recorded or 'nothing'}"


def _members(connection: Connection) -> Iterator[str]:
    """A frozen member of a round that is not over is there, with its bytes; none is in two such rounds."""
    member, update, round_ = schema.member, schema.update, schema.round_
    open_ = (round_.c.round == member.c.round) & (round_.c.region == member.c.region)
    query = select(member.c.update_id, member.c.round, update.c.id, _is_empty().label("empty"))
    query = query.join(round_, open_).outerjoin(update, update.c.id == member.c.update_id)
    seen: set[str] = set()
    for row in connection.execute(query.where(round_.c.state.not_in(FINAL))):
        if row.id is None or row.empty:
            yield f"update {row.update_id}: member of round {row.round}, and its bytes are gone"
        if row.update_id in seen:
            yield f"update {row.update_id}: member of two rounds that are not over"
        seen.add(row.update_id)


def _is_empty() -> ColumnElement[bool]:
    return schema.update.c.payload.is_(None) & schema.update.c.payload_at.is_(None)


def _files(connection: Connection) -> Iterator[str]:
    """Every file that a row names is there, with the size and the digest by which it is named."""
    table, files = schema.update, files_of(connection)
    query = select(table.c.id, table.c.sealed_sha256, table.c.size_bytes).where(text(WITH_FILE))
    for row in connection.execute(query.order_by(table.c.sealed_sha256)).all():
        if files.read(row.sealed_sha256, size_bytes=row.size_bytes) is None:
            how = "damaged" if files.path(row.sealed_sha256).exists() else "missing"
            yield f"update {row.id}: its file {UPDATES}/{row.sealed_sha256} is {how}"


def orphans(connection: Connection) -> list[str]:
    """Return the names of updates' files that no row names; the server's next start removes them."""
    return sorted(files_of(connection).names() - named_files(connection))


def _blobs(connection: Connection) -> Iterator[str]:
    """Every blob has the digest and the size by which it is named; what is named is there."""
    table = schema.blob
    for digest in connection.execute(select(table.c.sha256).order_by(table.c.sha256)).scalars().all():
        row = connection.execute(
            select(table.c.data, table.c.size_bytes).where(table.c.sha256 == digest)
        ).one()
        found = sha256(row.data).hexdigest()
        if found != digest or len(row.data) != row.size_bytes:
            yield f"blob {digest[:12]}…: {len(row.data)} bytes with digest {found[:12]}…, not {row.size_bytes}"
    newest = store_models.newest_version(connection)
    released = store_models.newest_release(connection)
    kept = set(connection.execute(select(table.c.sha256)).scalars())
    for version in {each for each in (newest, released.version if released else None) if each is not None}:
        regional = [each[2] for each in store_heads.digests(connection, version).values()]
        query = select(schema.model.c.full_sha256).where(schema.model.c.version == version)
        shared = [connection.execute(query).scalar_one_or_none()]
        for full in (each for each in regional or shared if each not in kept):
            yield f"version {version}: its blob {str(full)[:12]}… is not there"


def _newest(connection: Connection) -> Iterator[str]:
    """The newest model's vector is the one that its hashes, its blob and its model file name."""
    model = store_models.newest_model(connection)
    if model is None:
        return
    row = store_models.model_row(connection, model.version)
    if model.vector_sha256 != row[1]:
        yield f"version {model.version}: its vector has digest {model.vector_sha256[:12]}…, not {row[1][:12]}…"
    if model.error.size != model.vector.size:
        yield f"version {model.version}: residual of {model.error.size} for {model.vector.size} parameters"
    digests = store_heads.digests(connection, model.version)
    named = {region: (digests[region][:3], one.vector) for region, one in model.regions.items()}
    for region, (told, vector) in (named or {"": (row, model.vector)}).items():
        what = f"version {model.version}" + (f" of {region}" if region else "")
        yield from _published(connection, what, told, vector)


def _published(
    connection: Connection, what: str, told: tuple[str, str, str], vector: npt.NDArray[np.float32]
) -> Iterator[str]:
    """What vehicles fetch is this vector, and its file the one that is named; ``told``: ONNX, vector, full SHA-256."""
    kept = set(connection.execute(select(schema.blob.c.sha256)).scalars())
    if told[2] not in kept:
        return  # told already
    try:
        full = bundle.unpack_vector(store_blobs.content(connection, told[2]), size=vector.size)
        graph = open_graph(store_blobs.content(connection, store_blobs.graph(connection).sha256))
    except PeerError as error:
        yield f"{what}: {error}"
        return
    if full.tobytes() != vector.tobytes():
        yield f"{what}: the published blob holds another vector"
    if sha256(graph.file(vector)).hexdigest() != told[0]:
        yield f"{what}: the model file of its vector has another digest"


CHECKS: tuple[Callable[[Connection], Iterator[str]], ...] = (
    _audit,
    _fates,
    _members,
    _files,
    _blobs,
    _newest,
)
