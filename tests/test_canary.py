"""What a release is asked before it drives travels once: the inputs are a blob that vehicles keep."""

import struct
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import server_world as sw
import zstandard
from both_sides import Both

from fedfleet.fleet_server import store_blobs, store_models
from fedfleet.fleet_server.announcements import live_blobs
from fedfleet.models import bundle
from fedfleet.models.task import Floats
from fedfleet.protocol import topics
from fedfleet.protocol.envelope import peek
from fedfleet.protocol.errors import PeerError
from fedfleet.protocol.ids import task_id
from fedfleet.protocol.messages import BlobRef, Release, decode
from fedfleet.vehicle_agent.journal import Journal

INPUTS = np.arange(12, dtype=np.float32).reshape(3, 4)
OUTPUTS = np.arange(6, dtype=np.float32).reshape(3, 2)
ROUNDS = {"total": 6, "quorum": 1, "contributors": {"north": ["v01"]}}


def packed() -> tuple[bytes, bytes]:
    inputs = bundle.pack_inputs(INPUTS)
    return inputs, bundle.pack_answers(OUTPUTS, inputs_sha256=sha256(inputs).hexdigest())


# --- the blobs ---


def test_inputs_and_answers_come_back() -> None:
    inputs, answers = packed()
    assert bundle.canary_inputs(answers, limit_bytes=1000) == sha256(inputs).hexdigest()
    found = bundle.unpack_canary(answers, inputs, limit_bytes=1000)
    np.testing.assert_array_equal(found[0], INPUTS)
    np.testing.assert_array_equal(found[1], OUTPUTS)


def test_what_they_hold_is_as_the_document_says() -> None:
    inputs, answers = (zstandard.ZstdDecompressor().decompress(blob) for blob in packed())
    assert inputs == struct.pack(">4sII", b"FFI1", 3, 4) + INPUTS.tobytes()
    digest = sha256(packed()[0]).digest()
    assert answers == struct.pack(">4s32sII", b"FFK2", digest, 3, 2) + OUTPUTS.tobytes()


def test_a_canary_of_an_older_server_has_its_inputs_within() -> None:
    old = bundle.pack_canary(INPUTS, OUTPUTS)
    assert bundle.canary_inputs(old, limit_bytes=1000) is None
    found = bundle.unpack_canary(old, limit_bytes=1000)
    np.testing.assert_array_equal(found[0], INPUTS)
    np.testing.assert_array_equal(found[1], OUTPUTS)


def zipped(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=True).compress(data)


def short_inputs(inputs: Floats) -> bytes:
    return bundle.pack_inputs(inputs[:2])


@pytest.mark.parametrize(
    ("answers", "inputs"),
    [
        (packed()[1], None),
        (packed()[1], short_inputs(INPUTS)),
        (
            bundle.pack_answers(OUTPUTS, inputs_sha256=sha256(short_inputs(INPUTS)).hexdigest()),
            short_inputs(INPUTS),
        ),
        (bundle.pack_answers(OUTPUTS, inputs_sha256=sha256(zipped(b"x")).hexdigest()), zipped(b"x")),
        (bundle.pack_answers(OUTPUTS, inputs_sha256=sha256(b"x").hexdigest()), b"x"),
        (zipped(b"FFK2"), packed()[0]),
        (zipped(struct.pack(">4s32sII", b"FFK2", sha256(packed()[0]).digest(), 2**31, 2**31)), packed()[0]),
        (zipped(b"FFK9" + bytes(60)), packed()[0]),
    ],
)
def test_what_does_not_fit_together_is_refused(answers: bytes, inputs: bytes | None) -> None:
    with pytest.raises(PeerError, match="malformed-blob"):
        bundle.unpack_canary(answers, inputs, limit_bytes=1000)


def test_a_release_of_an_older_server_is_read_and_one_of_ours_by_an_older_vehicle() -> None:
    # given a release as version 0.1.0 wrote it, without the new field, and a reader that does not know it
    assert Release.model_fields["canary_inputs"].default is None
    known = {name for name in Release.model_fields if name != "canary_inputs"}
    assert all(Release.model_fields[name].is_required() for name in known - {"variants"})


# --- in the journal ---


