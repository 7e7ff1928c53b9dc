"""The body of an update message: a small binary manifest, then the codec's payload.

The manifest says which round and base model the payload belongs to; the payload's meaning is the codec's.
"""

import struct
from dataclasses import dataclass

from fedfleet.protocol.errors import PeerError
from fedfleet.protocol.ids import UpdateId, is_id

__all__ = ["Manifest", "pack", "unpack"]

VERSION = 1
_FIXED = struct.Struct(">BIIQI")
_U32 = 0xFFFFFFFF


@dataclass(frozen=True)
class Manifest:
    """Names an update and what it was computed from.

    ``base_version`` is the published model the vehicle trained from; ``region`` and ``round`` are those of its plan.
    """

    id: UpdateId
    task: str
    region: str
    round: int
    base_version: int

    def __post_init__(self) -> None:
        """Refuse values that do not fit the wire."""
        numbers_fit = 0 <= self.round <= _U32 and 0 <= self.base_version <= _U32
        if not (is_id(self.task) and is_id(self.region) and numbers_fit):
            raise PeerError(
                "malformed-manifest", f"update {self.id}: task, region, round or base does not fit the wire"
            )


def pack(manifest: Manifest, payload: bytes) -> bytes:
    """Return the body: manifest, then payload. The vehicle's name is the envelope's sender and not repeated."""
    fixed = _FIXED.pack(
        VERSION, manifest.round, manifest.base_version, manifest.id.epoch, manifest.id.sequence
    )
    task, region = manifest.task.encode(), manifest.region.encode()
    return fixed + bytes([len(task)]) + task + bytes([len(region)]) + region + payload


def unpack(body: bytes | memoryview, *, sender: str) -> tuple[Manifest, memoryview]:
    """Return manifest and payload, uncopied, of a proven message from ``sender``; PeerError when malformed."""
    try:
        version, round_, base, epoch, sequence = _FIXED.unpack_from(body)
        if version != VERSION:
            raise PeerError(
                "unknown-version", f"update manifest version {version}, this side reads {VERSION}"
            )
        task, start = _text(body, _FIXED.size)
        region, start = _text(body, start)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise PeerError(
            "malformed-manifest", f"update from {sender}: manifest is cut or not ASCII"
        ) from error
    manifest = Manifest(UpdateId(sender, epoch, sequence), task, region, round=round_, base_version=base)
    return manifest, memoryview(body)[start:]


def _text(body: bytes | memoryview, start: int) -> tuple[str, int]:
    end = start + 1 + body[start]
    if end > len(body):
        raise IndexError(end)
    return bytes(body[start + 1 : end]).decode("ascii"), end
