"""Deltas and packs of deltas: which stay live, and the cheapest way of a vehicle that returns."""

from collections.abc import Sequence
from hashlib import sha256

import agent_world as aw
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfleet.codec import payload
from fedfleet.codec.settings import Settings
from fedfleet.fleet_server.chain import ALONE, GROUP, LONGEST, Chain, live, pack_due
from fedfleet.models import bundle
from fedfleet.protocol import messages as msg
from fedfleet.protocol.errors import PeerError
from fedfleet.vehicle_agent.assemble import Held, build, cheapest, route
from fedfleet.vehicle_agent.entries import Graph


def ref(text: str, size_bytes: int = 100) -> msg.BlobRef:
    return msg.BlobRef(sha256=sha256(text.encode()).hexdigest(), size_bytes=size_bytes, chunks=1)


def stored(version: int, *, size_bytes: int = 100) -> tuple[dict[int, msg.BlobRef], dict[int, msg.BlobRef]]:
    """What a server has made up to a version: every delta, and the packs that were due."""
    deltas = {to: ref(f"d{to}", size_bytes) for to in range(1, version + 1)}
    packs = {}
    for one in range(1, version + 1):
        due = pack_due(one)
        if due:
            packs[due[-1]] = ref(f"p{due[-1]}", len(due) * size_bytes)
    return deltas, packs


def told(chain: Chain, version: int, full_bytes: int) -> msg.ModelPointer:
    full = aw.pointer(1).full.model_copy(update={"size_bytes": full_bytes})
    changes = {"version": version, "deltas": chain.deltas, "packs": chain.packs, "full": full}
    return aw.pointer(1).model_copy(update=changes)


# --- the server's side ---


@given(version=st.integers(1, 400))
def test_the_chain_has_no_gap_and_names_few_blobs(version: int) -> None:
    chain = live(*stored(version), version=version, full_bytes=10**9)
    hops = (*chain.packs, *chain.deltas)
    assert [hop.to_version for hop in hops[:-1]] == [hop.from_version for hop in hops[1:]]
    assert hops[-1].to_version == version
    assert min(version, LONGEST - GROUP) <= version - hops[0].from_version <= LONGEST
    assert min(version, ALONE) <= len(chain.deltas) < ALONE + GROUP
    assert len(chain.packs) <= LONGEST // GROUP


@given(version=st.integers(1, 200), full_bytes=st.integers(1, 20_000))
def test_what_is_live_costs_less_than_the_full_vector(version: int, full_bytes: int) -> None:
    chain = live(*stored(version), version=version, full_bytes=full_bytes)
    total = sum(hop.blob.size_bytes for hop in (*chain.packs, *chain.deltas))
    assert total <= full_bytes or len(chain.deltas) == 1
    assert chain.deltas[-1].to_version == version


def test_a_gap_ends_the_chain() -> None:
    deltas, packs = stored(30)
    del packs[16]
    chain = live(deltas, packs, version=30, full_bytes=10**9)
    assert chain.packs[0].from_version == 16
    del deltas[29]
    assert [delta.to_version for delta in live(deltas, packs, version=30, full_bytes=10**9).deltas] == [30]
    assert live({}, {}, version=30, full_bytes=10**9) == Chain((), ())


def test_a_pack_is_due_once_for_every_group_of_versions() -> None:
    due = [pack for version in range(100) if (pack := pack_due(version))]
    assert [one for pack in due for one in pack] == list(range(1, len(due) * GROUP + 1))
    assert all(len(pack) == GROUP for pack in due)


# --- the vehicle's side ---


@given(version=st.integers(1, 150), behind=st.integers(0, 150))
def test_the_way_back_costs_no_more_than_the_deltas_and_the_rest_of_one_pack(
    version: int, behind: int
) -> None:
    pointer = told(live(*stored(version), version=version, full_bytes=10**9), version, 10**9)
    have = version - behind
    way = cheapest(pointer, have)
    if have < 0:
        assert way is None
        return
    if behind <= LONGEST - GROUP:
        assert way is not None
    if way is not None:
        assert sum(hop.blob.size_bytes for hop in way) <= (behind + GROUP - 1) * 100
        at = have
        for hop in way:
            assert hop.from_version <= at < hop.to_version
            at = hop.to_version
        assert at == version


def test_who_missed_one_round_pays_for_the_deltas_alone() -> None:
    for version in range(2, 40):
        pointer = told(live(*stored(version), version=version, full_bytes=10**9), version, 10**9)
        way = cheapest(pointer, version - ALONE)
        assert way is not None
        assert sum(hop.blob.size_bytes for hop in way) == ALONE * 100


# --- from bytes to a model ---


def graph() -> Graph:
    file, places = aw.graph()
    return Graph(sha256(aw.blobs_of(0)[0]).hexdigest(), places.to_json(), file)


