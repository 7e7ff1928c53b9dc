"""Prints the golden protocol vectors anew. Run it only when a format version rises; old vectors stay."""

import json

from fedfleet.protocol import chunks, update
from fedfleet.protocol.envelope import Kind, seal
from fedfleet.protocol.ids import UpdateId
from fedfleet.protocol.signing import SigningKey

SEED = bytes(range(32))


def vectors() -> dict[str, str]:
    """Return name -> hex; Ed25519 is deterministic, so the whole sealed message is fixed."""
    key = SigningKey(SEED)
    manifest = update.Manifest(
        UpdateId("v01", 0x0123456789ABCDEF, 7), "motion-forecast", "north", round=12, base_version=11
    )
    body = update.pack(manifest, b"\x01\x02\x03")
    frames = chunks.split(bytes(range(100)), chunk_bytes=60)
    return {
        "public_key": key.public.hex(),
        "manifest_and_payload": body.hex(),
        "sealed_update": seal(body, key, kind=Kind.UPDATE, sender="v01", fleet="demo").hex(),
        "chunk_0": frames[0].hex(),
        "chunk_1": frames[1].hex(),
    }


if __name__ == "__main__":
    print(json.dumps(vectors(), indent=2))  # noqa: T201 - a script
