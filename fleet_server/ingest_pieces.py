"""The door for pieces of updates: what of a frame is checked before a byte of it is kept."""

from hashlib import sha256
from typing import Literal, TypeAlias

from fedfleet.fleet_server.admission import View, expect, expect_round
from fedfleet.fleet_server.pieces import Pieces
from fedfleet.fleet_server.store_updates import Known
from fedfleet.protocol import chunks, envelope, update
from fedfleet.protocol.chunks import Chunk
from fedfleet.protocol.envelope import Kind
from fedfleet.protocol.errors import PeerError
from fedfleet.protocol.topics import Topic

__all__ = ["Left", "collect", "named_digest"]

Left: TypeAlias = Literal["kept", "chunk-unannounced", "no-room", "pieces-lost"]
"""What became of a piece that did not complete its update; all but ``kept`` must come again."""


def collect(
    frame: bytes,
    topic: Topic,
    view: View,
    pieces: Pieces,
    *,
    joined: set[tuple[str, str]],
    now_s: float,
) -> tuple[str, bytes] | Known | Left:
    """Keep a piece; when none is missing, return SHA-256 (hex) and whole of the sealed message, once: it is ``joined``.

    The first piece announces the message: it must prove its sender, and the update must still be able to count. Of
    an update that is stored already, whose vehicle asks again, nothing is kept; what is recorded of it is returned.
    Raises PeerError with the reasons of chunks, envelope and `expect_round`, besides too-many-chunks.
    """
    vehicle, keyring = topic.vehicle, view.keyring
    if vehicle not in keyring.keys:
        raise PeerError("unknown-sender", f"{vehicle} is not enrolled in fleet {view.fleet}")
    if vehicle in keyring.denied:
        raise PeerError("denied-sender", f"{vehicle} is on the deny-list of fleet {view.fleet}")
    piece = chunks.read_chunk(frame, number=topic.number, limit_bytes=view.limits.update_bytes)
    if piece.number == 0:
        known = _find(piece, _prove(piece, topic, view), view)
        if known is not None:
            return known
        expect_round(topic, view)
        if not pieces.announce(vehicle, topic.round, piece.split, now_s=now_s):
            return "no-room"
    elif topic.task != view.task or not pieces.knows(vehicle, topic.round, piece.split):
        return "chunk-unannounced"
    is_complete = pieces.put(vehicle, piece, now_s=now_s)
    if not is_complete or (vehicle, piece.digest) in joined:
        return "kept"
    whole = pieces.join(vehicle, piece.digest)
    if whole is None:
        return "pieces-lost"
    joined.add((vehicle, piece.digest))
    return piece.digest, whole


def named_digest(payload: bytes, topic: Topic, view: View) -> str:
    """Return the SHA-256 (hex) by which a refusal names a message: that of the whole, once a first piece proves it."""
    if chunks.is_chunk(payload) and topic.number == 0:
        try:
            piece = chunks.read_chunk(payload, number=0, limit_bytes=2**32)
            _prove(piece, topic, view)
        except PeerError:
            pass
        else:
            return piece.digest
    return sha256(payload).hexdigest()


def _find(piece: Chunk, head: envelope.Header, view: View) -> Known | None:
    """Return what is recorded of this very message; None as well when its manifest does not fit into the piece."""
    try:
        manifest, _ = update.unpack(piece.data[head.body_start :], sender=head.sender)
    except PeerError:
        return None  # what is wrong with it is told when all of it is here
    found = view.find_update(manifest.id)
    return found if found is not None and found.sealed_sha256 == piece.digest else None


def _prove(piece: Chunk, topic: Topic, view: View) -> envelope.Header:
    size = piece.total_bytes
    head = envelope.open_head(piece.data, view.keyring, fleet=view.fleet, size_bytes=size, limit_bytes=size)
    expect(head, Kind.UPDATE, topic)
    return head
