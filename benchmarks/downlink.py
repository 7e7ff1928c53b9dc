"""Bytes on the way down: what a vehicle that is 1, 10 or 100 versions behind fetches, against dense float32.

`python benchmarks/downlink.py --json [--parameters 101564] [--versions 120]`

The versions are made with the server's own step and error feedback from heavy-tailed updates, kept and packed as by
the server; the way is the agent's, and every vehicle's weights are compared with the published ones, bit by bit.
"""

import argparse
import json
import sys
from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from fedfleet.codec import payload
from fedfleet.codec.settings import Settings
from fedfleet.fleet_server.chain import live, pack_due
from fedfleet.fleet_server.downlink import step
from fedfleet.models import bundle
from fedfleet.protocol.chunks import CHUNK_BYTES
from fedfleet.protocol.messages import BlobRef, ModelPointer, PackRef, Segment, encode
from fedfleet.vehicle_agent.assemble import Hop, cheapest

Floats = NDArray[np.float32]
BEHIND = (1, 2, 10, 30, 100)
SETTINGS = {
    "int8_10pct": Settings("rice", "int8", 0.1),
    "int8_2pct": Settings("rice", "int8", 0.02),
    "sign_2pct": Settings("rice", "sign", 0.02),
    "sign_1pct": Settings("rice", "sign", 0.01),
    "dense_float32": Settings("dense", "float32"),
}


@dataclass
class History:
    """Published vectors and the blobs that lead from one to the next."""

    vectors: list[Floats]
    deltas: dict[int, bytes] = field(default_factory=dict)
    packs: dict[int, bytes] = field(default_factory=dict)

    def refs(self, blobs: dict[int, bytes]) -> dict[int, BlobRef]:
        """Return the references to blobs."""
        return {to: _ref(data) for to, data in blobs.items()}


def _ref(data: bytes) -> BlobRef:
    chunks = max(1, -(-len(data) // CHUNK_BYTES))
    return BlobRef(sha256=sha256(data).hexdigest(), size_bytes=len(data), chunks=chunks)


def publish(size: int, versions: int, settings: Settings) -> History:
    """Publish so many versions."""
    chance = np.random.default_rng(1)
    x = chance.normal(0, 0.05, size).astype(np.float32)
    error, history = np.zeros_like(x), History([x])
    for version in range(1, versions + 1):
        update = chance.standard_t(2.5, size) * 1e-3
        made = step(x, error, update, settings)
        x, error = made.x_next, made.error_next
        history.vectors.append(x)
        history.deltas[version] = made.payload
        due = pack_due(version)
        if due:
            found: list[tuple[bundle.DeltaKind, bytes]] = [("add", history.deltas[one]) for one in due]
            history.packs[due[-1]] = bundle.pack_deltas(due[0] - 1, found)
    return history


def pointer(history: History, full: bytes) -> ModelPointer:
    """Return the pointer to the newest version."""
    version, x = len(history.vectors) - 1, history.vectors[-1]
    refs = history.refs(history.deltas), history.refs(history.packs)
    chain = live(*refs, version=version, full_bytes=len(full))
    return ModelPointer(
        task="motion-forecast",
        region="north",
        version=version,
        parameters=x.size,
        onnx_sha256="0" * 64,
        vector_sha256=sha256(x.tobytes()).hexdigest(),
        segments=(Segment(name="body", offset=0, size=x.size, version=version),),
        graph=_ref(b"graph"),
        full=_ref(full),
        deltas=chain.deltas,
        packs=chain.packs,
    )


def follow(history: History, told: ModelPointer, way: tuple[Hop, ...], version: int) -> Floats:
    """Return the weights of a vehicle that goes this way from a version."""
    x, size = history.vectors[version], history.vectors[0].size
    for hop in way:
        deltas = [history.deltas[hop.to_version]]
        if isinstance(hop, PackRef):
            found = bundle.unpack_deltas(history.packs[hop.to_version], limit_bytes=10**9)[1]
            deltas = [data for _, data in found[version - hop.from_version :]]
        for data in deltas:
            x = x + payload.decode(data, size=size).delta.dense()
        version = hop.to_version
    if version != told.version:
        raise SystemExit(f"the way ends at {version}, expected {told.version}")
    return x


def measure(size: int, versions: int, settings: Settings) -> dict[str, object]:
    """Return the figures of one setting of the downlink."""
    history = publish(size, versions, settings)
    full = bundle.pack_vector(history.vectors[-1])
    told, dense = pointer(history, full), 4 * size
    head = len(encode(told))
    found: dict[str, object] = {
        "delta_bytes": len(history.deltas[versions]),
        "pointer_bytes": head,
        "live_versions": versions - min(hop.from_version for hop in (*told.packs, *told.deltas)),
    }
    for behind in BEHIND:
        way = cheapest(told, versions - behind)
        chain = sum(hop.blob.size_bytes for hop in way) if way is not None else len(full)
        if way is not None:
            found_x = follow(history, told, way, versions - behind)
            if found_x.tobytes() != history.vectors[-1].tobytes():
                raise SystemExit(f"{behind} behind: the vehicle's weights are not the published ones")
        took = min(chain, len(full))
        found[f"bytes_{behind}_behind"] = took
        found[f"x_dense_{behind}_behind"] = round(dense / took, 1)
        found[f"x_dense_each_{behind}_behind"] = round(behind * dense / took, 1)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--parameters", type=int, default=101_564)
    parser.add_argument("--versions", type=int, default=120)
    options = parser.parse_args()
    x = np.random.default_rng(1).normal(0, 0.05, options.parameters).astype(np.float32)
    figures: dict[str, object] = {
        "parameters": options.parameters,
        "dense_bytes": 4 * options.parameters,
        "full_bytes": len(bundle.pack_vector(x)),
        "full_zstd_bytes": len(_plain(x)),
    }
    for name, settings in SETTINGS.items():
        sys.stderr.write(f"{name}\n")
        figures[name] = measure(options.parameters, options.versions, settings)
    print(json.dumps(figures, indent=None if options.json else 1))


def _plain(x: Floats) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor(level=9).compress(x.tobytes())


if __name__ == "__main__":
    main()
