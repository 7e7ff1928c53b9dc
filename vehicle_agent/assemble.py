"""From a model pointer to a verified model: which blobs to fetch, and what to make of them. numpy only, no I/O."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from fedfleet.codec import payload
from fedfleet.codec.parts import Parts
from fedfleet.models import bundle, layout
from fedfleet.models.task import Task
from fedfleet.protocol.errors import PeerError
from fedfleet.protocol.messages import BlobRef, DeltaRef, ModelPointer
from fedfleet.vehicle_agent.entries import Graph

__all__ = ["Held", "Model", "Route", "build", "route"]

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Held:
    """What the vehicle has already: a verified version's weights float32[M], and a graph."""

    version: int
    vector: Floats
    graph: Graph


@dataclass(frozen=True)
class Route:
    """The cheapest way to a model: a chain of deltas from the held version, or the full vector (``deltas`` None)."""

    pointer: ModelPointer
    fetch_graph: bool
    deltas: tuple[DeltaRef, ...] | None

    @property
    def refs(self) -> tuple[BlobRef, ...]:
        """The blobs to fetch."""
        graph = (self.pointer.graph,) if self.fetch_graph else ()
        return graph + ((self.pointer.full,) if self.deltas is None else tuple(d.blob for d in self.deltas))


@dataclass(frozen=True)
class Model:
    """A model that is what its signed pointer says: weights and whole file match their digests."""

    version: int
    onnx_sha256: str
    vector: Floats
    graph: Graph
    onnx: bytes


def route(pointer: ModelPointer, held: Held | None, *, full: bool = False) -> Route:
    """Return the way with the fewest bytes; with ``full`` the one that needs nothing held but the graph."""
    fetch_graph = held is None or held.graph.sha256 != pointer.graph.sha256
    if held is None or fetch_graph or full or held.vector.size != pointer.parameters:
        return Route(pointer, fetch_graph, None)
    chain = _chain(pointer, held.version)
    if chain is None or sum(delta.blob.size_bytes for delta in chain) >= pointer.full.size_bytes:
        return Route(pointer, fetch_graph, None)
    return Route(pointer, fetch_graph, chain)


def _chain(pointer: ModelPointer, version: int) -> tuple[DeltaRef, ...] | None:
    by_start = {
        delta.from_version: delta for delta in pointer.deltas if delta.to_version > delta.from_version
    }
    chain: list[DeltaRef] = []
    while version < pointer.version and version in by_start:
        chain.append(by_start[version])
        version = chain[-1].to_version
    return tuple(chain) if version == pointer.version else None


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
    vector = _vector(way, blobs, held, parts=places.parts)
    found = sha256(vector.astype("<f4", copy=False).tobytes()).hexdigest()
    if found != pointer.vector_sha256:
        told = f"SHA-256 {found[:12]}…, expected {pointer.vector_sha256[:12]}…"
        raise PeerError("vector-mismatch", f"weights of model {pointer.version} have {told}")
    onnx = layout.patch(graph.onnx, places, vector)
    found = sha256(onnx).hexdigest()
    if found != pointer.onnx_sha256:
        told = f"SHA-256 {found[:12]}…, expected {pointer.onnx_sha256[:12]}…"
        raise PeerError("model-mismatch", f"file of model {pointer.version} has {told}")
    return Model(pointer.version, found, vector, graph, onnx)


def _graph(way: Route, blobs: Mapping[str, bytes], held: Held | None, *, limit_bytes: int) -> Graph:
    if not way.fetch_graph and held is not None:
        return held.graph
    sha = way.pointer.graph.sha256
    return Graph(sha, *bundle.unpack_graph(blobs[sha], limit_bytes=limit_bytes))


def _vector(way: Route, blobs: Mapping[str, bytes], held: Held | None, *, parts: Parts) -> Floats:
    size = way.pointer.parameters
    if way.deltas is None or held is None:
        return bundle.unpack_vector(blobs[way.pointer.full.sha256], size=size)
    vector = held.vector
    for delta in way.deltas:
        whole = Parts.whole(size) if delta.kind == "set" else parts  # what is set is set everywhere
        change = payload.decode(blobs[delta.blob.sha256], size=size, parts=whole).delta.dense()
        vector = change if delta.kind == "set" else vector + change
    return vector
