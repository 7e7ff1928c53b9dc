"""Ids, topics, chunks, the update manifest, messages and enrolment: what is valid, and every way not to be."""

import struct
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfleet.protocol import chunks, enrolment, topics, update
from fedfleet.protocol.envelope import Kind, seal
from fedfleet.protocol.errors import PeerError, UsageError
from fedfleet.protocol.ids import SHARDS, UpdateId, check_id, shard, task_id
from fedfleet.protocol.messages import Command, Lease, Metrics, Plan, Request, Status, decode, encode
from fedfleet.protocol.selection import draw
from fedfleet.protocol.signing import SigningKey

IDS = st.from_regex(r"[a-z0-9-]{1,36}", fullmatch=True)
DIGEST = "ab" * 32
NONCE = "0f" * 16


@given(IDS)
def test_shards_are_two_digits_below_sixty_four(vehicle: str) -> None:
    assert len(shard(vehicle)) == 2
    assert int(shard(vehicle)) < SHARDS


@pytest.mark.parametrize("text", ["", "V01", "a/b", "a+", "#", "x" * 37, "ä", "a_b", "v01\n"])
def test_an_id_outside_the_alphabet_is_named(text: str) -> None:
    with pytest.raises(UsageError, match=r"vehicle id .* expected 1 to 36 of a-z, 0-9 and '-'"):
        check_id(text, "vehicle")


def test_a_task_name_becomes_an_id() -> None:
    assert task_id("motion_forecast") == "motion-forecast"


@given(IDS, st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))
def test_update_ids_survive_their_text_form(vehicle: str, epoch: int, sequence: int) -> None:
    identity = UpdateId(vehicle, epoch, sequence)
    assert UpdateId.parse(str(identity)) == identity


@pytest.mark.parametrize(
    "text", ["", "v01", "v01:0:0", "v01:00000000000000gg:1", "V:0000000000000000:1", "a:b:c:d"]
)
def test_malformed_update_ids_are_refused(text: str) -> None:
    with pytest.raises(PeerError, match="malformed-id"):
        UpdateId.parse(text)


@given(IDS, IDS, IDS, IDS, st.integers(0, 2**31), st.integers(0, 99))
def test_every_topic_parses_back(
    fleet: str, region: str, task: str, vehicle: str, round_: int, number: int
) -> None:
    plan = topics.parse(topics.round_plan(fleet, region, task))
    assert (plan.kind, plan.fleet, plan.region, plan.task) == ("round", fleet, region, task)
    settled = topics.parse(topics.settlement(fleet, region, task, round_))
    assert (settled.kind, settled.round) == ("settlement", round_)
    piece = topics.parse(topics.update(fleet, vehicle, task, round_=round_, number=number))
    assert (piece.kind, piece.vehicle, piece.task, piece.round, piece.number) == (
        "update",
        vehicle,
        task,
        round_,
        number,
    )
    assert topics.parse(topics.blob(fleet, DIGEST, number)).digest == DIGEST
    for build in (topics.status, topics.metrics, topics.request, topics.receipt, topics.command):
        assert topics.parse(build(fleet, vehicle)).kind == build.__name__
    assert topics.parse(topics.model(fleet, region, task)).kind == "model"
    assert topics.parse(topics.release(fleet, region, task)).kind == "release"


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "fl/v2/demo/r/north/round/t",
        "fl/v1/demo/r/north/round/T",
        "fl/v1/demo/r/north/settlement/t/01",
        "fl/v1/demo/r/north/settlement/t/-1",
        f"fl/v1/demo/v/{shard('v01')}/v01/update/t/9999999999/0",
        f"fl/v1/demo/v/{shard('v01')}/v01/update/t/1/4294967296",
        "fl/v1/demo/blob/abc/0",
        "fl/v1/demo/v/99/v01/status",
        f"fl/v1/demo/v/{shard('v01')}/v01/update/t/1",
        f"fl/v1/demo/v/{shard('v01')}/v01/nothing",
        "fl/v1/demo/r/north/round/t/extra",
    ],
)
def test_a_foreign_topic_is_refused(topic: str) -> None:
    with pytest.raises(PeerError, match="malformed-topic"):
        topics.parse(topic)


def test_building_a_topic_with_a_wildcard_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="vehicle id"):
        topics.status("demo", "+")


