"""What the broker is to retain: made from the store alone, so it can be published again at any time."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from sqlalchemy import Connection

from fedfleet.fleet_server import (
    store_blobs,
    store_chain,
    store_heads,
    store_models,
    store_rounds,
    store_variants,
)
from fedfleet.fleet_server.model_state import open_graph
from fedfleet.fleet_server.pages import page_bytes, pages, settlement_topics
from fedfleet.fleet_server.requests import Party
from fedfleet.fleet_server.store_models import ReleaseRow
from fedfleet.protocol import topics
from fedfleet.protocol.envelope import Kind
from fedfleet.protocol.messages import BlobRef, DeltaRef, ModelPointer, PackRef, Release, Segment

__all__ = ["Announcement", "announce", "blob_topics", "live_blobs", "resize"]


@dataclass(frozen=True)
class Announcement:
    """Blobs by digest, then the messages that name them, by topic; topics that the broker is to forget."""

    blobs: Mapping[str, BlobRef] = field(default_factory=dict)
    messages: Mapping[str, bytes] = field(default_factory=dict)
    clear: tuple[str, ...] = ()


def blob_topics(fleet: str, blob: BlobRef) -> list[str]:
    """Return the topics of a blob's chunks, in order."""
    return [topics.blob(fleet, blob.sha256, number) for number in range(blob.chunks)]


def pointer(
    connection: Connection, *, task: str, region: str, version: int, keep_step: bool = False
) -> ModelPointer:
    """Return the pointer to a published version, as a region's vehicles get it."""
    own = store_heads.digests(connection, version).get(region)
    onnx_sha256, vector_sha256, digest = own[:3] if own else store_models.model_row(connection, version)
    full = store_blobs.ref(connection, digest)
    chained = region if own else store_chain.SHARED
    chain = store_chain.chain(connection, version=version, full_bytes=full.size_bytes, region=chained)
    segments = _segments(connection, version, region=region, head_version=own[4]) if own else None
    parameters = store_models.parameters(connection)
    return ModelPointer(
        task=task,
        region=region,
        version=version,
        parameters=parameters,
        onnx_sha256=onnx_sha256,
        vector_sha256=vector_sha256,
        segments=segments or (Segment(name="body", offset=0, size=parameters, version=version),),
        graph=store_blobs.graph(connection),
        full=full,
        deltas=chain.deltas,
        packs=chain.packs,
        keep_step=keep_step,
        control=store_models.control_ref(connection),
    )


@lru_cache(maxsize=2)
def _stretches(graph: bytes) -> tuple[tuple[int, int, str], ...]:
    return open_graph(graph).layout.stretches


def _segments(connection: Connection, version: int, *, region: str, head_version: int) -> tuple[Segment, ...]:
    """Return the stretches of a region's model in order, each with the version at which it moved last."""
    blob = store_blobs.content(connection, store_blobs.graph(connection).sha256)
    found: list[Segment] = []
    for start, end, segment in _stretches(blob):
        name, moved = ("body", version) if segment == "body" else (f"head:{region}", head_version)
        found.append(Segment(name=name, offset=start, size=end - start, version=moved))
    return tuple(found)


def _alone(model: ModelPointer) -> ModelPointer:
    """Return the pointer without its chain: a vehicle follows the base, and what drives is mostly the same version."""
    return model.model_copy(update={"deltas": (), "packs": (), "control": None})


def _named(model: ModelPointer) -> list[BlobRef]:
    hops: tuple[DeltaRef | PackRef, ...] = (*model.deltas, *model.packs)
    control = () if model.control is None else (model.control,)
    return [model.graph, model.full, *control, *(hop.blob for hop in hops)]


def live_blobs(connection: Connection) -> list[BlobRef]:
    """Return the blobs that the newest model and the newest release name."""
    version, release = store_models.newest_version(connection), store_models.newest_release(connection)
    if version is None:
        return []
    live: list[BlobRef] = []
    for region in store_heads.digests(connection, version) or ("",):
        live += _named(pointer(connection, task="t", region=region or "r", version=version))
        if release is not None:
            live += _named(
                _alone(pointer(connection, task="t", region=region or "r", version=release.version))
            )
            live += filter(None, _canary(connection, release, region))
    return live if release is None else live + store_variants.blobs(connection, release.number)


