"""`fedfleet inspect` tells what is in a file, and says in one line when it is nothing of ours."""

import json
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from test_codec_parts import MIXED, noise
from typer.testing import CliRunner

from fedfleet.cli.inspect import look
from fedfleet.cli.main import app
from fedfleet.codec import container, payload
from fedfleet.codec.describe import bound_bits
from fedfleet.codec.settings import Settings
from fedfleet.codec.wire import varint
from fedfleet.protocol import envelope, messages, update
from fedfleet.protocol.envelope import Kind
from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.ids import UpdateId
from fedfleet.protocol.signing import SigningKey

KEY = SigningKey(bytes(range(32)))
MANIFEST = update.Manifest(UpdateId("v01", 7, 3), "motion-forecast", "north", round=5, base_version=4)


def encoded(settings: Settings | None = None, size: int = 10_000) -> bytes:
    return payload.encode(noise(size, 1), settings or Settings(), steps=120, examples=2500, seed=2)


def sealed(body: bytes, kind: Kind = Kind.UPDATE) -> bytes:
    return envelope.seal(body, KEY, kind=kind, sender="v01", fleet="f")


def inspect(file: Path, *words: str) -> str:
    done = CliRunner().invoke(app, ["inspect", str(file), *words], env={"COLUMNS": "100"})
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_bound_is_that_of_counting() -> None:
    for size, count in ((1, 0), (1, 1), (40, 7), (1000, 10), (1000, 990)):
        assert bound_bits(size, count) == pytest.approx(math.log2(math.comb(size, count)), abs=1e-9)


def test_a_payload_is_told_in_lines(tmp_path: Path) -> None:
    data = encoded()
    (tmp_path / "update.bin").write_bytes(data)
    out = inspect(tmp_path / "update.bin")
    ratio = f"{40_000 / len(data):.1f} times smaller than float32; 120 steps, 2,500 examples"
    assert f"payload version 1: {len(data)} bytes for 10,000 parameters, {ratio}" in out
    assert "delta, segment 0: " in out
    assert " + sign, 100 of 10,000 values sent, the largest " in out
    assert "bound log2 C(10000, 100): " in out


def test_a_sealed_update_is_told_with_its_manifest(tmp_path: Path) -> None:
    data = sealed(update.pack(MANIFEST, encoded()))
    (tmp_path / "sealed.bin").write_bytes(data)
    out = inspect(tmp_path / "sealed.bin")
    assert f"sealed update from v01, {len(data)} bytes (signature not checked)" in out
    assert f"update {MANIFEST.id}: task motion-forecast, region north, round 5, base 4" in out
    told = json.loads(inspect(tmp_path / "sealed.bin", "--json"))
    assert told["manifest"]["id"] == str(MANIFEST.id)
    assert told["payload"]["examples"] == 2500


def test_the_streams_add_up_and_the_ratio_is_that_of_the_file() -> None:
    # given a payload of two segments, five parts and two vectors
    data = payload.encode(
        noise(700, 1), Settings(density=0.1), steps=1, examples=2, parts=MIXED, control=noise(700, 2)
    )
    # when
    view = look(data, name="x").payload
    # then every byte is accounted for
    assert view is not None
    inside = sum(one.head_bytes + one.index_bytes + one.value_bytes for one in view.blocks)
    assert (inside + view.container_bytes, view.size_bytes) == (len(data), len(data))
    assert [(one.section, one.segment, one.parameters, one.nonzeros) for one in view.blocks] == [
        (section, *rest)
        for section in ("delta", "control variate")
        for rest in ((0, 280, 28), (0, 20, 20), (1, 100, 10), (1, 290, 290))
    ]
    assert view.ratio == pytest.approx(4 * 690 / len(data))
    sparse = view.blocks[0]
    assert sparse.bound_bits == pytest.approx(math.log2(math.comb(280, 28)) / 28)
    assert sparse.index_bits == 8 * sparse.index_bytes / 28
    assert [one.value for one in view.blocks[:4]] == ["sign", "float32", "sign", "int8"]
    assert view.blocks[1].bound_bits is None


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (Settings(value="int4"), "int4"),
        (Settings("dense", "int2"), "int2"),
        (Settings("dense", "stochastic4", 0.1), "stochastic4"),
        (Settings("dense", "float32"), "float32"),
    ],
)
def test_every_mode_has_its_name(settings: Settings, named: str) -> None:
    view = look(encoded(settings), name="x").payload
    assert view is not None
    assert [one.value for one in view.blocks] == [named]


def test_coordinates_of_a_plan_need_no_plan_to_be_counted() -> None:
    common = np.arange(0, 10_000, 100)
    data = payload.encode(noise(10_000, 1), Settings("common", "int8"), steps=1, examples=1, common=common)
    view = look(data, name="x").payload
    assert view is not None
    (one,) = view.blocks
    assert (one.index, one.nonzeros, one.index_bytes, one.index_bits) == ("by plan", 100, 5, None)


def test_another_message_is_told_as_its_json(tmp_path: Path) -> None:
    status = messages.Status(vehicle="v01", state="ONLINE", session=3)
    (tmp_path / "status.bin").write_bytes(sealed(messages.encode(status), Kind.STATUS))
    assert "sealed status from v01" in inspect(tmp_path / "status.bin")
    told = json.loads(inspect(tmp_path / "status.bin", "--json"))
    assert (told["kind"], told["message"]["session"]) == ("status", 3)


def flipped(data: bytes, at: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", 'it.bin: is empty, expected a payload ("fdu") or a sealed message ("FFEN")'),
        (
            b"PK\x03\x04abc",
            'it.bin: begins 504b0304, expected a payload ("fdu") or a sealed message ("FFEN")',
        ),
        (flipped(encoded(), 30), "it.bin: checksum-mismatch: payload of "),
        (encoded()[:-20], "it.bin: checksum-mismatch: payload of "),
        (
            flipped(sealed(update.pack(MANIFEST, encoded())), -9),
            "it.bin: digest-mismatch: bytes from v01 have",
        ),
        (sealed(b"short"), "it.bin: malformed-manifest: update from v01: manifest is cut or not ASCII"),
        (sealed(b"{", Kind.STATUS), "it.bin: malformed-message: status message: Expecting property name"),
        (container.join({(container.STEPS, 0): b"\0"}), "it.bin: missing-section: section type 1 is missing"),
    ],
)
def test_what_is_nothing_of_ours_is_told_in_one_line(data: bytes, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        look(data, name="it.bin")
    assert str(caught.value).startswith(text)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["inspect", str(tmp_path / "none.bin")])
    assert isinstance(done.exception, UsageError)
    assert str(done.exception) == f"{tmp_path / 'none.bin'}: No such file or directory"


def test_a_claim_of_a_huge_model_is_refused_before_anything_is_read() -> None:
    # given a payload that says that it is for two billion parameters
    delta = b"\0\x06" + varint(2**31 - 1) + b"\x01\0"
    data = container.join(
        {(container.DELTA, 0): delta, (container.STEPS, 0): b"\0", (container.EXAMPLES, 0): b"\0"}
    )
    tracemalloc.start()
    # when
    with pytest.raises(
        UsageError, match=r"size-mismatch: delta of 2147483647 parameters, expected 1 to 100000000$"
    ):
        look(data, name="it.bin")
    # then
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000
    assert look(data, name="it.bin", parameters=2**31 - 1).payload is not None