@given(st.binary(min_size=1, max_size=400), st.integers(1, 400))
def test_chunks_join_to_the_message_in_any_order(message: bytes, chunk_bytes: int) -> None:
    frames = chunks.split(message, chunk_bytes=chunk_bytes)
    if len(frames) == 1:
        assert frames == (message,)
        return
    read = [chunks.read_chunk(frame, number=n, limit_bytes=400) for n, frame in enumerate(frames)]
    assert chunks.join(reversed(read)) == message
    with pytest.raises(PeerError, match="malformed-chunk"):
        chunks.join(read[1:])


def test_a_chunk_that_lies_is_refused() -> None:
    frames = chunks.split(bytes(100), chunk_bytes=60)
    with pytest.raises(PeerError, match="too-large: chunked message is 100 bytes, limit 99"):
        chunks.read_chunk(frames[0], number=0, limit_bytes=99)
    with pytest.raises(PeerError, match="malformed-chunk"):
        chunks.read_chunk(frames[0], number=1, limit_bytes=100)
    first = chunks.read_chunk(frames[0], number=0, limit_bytes=100)
    second = chunks.read_chunk(frames[1][:-1] + b"\x01", number=1, limit_bytes=100)
    with pytest.raises(PeerError, match="digest-mismatch"):
        chunks.join([first, second])


def frame_of(
    number: int, count: int, total: int, data: bytes, *, digest: bytes = sha256(bytes(100)).digest()
) -> bytes:
    return b"FFCH\x01\x00" + struct.pack(">HHI", count, number, total) + digest + data


@pytest.mark.parametrize(
    ("number", "count", "total", "size"),
    [
        (0, 1, 100, 100),  # one piece travels bare
        (0, 2, 100, 30),  # 30 + 30 is not 100
        (0, 3, 100, 60),  # 60 + 40 is two pieces
        (1, 2, 100, 60),  # the last is longer than the first
        (2, 3, 100, 33),  # the two before have 33.5 each
        (0, 100, 100, 2),  # a hundred pieces of 2
        (5, 6, 100, 100),  # nothing is left for the five before
        (0, 2, 300_000, 256_001),  # longer than any piece may be
        (1, 2, 600_000, 88_000),
    ],
)
def test_only_the_canonical_split_is_read(number: int, count: int, total: int, size: int) -> None:
    with pytest.raises(PeerError, match="malformed-chunk"):
        chunks.read_chunk(frame_of(number, count, total, bytes(size)), number=number, limit_bytes=10**6)


@given(st.integers(2, 5000), st.integers(1, 5000))
def test_every_piece_tells_the_same_split(total: int, chunk_bytes: int) -> None:
    frames = chunks.split(bytes(total), chunk_bytes=chunk_bytes)
    if len(frames) > 1:
        read = [chunks.read_chunk(frame, number=n, limit_bytes=5000) for n, frame in enumerate(frames)]
        (cut,) = {piece.split for piece in read}
        assert (cut.count, cut.total_bytes, cut.chunk_bytes) == (len(frames), total, chunk_bytes)
        assert [cut.size_of(n) for n in range(cut.count)] == [len(piece.data) for piece in read]


@given(st.binary(max_size=120))
def test_a_manifest_of_junk_is_refused(junk: bytes) -> None:
    try:
        update.unpack(junk, sender="v01")
    except PeerError as error:
        assert error.reason in {"malformed-manifest", "unknown-version"}  # noqa: PT017 - most junk, not all, is refused


def test_a_plan_needs_finite_numbers_and_known_words() -> None:
    good = {
        "task": "t", "region": "north", "round": 1, "revision": 0, "base_version": 0, "onnx_sha256": DIGEST,
        "opened_at_s": 1.0, "deadline_s": 2.0, "lease_s": 1.0, "seed": 1, "share": 1.0,
        "codec": {}, "training": {"epochs": 1}, "added-by-a-newer-server": [1],
    }  # fmt: skip
    plan = Plan.model_validate(good)
    assert decode(Plan, encode(plan), sender="s") == plan
    for field, bad in [
        ("round", -1),
        ("share", 1.5),
        ("deadline_s", float("nan")),
        ("mode", "x"),
        ("region", "N"),
    ]:
        with pytest.raises(PeerError, match=f"malformed-message: Plan from s: {field}"):
            decode(Plan, encode(Plan.model_construct(**{**plan.__dict__, field: bad})), sender="s")