def test_the_newest_inputs_are_held_and_damaged_ones_are_not(tmp_path: Path) -> None:
    journal = Journal(tmp_path, vehicle="v01", task="t", epoch=7, seed=b"k" * 32)
    digests = [sha256(blob).hexdigest() for blob in (b"one", b"two")]
    journal.keep_canary_inputs(digests[0], b"one")
    journal.close()
    journal = Journal(tmp_path, vehicle="v01", task="t", epoch=7, seed=b"k" * 32)
    assert journal.canary_inputs(digests[0]) == b"one"
    journal.keep_canary_inputs(digests[1], b"two")
    assert (journal.canary_inputs(digests[0]), journal.canary_inputs(digests[1])) == (None, b"two")
    journal._db.execute("UPDATE canary_inputs SET blob = x'00'")
    assert journal.canary_inputs(digests[1]) is None
    journal.close()


# --- with both sides ---


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Both]:
    made = Both(tmp_path, regions={"north": ("v01",)}, server={"rounds": ROUNDS})
    yield made
    made.close()


def drives(both: Both, version: int) -> bool:
    active = both.vehicles["v01"].state.active
    return active is not None and active.version == version


def release(both: Both) -> Release:
    sealed = both.broker.retained[topics.release(sw.FLEET, "north", task_id(sw.TASK.name))]
    return decode(Release, sealed[peek(sealed, limit_bytes=10**6).body_start :], sender="server")


def subscribed(both: Both) -> list[str]:
    """The blobs that the vehicle asks for from now on, by digest."""
    asked: list[str] = []
    link = both.vehicles["v01"]._link
    real = link.subscribe

    def noted(topic_filter: str) -> None:
        if "/blob/" in topic_filter:
            asked.append(topic_filter.split("/")[4])
        real(topic_filter)

    link.subscribe = noted  # type: ignore[method-assign]
    return asked


def test_inputs_are_fetched_once_and_kept_alive_as_long_as_a_release_names_them(both: Both) -> None:
    # given a vehicle that drives with a first release
    both.run_until(lambda: drives(both, 1))
    inputs = release(both).canary_inputs
    assert inputs is not None
    assert both.vehicles["v01"].parts.journal.canary_inputs(inputs.sha256) is not None
    # when more releases come, past the grace of the blobs of the first
    asked = subscribed(both)
    both.run_until(lambda: drives(both, 6))
    # then they name the same inputs, which were not fetched again, while each canary was
    last = release(both)
    assert last.canary_inputs == inputs
    assert asked.count(inputs.sha256) == 0
    assert asked.count(last.canary.sha256) == 1
    # and the server keeps them for who comes later
    with both.parts.store.read() as connection:
        assert inputs.sha256 in {blob.sha256 for blob in live_blobs(connection)}
        assert inputs.sha256 in {blob.sha256 for blob in store_blobs.kept(connection)}


def test_a_vehicle_that_lost_them_fetches_them_again(both: Both) -> None:
    both.run_until(lambda: drives(both, 1))
    both.vehicles["v01"].parts.journal._db.execute("DELETE FROM canary_inputs")
    both.run_until(lambda: drives(both, 6))
    inputs = release(both).canary_inputs
    assert inputs is not None
    assert both.vehicles["v01"].parts.journal.canary_inputs(inputs.sha256) is not None
    assert not both.vehicles["v01"].refusals


def test_a_store_of_an_older_server_goes_on(tmp_path: Path) -> None:
    # given a store whose release has a canary with its inputs within
    both = Both(tmp_path, regions={"north": ("v01",)}, server={"rounds": ROUNDS})
    both.run_until(lambda: both.version == 1)
    with both.parts.store.write() as connection:
        row = store_models.newest_release(connection)
        assert row is not None
        inputs = store_blobs.canary_inputs(connection, row.canary_sha256)
        assert inputs is not None
        blobs = (
            store_blobs.content(connection, row.canary_sha256),
            store_blobs.content(connection, inputs.sha256),
        )
        old = bundle.pack_canary(*bundle.unpack_canary(*blobs, limit_bytes=10**6))
        digest = store_blobs.put(connection, "canary", old)
        statement = "update release set canary_sha256 = ? where number = ?"
        connection.exec_driver_sql(statement, (digest, row.number))
    # when this server announces it
    with both.parts.store.read() as connection:
        assert store_blobs.canary_inputs(connection, digest) is None
        assert digest in {blob.sha256 for blob in live_blobs(connection)}
    # then vehicles drive by it, and by what comes after
    both.run_until(lambda: drives(both, 6))
    assert isinstance(release(both).canary_inputs, BlobRef)
    assert not both.vehicles["v01"].refusals
    both.close()
