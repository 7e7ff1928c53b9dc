"""The int8 variant: made by a process, judged by the server, published beside float32, taken by weak vehicles only."""

import json
import sys
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import server_world as sw
from both_sides import Both

from fedfleet.fleet_server import quantize, store_models, store_variants, views
from fedfleet.fleet_server.announcements import live_blobs
from fedfleet.fleet_server.config import ServerConfig
from fedfleet.fleet_server.variants import Wanted, judged
from fedfleet.models import bundle, layout, prepared, scoring
from fedfleet.models.task import Metric, Samples
from fedfleet.protocol.errors import PeerError, UsageError

METRIC = Metric("distance", "m", "lower")
WORLD = {"north": ("n-0", "n-1")}


def calibration(folder: Path, *, rows: int = 200) -> Path:
    inputs = np.random.default_rng(99).normal(size=(rows, sw.INPUTS)).astype(np.float32)
    meta = prepared.Meta(
        task=sw.TASK.name,
        task_version=sw.TASK.version,
        drives=("server/own",),
        parts=("train",),
        counts={"train_samples": rows, "train_judged": rows},
        problems={},
    )
    samples = Samples(inputs, sw.answer(inputs), np.ones(rows, np.bool_))
    prepared.write(folder, meta, samples={"train": samples})
    return folder


def model(folder: Path, vector: np.ndarray[Any, np.dtype[np.float32]] = sw.TRUTH) -> bytes:
    if not folder.exists():
        sw.write_export(folder)
    told = layout.read((folder / "layout.json").read_bytes())
    return layout.patch((folder / "graph.onnx").read_bytes(), told, vector)


# --- making it ---


def test_the_int8_file_has_the_form_of_the_task_and_answers_nearly_the_same(tmp_path: Path) -> None:
    inputs = np.random.default_rng(1).normal(size=(100, sw.INPUTS)).astype(np.float32)
    before = model(tmp_path / "export")
    after = quantize.quantized(before, sw.TASK, inputs)
    session = scoring.new_session(after)
    scoring.check(session, sw.TASK)
    outputs = scoring.infer(session, sw.TASK, inputs)
    assert np.abs(outputs - sw.answer(inputs)).max() < 0.05 * np.abs(sw.answer(inputs)).max()
    assert not np.array_equal(outputs, scoring.infer(scoring.new_session(before), sw.TASK, inputs))


def options(tmp_path: Path, **changes: str) -> list[str]:
    (tmp_path / "m.onnx").write_bytes(model(tmp_path / "export"))
    sw.write_validation(tmp_path / "validation", WORLD)
    told = {
        "--task": "server_world:TASK",
        "--model": str(tmp_path / "m.onnx"),
        "--data": str(calibration(tmp_path / "calibration")),
        "--validation": str(tmp_path / "validation"),
        "--region": "north",
        "--out": str(tmp_path / "out"),
    } | changes
    return [word for pair in told.items() for word in pair]


