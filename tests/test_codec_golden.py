"""The format does not drift: bytes written once are written and read the same for ever."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import slow_decoder

from fedfleet.codec import payload
from fedfleet.codec.parts import SEGMENTS, Part, Parts
from fedfleet.codec.settings import Settings
from fedfleet.protocol.errors import PeerError

GOLDEN = Path(__file__).parent / "golden" / "codec"
ACCEPTED: list[dict[str, Any]] = json.loads((GOLDEN / "accepted.json").read_text())
DECODED: list[dict[str, Any]] = json.loads((GOLDEN / "decoded.json").read_text())
REFUSED: list[dict[str, Any]] = json.loads((GOLDEN / "refused.json").read_text())
DIGESTS: list[dict[str, Any]] = json.loads((GOLDEN / "digests.json").read_text())


def named(vectors: list[dict[str, Any]]) -> Any:
    return [pytest.param(vector, id=vector["name"]) for vector in vectors]


def floats(text: str) -> npt.NDArray[np.float32]:
    return np.frombuffer(bytes.fromhex(text), dtype="<f4").astype(np.float32)


@pytest.mark.parametrize("vector", named(ACCEPTED))
def test_encodes_to_the_golden_bytes(vector: dict[str, Any]) -> None:
    data = payload.encode(
        floats(vector["delta"]),
        Settings(**vector["settings"]),
        steps=vector["steps"],
        examples=vector["examples"],
    )
    assert data.hex() == vector["payload"]


@pytest.mark.parametrize("vector", named(ACCEPTED))
def test_decodes_from_the_golden_bytes(vector: dict[str, Any]) -> None:
    data, size = bytes.fromhex(vector["payload"]), len(vector["delta"]) // 8
    got = payload.decode(data, size=size)
    assert (got.steps, got.examples) == (vector["steps"], vector["examples"])
    assert (None if got.delta.indices is None else got.delta.indices.tolist()) == vector["coordinates"]
    assert got.delta.values.tobytes() == floats(vector["values"]).tobytes()
    slow = slow_decoder.decode(data, size)
    assert np.array(slow.values, dtype=np.float32).tobytes() == floats(vector["values"]).tobytes()


@pytest.mark.parametrize("vector", named(DECODED))
def test_decodes_bytes_that_need_not_be_ours(vector: dict[str, Any]) -> None:
    # given a payload, and what the receiver knows of the model and of the plan
    data, size, told = bytes.fromhex(vector["payload"]), vector["size"], vector.get("parts")
    parts = told and Parts(
        size, tuple(Part(name, tuple(map(tuple, spans)), how) for name, spans, how in told)
    )
    common = np.array(vector["common"], dtype=np.int64) if "common" in vector else None
    # when
    got = payload.decode(data, size=size, parts=parts, common=common, control="control" in vector)
    # then
    assert (got.steps, got.examples) == (3, 5)
    assert (None if got.delta.indices is None else got.delta.indices.tolist()) == vector["indices"]
    assert got.delta.values.tobytes() == floats(vector["values"]).tobytes()
    # and the other decoder agrees
    plain = told and [(SEGMENTS[name], spans, how) for name, spans, how in told]
    slow = slow_decoder.decode(data, size, plain, vector.get("common"), control="control" in vector)
    assert dense(size, slow.coordinates, slow.values) == got.delta.dense().tolist()
    if got.control is not None and slow.control is not None:
        assert got.control.dense().tolist() == floats(vector["control"]).tolist()
        assert dense(size, *slow.control[:2]) == floats(vector["control"]).tolist()


def dense(size: int, coordinates: list[int], values: list[float]) -> list[float]:
    stated = dict(zip(coordinates, values, strict=True))
    return [stated.get(place, 0.0) for place in range(size)]


@pytest.mark.parametrize("vector", named(REFUSED))
def test_refuses_the_golden_bytes(vector: dict[str, Any]) -> None:
    with pytest.raises(PeerError) as caught:
        payload.decode(bytes.fromhex(vector["payload"]), size=vector["size"])
    assert caught.value.reason == vector["reason"]


def long_delta(size: int, factor: int) -> npt.NDArray[np.float32]:
    """Return whole numbers that look random, the same on every machine: multiplication modulo 2^32."""
    mixed = np.arange(1, size + 1, dtype=np.uint32) * np.uint32(factor)
    mixed ^= mixed >> np.uint32(15)
    mixed *= np.uint32(0x2C1B3C6D)
    mixed ^= mixed >> np.uint32(12)
    return (mixed >> np.uint32(8)).astype(np.float32) - np.float32(2**23)


@pytest.mark.parametrize("vector", named(DIGESTS))
def test_long_payloads_keep_their_digest(vector: dict[str, Any]) -> None:
    delta = long_delta(vector["size"], vector["factor"])
    data = payload.encode(delta, Settings(**vector["settings"]), steps=100, examples=1000)
    assert (len(data), hashlib.sha256(data).hexdigest()) == (vector["size_bytes"], vector["sha256"])


def test_the_readme_says_why_each_vector_is_there() -> None:
    readme = (GOLDEN / "README.md").read_text()
    for vector in (*ACCEPTED, *DECODED, *REFUSED, *DIGESTS):
        assert readme.count(f"- `{vector['name']}`: ") == 1