def test_bounds_hold_on_sizes_of_maps() -> None:
    counts = (
        "session",
        "active_version",
        "frames",
        "missed",
        "missed_in_swap",
        "swaps",
        "bytes_up",
        "bytes_down",
    )
    metrics = dict.fromkeys((*counts, "at_s", "p50_ms", "p99_ms", "trainings"), 1) | {
        "vehicle": "v01",
        "task": "t",
    }
    assert Metrics.model_validate(metrics).refusals == {}
    with pytest.raises(ValueError, match="at most 100"):
        Metrics.model_validate({**metrics, "refusals": {str(n): 1 for n in range(101)}})


def test_a_status_carries_its_lease() -> None:
    status = Status(vehicle="v01", state="ONLINE", session=3, lease=Lease(task="t", round=1, until_s=9.0))
    assert decode(Status, encode(status), sender="v01") == status


@given(st.integers(0, 2**53), st.integers(0, 2**31), IDS)
def test_a_draw_is_a_share_and_the_same_for_everyone(seed: int, round_: int, vehicle: str) -> None:
    assert 0 <= draw(seed, round_, vehicle) < 1
    assert draw(seed, round_, vehicle) == draw(seed, round_, vehicle)


def test_draws_are_spread_evenly() -> None:
    draws = [draw(1, 1, f"v{n}") for n in range(4000)]
    assert abs(sum(d < 0.25 for d in draws) / 4000 - 0.25) < 0.03


CODE = "correct-horse"
VEHICLE = SigningKey(b"\x03" * 32)
SERVER = SigningKey(b"\x04" * 32)


def enrol_request(code: str = CODE, key: SigningKey = VEHICLE, **changes: str) -> bytes:
    proof = enrolment.vehicle_proof(
        code, fleet="demo", vehicle="v01", nonce=NONCE, public_key=VEHICLE.public.hex()
    )
    fields = {
        "vehicle": "v01",
        "kind": "enrol",
        "nonce": NONCE,
        "public_key": VEHICLE.public.hex(),
        "proof": proof,
    }
    request = Request.model_validate(fields | changes)
    return seal(encode(request), key, kind=Kind.REQUEST, sender="v01", fleet="demo")


def test_a_vehicle_with_the_code_is_known() -> None:
    assert (
        enrolment.open_enrolment(enrol_request(), {"v01": CODE}, fleet="demo").public_key
        == VEHICLE.public.hex()
    )


@pytest.mark.parametrize(
    ("message", "codes", "reason"),
    [
        (enrol_request(), {}, "unknown-sender"),
        (enrol_request(), {"v02": CODE}, "unknown-sender"),
        (enrol_request(code="wrong-code"), {"v01": CODE}, "wrong-code"),
        (enrol_request(public_key=SERVER.public.hex()), {"v01": CODE}, "wrong-code"),
        (enrol_request(key=SERVER), {"v01": CODE}, "bad-signature"),
        (enrol_request(kind="hello"), {"v01": CODE}, "not-an-enrolment"),
        (enrol_request()[:-1], {"v01": CODE}, "truncated"),
    ],
)
def test_an_enrolment_that_proves_nothing_is_refused(
    message: bytes, codes: dict[str, str], reason: str
) -> None:
    with pytest.raises(PeerError) as caught:
        enrolment.open_enrolment(message, codes, fleet="demo")
    assert caught.value.reason == reason


def answer(code: str = CODE, key: SigningKey = SERVER) -> bytes:
    proof = enrolment.server_proof(
        code, fleet="demo", vehicle="v01", nonce=NONCE, server_key=SERVER.public.hex()
    )
    command = Command(
        vehicle="v01",
        kind="enrolled",
        nonce=NONCE,
        region="north",
        server_key=SERVER.public.hex(),
        proof=proof,
    )
    return seal(encode(command), key, kind=Kind.COMMAND, sender="fleet-server", fleet="demo")


def test_the_server_proves_itself_by_the_same_code() -> None:
    command = enrolment.open_enrolled(answer(), CODE, fleet="demo", vehicle="v01", nonce=NONCE)
    assert command.server_key == SERVER.public.hex()
    for message, nonce in [
        (answer("wrong-code"), NONCE),
        (answer(key=VEHICLE), NONCE),
        (answer(), "00" * 16),
    ]:
        with pytest.raises(PeerError, match=r"wrong-code|bad-signature"):
            enrolment.open_enrolled(message, CODE, fleet="demo", vehicle="v01", nonce=nonce)