def test_the_process_tells_size_times_scores_and_a_canary_that_holds(tmp_path: Path) -> None:
    assert quantize.main(options(tmp_path)) == 0
    told = json.loads((tmp_path / "out" / "told.json").read_bytes())
    made = (tmp_path / "out" / "int8.onnx").read_bytes()
    assert told["onnx_sha256"] == sha256(made).hexdigest()
    assert told["size_bytes"] == len(made)
    assert min(told["latency_ms"], told["float32_ms"]) > 0
    assert told["before"]["north"]["distance"][0] == pytest.approx(0, abs=1e-4)
    assert 0 < told["after"]["north"]["distance"][0] / told["after"]["north"]["distance"][1] < 0.2
    canary = (tmp_path / "out" / "canary.bin").read_bytes()
    asked = (tmp_path / "out" / "inputs.bin").read_bytes()
    inputs, outputs = bundle.unpack_canary(canary, asked, limit_bytes=10**6)
    far = np.abs(scoring.infer(scoring.new_session(made), sw.TASK, inputs) - outputs).max()
    assert far <= 1e-6 < told["tolerance"]
    assert told["tolerance"] < 0.2


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"--model": "absent.onnx"}, "absent.onnx"),
        ({"--data": "absent"}, "not a folder of prepared data"),
        ({"--region": "moon"}, "moon"),
        ({"--task": "server_world:NOTHING"}, "NOTHING"),
    ],
)
def test_what_cannot_be_made_is_one_line_and_writes_nothing(
    tmp_path: Path, changes: dict[str, str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quantize.main(options(tmp_path, **changes)) == 2
    words = capsys.readouterr().err
    assert text in words
    assert words.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_without_samples_there_are_no_ranges(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^calibration: expected samples, got none$"):
        quantize.quantized(model(tmp_path / "export"), sw.TASK, np.empty((0, sw.INPUTS), np.float32))


# --- judging it ---


def told_of(before: float, after: float) -> dict[str, Any]:
    figures = {"tolerance": 0.1, "size_bytes": 10, "float32_bytes": 30, "latency_ms": 0.1, "float32_ms": 0.2}
    scores = [{"north": {"distance": [value * 10, 10]}} for value in (before, after)]
    return figures | {"onnx_sha256": "0" * 64, "before": scores[0], "after": scores[1]}


@pytest.mark.parametrize(
    ("before", "after", "loss"),
    [(1.0, 1.02, 0.02), (1.0, 0.9, -0.1), (1.0, 1.021, None), (1.0, float("nan"), None), (0.0, 0.0, 0.0)],
)
def test_it_may_be_worse_by_the_limit_and_no_more(before: float, after: float, loss: float | None) -> None:
    row = judged(Wanted(1, "", "f"), told_of(before, after), metrics=(METRIC,), most_loss=0.02)
    assert row.loss == (None if loss is None else pytest.approx(loss))
    assert "north" in row.reason or "overall" in row.reason


# --- both sides ---


@pytest.fixture(autouse=True)
def _finds_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def both(tmp_path: Path, *, int8: Mapping[str, object], weak: bool = True) -> Both:
    told = {"enabled": True, "calibration_dir": calibration(tmp_path / "calibration"), **int8}
    return Both(tmp_path, regions=WORLD, server={"int8": told}, agent={"variant": "int8"} if weak else {})


def rows(world: Both) -> list[store_variants.Row]:
    with world.parts.store.read() as connection:
        release = store_models.newest_release(connection)
        return [] if release is None else store_variants.of_release(connection, release.number)


def run_until_made(world: Both, *, drives: str = "") -> None:
    """Turn until the newest release's variant is judged, and the vehicles drive what they may have."""

    def done() -> bool:
        found = rows(world)
        actives = [vehicle.state.active for vehicle in world.vehicles.values()]
        return bool(found) and all(active is not None and active.variant == drives for active in actives)

    assert sw.pace(done, world.turn, timeout_s=60.0), (
        rows(world),
        [v.state.active for v in world.vehicles.values()],
    )


def test_weak_vehicles_drive_the_variant_and_train_from_float32(tmp_path: Path) -> None:
    world = both(tmp_path, int8={"most_loss": 1.0})
    run_until_made(world, drives="int8")
    (row,) = rows(world)
    for vehicle in world.vehicles.values():
        journal = vehicle.parts.journal
        released = journal.released("active")
        assert released is not None
        assert (released.onnx_sha256, released.variant) == (row.onnx_sha256, "int8")
        base = journal.base
        assert base is not None
        assert base.onnx_sha256 == world.parts.coordinator.model.onnx_sha256
    # and the server tells what it is worth, and keeps its blobs for who comes later
    with world.parts.store.read() as connection:
        told = views.models(connection)[-1]["variants"]
        live = {blob.sha256 for blob in live_blobs(connection)}
    assert [(one["kind"], one["published"], one["size_bytes"]) for one in told] == [
        ("int8", True, row.size_bytes)
    ]
    assert {row.file_sha256, row.canary_sha256} <= live
    world.close()


def test_strong_vehicles_do_not_take_it(tmp_path: Path) -> None:
    world = both(tmp_path, int8={"most_loss": 1.0}, weak=False)
    run_until_made(world, drives="")
    for _ in range(20):
        world.turn()
    (row,) = rows(world)
    assert row.accepted
    assert all(
        v.state.active and v.state.active.onnx_sha256 != row.onnx_sha256 for v in world.vehicles.values()
    )
    world.close()


def lying(world: Both, folder: Path, change: str) -> None:
    """Let the process be followed by some lines of Python that change what it wrote to ``out``."""
    maker = world.parts.variants
    assert maker is not None
    script = folder / "lies.py"
    script.write_text(LIES + change)
    after = maker.command.index("fedfleet.fleet_server.quantize") + 1
    maker.command = (sys.executable, str(script), *maker.command[after:])


LIES = """
import json
import sys
from hashlib import sha256
from pathlib import Path
from fedfleet.fleet_server import quantize
from fedfleet.models import bundle
if quantize.main(sys.argv[1:]):
    sys.exit(1)
out = Path(sys.argv[sys.argv.index("--out") + 1])
"""
WORSE = """
told = json.loads((out / "told.json").read_text())
told["after"]["north"]["distance"][0] = told["before"]["north"]["distance"][0] * 1.2
(out / "told.json").write_text(json.dumps(told))
"""
OTHER_ANSWERS = """
asked = (out / "inputs.bin").read_bytes()
inputs, outputs = bundle.unpack_canary((out / "canary.bin").read_bytes(), asked, limit_bytes=10**6)
(out / "canary.bin").write_bytes(bundle.pack_answers(outputs + 10, inputs_sha256=sha256(asked).hexdigest()))
"""


def test_one_that_loses_too_much_is_told_of_but_not_published(tmp_path: Path) -> None:
    world = both(tmp_path, int8={"most_loss": 0.1})
    lying(world, tmp_path, WORSE)
    run_until_made(world, drives="")
    for _ in range(20):
        world.turn()
    (row,) = rows(world)
    assert not row.accepted
    assert "tolerance 10 %" in row.reason
    with world.parts.store.read() as connection:
        assert not views.models(connection)[-1]["variants"][0]["published"]
        assert not store_variants.published(connection, row.release, "north")
    world.close()


def test_a_process_that_fails_is_told_of_once_and_float32_drives(tmp_path: Path) -> None:
    world = both(tmp_path, int8={})
    assert world.parts.variants is not None
    script = tmp_path / "fails.py"
    script.write_text("import sys\nsys.stderr.write('no such thing\\n')\nsys.exit(3)\n")
    world.parts.variants.command = (sys.executable, str(script))
    run_until_made(world, drives="")
    (row,) = rows(world)
    assert (row.accepted, row.reason) == (False, "not made: no such thing")
    world.close()


def test_a_variant_that_fails_on_the_vehicle_leaves_float32(tmp_path: Path) -> None:
    # given a canary that the file does not answer to
    world = both(tmp_path, int8={"most_loss": 1.0})
    lying(world, tmp_path, OTHER_ANSWERS)
    vehicle = world.vehicles["n-0"]
    assert sw.pace(lambda: vehicle.refusals["canary-mismatch"] > 0, world.turn, timeout_s=60.0)
    for _ in range(20):
        world.turn()
    assert vehicle.state.active is not None
    assert vehicle.state.active.variant == ""
    assert vehicle.state.given_up
    world.close()


def test_a_file_blob_is_what_it_says_or_refused() -> None:
    blob = bundle.pack_file(b"onnx")
    assert bundle.unpack_file(blob, size_bytes=4) == b"onnx"
    for size in (3, 5):
        with pytest.raises(PeerError):
            bundle.unpack_file(blob, size_bytes=size)
    with pytest.raises(PeerError, match="malformed-blob"):
        bundle.unpack_file(bundle.pack_vector(np.zeros(1, np.float32)), size_bytes=5)


def test_a_configuration_without_calibration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"int8.calibration_dir: expected a prepared folder"):
        ServerConfig(
            fleet="f",
            regions=("north",),
            data_dir=tmp_path,
            validation_dir=tmp_path,
            int8={"enabled": True},  # type: ignore[arg-type]
        )
