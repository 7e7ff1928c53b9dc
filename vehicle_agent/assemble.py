"""From a model pointer to a verified model: which blobs to fetch, and what to make of them. numpy only, no I/O."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedfleet.codec import payload
from fedfleet.codec.parts import Parts
from fedfleet.models import bundle, layout
from fedfleet.models.task import Task
from fedfleet.protocol.errors import PeerError
from fedfleet.protocol.messages import BlobRef, DeltaRef, ModelPointer, PackRef
from fedfleet.vehicle_agent.entries import Graph

__all__ = ["Held", "Hop", "Model", "Route", "build", "cheapest", "route"]

Floats = NDArray[np.float32]
Hop: TypeAlias = DeltaRef | PackRef


@dataclass(frozen=True)
class Held:
    """What the vehicle has already: a verified version's weights float32[M], and a graph.

    ``step`` is the delta that led to the version, as a payload; empty when there was none, None when it is not held.
    """

    version: int
    vector: Floats
    graph: Graph
    step: bytes | None = None


@dataclass(frozen=True)
class Route:
    """The cheapest way to a model: deltas and packs from the held version, or the full vector (``chain`` None).

    ``step`` is fetched besides, when the delta to the version is to be kept and the way does not bring it.
    """

    pointer: ModelPointer
    fetch_graph: bool
    chain: tuple[Hop, ...] | None
    step: DeltaRef | None = None

    @property
    def refs(self) -> tuple[BlobRef, ...]:
        """The blobs to fetch."""
        graph = (self.pointer.graph,) if self.fetch_graph else ()
        step = (self.step.blob,) if self.step else ()
        return (
            graph + step + ((self.pointer.full,) if self.chain is None else tuple(h.blob for h in self.chain))
        )


@dataclass(frozen=True)
class Model:
    """A model that is what its signed pointer says: weights and whole file match their digests; ``step`` as held."""

    version: int
    onnx_sha256: str
    vector: Floats
    graph: Graph
    onnx: bytes
    step: bytes | None = None


def route(pointer: ModelPointer, held: Held | None, *, full: bool = False) -> Route:
    """Return the way with the fewest bytes; with ``full`` the one that needs nothing held but the graph."""
    fetch_graph = held is None or held.graph.sha256 != pointer.graph.sha256
    wanted = pointer.step if pointer.keep_step else None
    if held is None or fetch_graph or full or held.vector.size != pointer.parameters:
        return Route(pointer, fetch_graph, None, wanted)
    chain = cheapest(pointer, held.version)
    if chain is None or sum(hop.blob.size_bytes for hop in chain) >= pointer.full.size_bytes:
        return Route(pointer, fetch_graph, None, wanted)
    return Route(pointer, fetch_graph, chain, None if chain or held.step is not None else wanted)


def cheapest(pointer: ModelPointer, version: int) -> tuple[Hop, ...] | None:
    """Return the deltas and packs with the fewest bytes from a version to the pointer's; None when there is a gap.

    A delta serves who holds exactly the version it leads on from, a pack also who holds one between.
    """
    hops: tuple[Hop, ...] = (*pointer.packs, *pointer.deltas)
    ways: dict[int, tuple[int, tuple[Hop, ...]]] = {pointer.version: (0, ())}
    for at in sorted({version, *(hop.to_version for hop in hops)} - {pointer.version}, reverse=True):
        onward = [
            (hop.blob.size_bytes + ways[hop.to_version][0], (hop, *ways[hop.to_version][1]))
            for hop in hops
            if _serves(hop, at) and hop.to_version in ways
        ]
        if onward:
            ways[at] = min(onward, key=lambda way: way[0])
    return ways[version][1] if version in ways else None


def _serves(hop: Hop, version: int) -> bool:
    if isinstance(hop, PackRef):
        return hop.from_version <= version < hop.to_version
    return hop.from_version == version < hop.to_version


def build(
    way: Route, blobs: Mapping[str, bytes], held: Held | None, *, task: Task, limit_bytes: int
) -> Model:
    """Return the model; every byte of it is checked against the pointer's digests.

    Raises PeerError: malformed-blob, malformed-layout, too-large, wrong-task, model-mismatch, vector-mismatch,
    and the codec's reasons.
    """
    pointer = way.pointer
    graph = _graph(way, blobs, held, limit_bytes=limit_bytes)
    places = layout.read(graph.layout)
    if (places.task, places.task_version) != (task.name, task.version):
        got = f"{places.task} version {places.task_version}"
        raise PeerError(
            "wrong-task", f"model {pointer.version} is for {got}, expected {task.name} version {task.version}"
        )
    if places.size != pointer.parameters:
        told = f"{places.size} parameters, its pointer says {pointer.parameters}"
        raise PeerError("model-mismatch", f"layout of model {pointer.version} has {told}")
    vector, step = _vector(way, blobs, held, parts=places.parts, limit_bytes=limit_bytes)
    found = sha256(vector.astype("<f4", copy=False).tobytes()).hexdigest()
    if found != pointer.vector_sha256:
        told = f"SHA-256 {found[:12]}…, expected {pointer.vector_sha256[:12]}…"
        raise PeerError("vector-mismatch", f"weights of model {pointer.version} have {told}")
    onnx = layout.patch(graph.onnx, places, vector)
    found = sha256(onnx).hexdigest()
    if found != pointer.onnx_sha256:
        told = f"SHA-256 {found[:12]}…, expected {pointer.onnx_sha256[:12]}…"
        raise PeerError("model-mismatch", f"file of model {pointer.version} has {told}")
    return Model(pointer.version, found, vector, graph, onnx, step)


def _graph(way: Route, blobs: Mapping[str, bytes], held: Held | None, *, limit_bytes: int) -> Graph:
    if not way.fetch_graph and held is not None:
        return held.graph
    sha = way.pointer.graph.sha256
    return Graph(sha, *bundle.unpack_graph(blobs[sha], limit_bytes=limit_bytes))


def _vector(
    way: Route, blobs: Mapping[str, bytes], held: Held | None, *, parts: Parts, limit_bytes: int
) -> tuple[Floats, bytes | None]:
    """Return the weights, and the delta that led to them."""
    step = blobs[way.step.blob.sha256] if way.step else None
    if way.chain is None or held is None:
        told = b"" if way.pointer.step is None else step
        return bundle.unpack_vector(blobs[way.pointer.full.sha256], size=parts.size), told
    vector, version = held.vector, held.version
    step = held.step if step is None else step
    for hop in way.chain:
        deltas = _deltas(hop, blobs[hop.blob.sha256], limit_bytes=limit_bytes)
        for kind, data in deltas[version - hop.from_version :]:
            whole = Parts.whole(parts.size) if kind == "set" else parts  # what is set is set everywhere
            change = payload.decode(data, size=parts.size, parts=whole).delta.dense()
            vector, step = (change, b"") if kind == "set" else (vector + change, data)
        version = hop.to_version
    return vector, step


def _deltas(hop: Hop, blob: bytes, *, limit_bytes: int) -> list[tuple[bundle.DeltaKind, bytes]]:
    if isinstance(hop, DeltaRef):
        return [(hop.kind, blob)]
    start, deltas = bundle.unpack_deltas(blob, limit_bytes=limit_bytes)
    told = (start, start + len(deltas))
    if told != (hop.from_version, hop.to_version):
        wanted = f"{hop.from_version} to {hop.to_version}"
        raise PeerError("malformed-blob", f"pack of deltas {told[0]} to {told[1]}, expected {wanted}")
    return deltas