@pytest.mark.parametrize("have", [100, 99, 98, 97, 92, 91, 60, 0])
def test_a_vehicle_a_hundred_versions_behind_catches_up_to_the_same_bytes(have: int) -> None:
    pointer, blobs = aw.chained(100)
    held = Held(have, aw.vector(have), graph())
    way = route(pointer, held)
    assert way.chain is not None
    assert len(way.refs) <= LONGEST // GROUP + GROUP + ALONE
    model = build(
        way, {one.sha256: blobs[one.sha256] for one in way.refs}, held, task=aw.TASK, limit_bytes=10**6
    )
    assert sha256(model.vector.tobytes()).hexdigest() == pointer.vector_sha256
    assert model.onnx == aw.file_of(100)
    assert model.step == (aw.delta_of(99) if have < 100 else None)


def test_a_gap_leads_over_the_full_vector() -> None:
    pointer, _ = aw.chained(40)
    holed = pointer.model_copy(update={"packs": (pointer.packs[0], *pointer.packs[2:])})
    assert route(holed, Held(10, aw.vector(10), graph())).chain is None
    assert route(holed, Held(17, aw.vector(17), graph())).chain is not None


def test_a_version_that_was_set_back_is_reached_by_its_set_delta() -> None:
    # given version 12 that went back to the weights of version 10: a + (b - a) is not b in float32
    pointer, blobs = aw.chained(11)
    back = payload.encode(aw.vector(10), Settings("dense", "float32"), steps=0, examples=0)
    hop = msg.DeltaRef(from_version=11, to_version=12, kind="set", blob=aw.blob_of(back))
    told = {
        "version": 12,
        "deltas": (*pointer.deltas, hop),
        "vector_sha256": sha256(aw.vector(10).tobytes()).hexdigest(),
        "onnx_sha256": sha256(aw.file_of(10)).hexdigest(),
    }
    pointer = pointer.model_copy(update=told)
    blobs[hop.blob.sha256] = back
    for have in (11, 5):
        held = Held(have, aw.vector(have), graph())
        model = build(route(pointer, held), blobs, held, task=aw.TASK, limit_bytes=10**6)
        assert (model.vector == aw.vector(10)).all()
        assert model.step == b""
    assert pointer.step is None


@pytest.mark.parametrize("have", [None, 99, 100])
def test_the_step_is_fetched_when_it_is_to_be_kept_and_not_on_the_way(have: int | None) -> None:
    pointer, blobs = aw.chained(100)
    pointer = pointer.model_copy(update={"keep_step": True, "full": aw.pointer(100).full})
    held = None if have is None else Held(have, aw.vector(have), graph())
    way = route(pointer, held)
    model = build(
        way, {one.sha256: blobs[one.sha256] for one in way.refs}, held, task=aw.TASK, limit_bytes=10**6
    )
    assert model.step == aw.delta_of(99)


# --- formats ---


def packed(count: int = 3) -> tuple[bytes, list[tuple[bundle.DeltaKind, bytes]]]:
    deltas: list[tuple[bundle.DeltaKind, bytes]] = [("add", bytes([i] * i)) for i in range(count)]
    deltas.append(("set", b"all"))
    return bundle.pack_deltas(7, deltas), deltas


def test_a_pack_of_deltas_is_read_back() -> None:
    blob, deltas = packed()
    assert bundle.unpack_deltas(blob, limit_bytes=1000) == (7, deltas)


def inner(blob: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdDecompressor().decompress(blob)


def outer(data: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor(write_content_size=True).compress(data)


def test_a_pack_that_is_not_one_is_refused() -> None:
    data = inner(packed()[0])
    wrong: Sequence[bytes] = [b"", b"FFP2" + data[4:], data + b"x", *(data[:cut] for cut in range(len(data)))]
    for each in wrong:
        with pytest.raises(PeerError, match="malformed-blob"):
            bundle.unpack_deltas(outer(each), limit_bytes=1000)
    with pytest.raises(PeerError, match="too-large"):
        bundle.unpack_deltas(outer(bytes(1001)), limit_bytes=1000)


def test_a_pack_of_other_versions_than_told_is_refused() -> None:
    pointer, blobs = aw.chained(20)
    pack = pointer.packs[0]
    other = bundle.pack_deltas(3, [("add", aw.delta_of(i)) for i in range(8)])
    held = Held(0, aw.vector(0), graph())
    with pytest.raises(PeerError, match="pack of deltas 3 to 11, expected 0 to 8"):
        build(route(pointer, held), blobs | {pack.blob.sha256: other}, held, task=aw.TASK, limit_bytes=10**6)


def test_both_versions_of_the_vector_blob_are_read_and_the_new_one_is_smaller() -> None:
    vector = np.random.default_rng(1).normal(0, 0.05, 20_000).astype(np.float32)
    vector[:3] = (-0.0, np.float32(1e-42), np.finfo(np.float32).max)
    old = outer(vector.tobytes())
    new = bundle.pack_vector(vector)
    for blob in (old, new):
        assert bundle.unpack_vector(blob, size=20_000).tobytes() == vector.tobytes()
    assert len(new) < len(old)
    for size in (19_999, 20_001):
        with pytest.raises(PeerError):
            bundle.unpack_vector(new, size=size)
    with pytest.raises(PeerError, match="malformed-blob"):
        bundle.unpack_vector(outer(b"XXXX" + vector.tobytes()), size=20_000)