def _canary(connection: Connection, release: ReleaseRow, region: str) -> tuple[BlobRef, BlobRef | None]:
    """Return a release's canary, and its inputs when they are a blob of their own."""
    own = store_heads.digests(connection, release.version).get(region)
    digest = own[3] if own else release.canary_sha256
    return store_blobs.ref(connection, digest), store_blobs.canary_inputs(connection, digest)


def announce(connection: Connection, party: Party, regions: tuple[str, ...]) -> Announcement:
    """Return all that the broker is to retain now."""
    fleet, task = party.fleet, party.task
    messages = _models(connection, party, regions)
    limit_bytes = page_bytes(store_blobs.piece_bytes(connection))
    for settled in store_rounds.live_settlements(connection):
        where = settlement_topics(settled, fleet=fleet, limit_bytes=limit_bytes)
        for topic, page in zip(where, pages(settled, limit_bytes=limit_bytes), strict=True):
            messages[topic] = party.seal(page, Kind.SETTLEMENT)
    for region, one in store_rounds.current(connection).items():
        messages[topics.round_plan(fleet, region, task)] = party.seal(one.plan, Kind.PLAN)
    blobs = {blob.sha256: blob for blob in store_blobs.kept(connection)}  # those in their grace too
    kept = {*messages, *(topic for blob in blobs.values() for topic in blob_topics(fleet, blob))}
    clear = tuple(topic for topic in store_blobs.to_clear(connection) if topic not in kept)
    return Announcement(blobs, messages, clear)


def resize(connection: Connection, fleet: str, piece: int) -> None:
    """Have everything announced in pieces of this length; topics that are not needed then are to be cleared."""
    before = _pieced(connection, fleet)
    store_blobs.set_piece_bytes(connection, piece)
    store_blobs.to_clear(connection, before - _pieced(connection, fleet))


def _pieced(connection: Connection, fleet: str) -> set[str]:
    limit_bytes = page_bytes(store_blobs.piece_bytes(connection))
    found = {topic for blob in store_blobs.kept(connection) for topic in blob_topics(fleet, blob)}
    for settled in store_rounds.live_settlements(connection):
        found.update(settlement_topics(settled, fleet=fleet, limit_bytes=limit_bytes))
    return found


def _pointers(
    connection: Connection, task: str, regions: tuple[str, ...], *, versions: tuple[int, int], keep_step: bool
) -> dict[str, tuple[ModelPointer, ModelPointer]]:
    """Return each region's pointers to the newest version and to what drives; without heads all are the same."""
    newest, driving = versions
    found: dict[str, tuple[ModelPointer, ModelPointer]] = {}
    shared = not any(store_heads.digests(connection, version) for version in versions)
    for region in regions:
        if shared and found:
            both = next(iter(found.values()))
            found[region] = (_for(both[0], region), _for(both[1], region))
            continue
        trained = pointer(connection, task=task, region=region, version=newest, keep_step=keep_step)
        found[region] = trained, pointer(connection, task=task, region=region, version=driving)
    return found


def _for(model: ModelPointer, region: str) -> ModelPointer:
    return model.model_copy(update={"region": region})


def _models(connection: Connection, party: Party, regions: tuple[str, ...]) -> dict[str, bytes]:
    fleet, task = party.fleet, party.task
    version, released = store_models.newest_version(connection), store_models.newest_release(connection)
    found: dict[str, bytes] = {}
    if version is None or released is None:
        return found
    plans = [one.plan for one in store_rounds.current(connection).values()]
    keep_step = any(plan.codec.coordinates == "common" for plan in plans)
    for region, (model, driving) in _pointers(
        connection, task, regions, versions=(version, released.version), keep_step=keep_step
    ).items():
        found[topics.model(fleet, region, task)] = party.seal(model, Kind.MODEL)
        canary, inputs = _canary(connection, released, region)
        release = Release(
            task=task,
            region=region,
            number=released.number,
            model=_alone(driving),
            canary=canary,
            canary_inputs=inputs,
            policy=released.policy,
            released_at_s=released.released_at_s,
            variants=store_variants.published(connection, released.number, region),
        )
        found[topics.release(fleet, region, task)] = party.seal(release, Kind.RELEASE)
    return found
