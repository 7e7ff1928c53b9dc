"""Model files that name other files, and what is no model: refused on the wire, read with care from a folder."""

import random
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_task
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import convert_model_to_external_data, set_external_data

from fedfleet.cli.main import main
from fedfleet.cli.replay_run import load_model
from fedfleet.fleet_server.export import Exported, export
from fedfleet.models import scoring
from fedfleet.models.layout import patch
from fedfleet.models.onnx_file import inlined, outside, read_model, refuse_outside
from fedfleet.protocol.errors import PeerError, UsageError
from fedfleet.vehicle_agent.swap import Sessions

TASK = tiny_task.TASK
INPUTS = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def exported() -> Exported:
    return export(TASK, seed=1)


@pytest.fixture(scope="module")
def file(exported: Exported) -> bytes:
    return patch(exported.onnx, exported.layout, exported.initial)


def split(file: bytes, folder: Path, *, location: str = "model.onnx.data") -> Path:
    """The model and its weights as two files, as torch's exporter writes them."""
    model = onnx.load_model_from_string(file)
    convert_model_to_external_data(model, location=location, size_threshold=0)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def named(location: str) -> bytes:
    """A model whose one weight lies in the file of that name."""
    weight = numpy_helper.from_array(np.ones((1, 4), np.float32), "weight")
    set_external_data(weight, location, offset=0, length=16)
    weight.ClearField("raw_data")
    return with_weight(weight)


def with_weight(weight: Any) -> bytes:
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["numbers", "weight"], ["number"], transB=1)],
        "g",
        [helper.make_tensor_value_info("numbers", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("number", TensorProto.FLOAT, ["N", 1])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return bytes(model.SerializeToString())


# --- from the wire ---


@pytest.mark.parametrize(
    "location",
    [
        "weights.bin",
        "./weights.bin",
        "../weights.bin",
        "/etc/hostname",
        "",
        "*/_ORT_MEM_ADDR_/*",
        "a\x1b[2J/b",
    ],
)
def test_a_model_that_names_another_file_is_refused_before_a_session_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str
) -> None:
    # given a file of that name in the current folder, which ONNX Runtime would read
    (tmp_path / "weights.bin").write_bytes(np.full(4, 7, np.float32).tobytes())
    monkeypatch.chdir(tmp_path)
    model = named(location)
    # when agent and server get it
    for load in (scoring.new_session, lambda data: Sessions(TASK).load(data, sha256(data).hexdigest())):
        with pytest.raises(PeerError) as caught:
            load(model)
        # then
        assert caught.value.reason == "external-data"
        assert caught.value.detail.isprintable()
        assert "a model must be one file" in caught.value.detail


def hidden_in_a_branch() -> bytes:
    """An If whose branches have a constant outside."""
    value = numpy_helper.from_array(np.ones((1, 1), np.float32), "c")
    set_external_data(value, "weights.bin")
    value.ClearField("raw_data")
    out = helper.make_tensor_value_info("c_out", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Constant", [], ["c_out"], value=value)], "b", [], [out])
    deeper = helper.make_graph(
        [helper.make_node("If", ["yes"], ["c_out"], then_branch=branch, else_branch=branch)], "d", [], [out]
    )
    yes = numpy_helper.from_array(np.array(True), "yes")
    graph = helper.make_graph(
        [helper.make_node("If", ["yes"], ["number"], then_branch=deeper, else_branch=deeper)],
        "g",
        [helper.make_tensor_value_info("numbers", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("number", TensorProto.FLOAT, None)],
        [yes],
    )
    return bytes(helper.make_model(graph).SerializeToString())


def hidden_in_a_function() -> bytes:
    value = numpy_helper.from_array(np.ones(3, np.float32), "c")
    set_external_data(value, "weights.bin")
    model = onnx.load_model_from_string(
        with_weight(numpy_helper.from_array(np.ones((1, 4), np.float32), "weight"))
    )
    body = [helper.make_node("Constant", [], ["y"], value=value)]
    model.functions.append(helper.make_function("own", "f", [], ["y"], body, [helper.make_opsetid("", 20)]))
    return bytes(model.SerializeToString())


def hidden_in_a_sparse_tensor() -> bytes:
    values = numpy_helper.from_array(np.ones(1, np.float32), "s")
    set_external_data(values, "weights.bin")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "i")
    model = onnx.load_model_from_string(
        with_weight(numpy_helper.from_array(np.ones((1, 4), np.float32), "weight"))
    )
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    return bytes(model.SerializeToString())


def said_twice() -> bytes:
    """A harmless graph, then, merged with it by every parser, one that names a file."""
    return with_weight(numpy_helper.from_array(np.ones((1, 4), np.float32), "weight")) + named("weights.bin")


@pytest.mark.parametrize(
    "make",
    [hidden_in_a_branch, hidden_in_a_function, hidden_in_a_sparse_tensor, said_twice],
    ids=lambda f: f.__name__,
)
def test_it_is_found_wherever_it_hides(make: Callable[[], bytes]) -> None:
    with pytest.raises(PeerError, match=r"external-data: \d+ of its tensors lie in weights.bin"):
        scoring.new_session(make())


def test_what_is_whole_is_as_before(file: bytes) -> None:
    assert outside(file) == []
    refuse_outside(file)
    assert scoring.infer(scoring.new_session(file), TASK, INPUTS).shape == (5, 1)


def test_any_bytes_are_read_or_refused(file: bytes) -> None:
    chance, reasons = random.Random(1), set()
    for _ in range(3000):
        data = bytearray(file)
        for _ in range(chance.randrange(1, 8)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        some = bytes(data[: chance.randrange(len(data))] if chance.random() < 0.3 else data)
        with suppress(PeerError):
            refuse_outside(some)
            reasons.add("taken")
    assert reasons == {"taken"}
    # and graphs in graphs without end are not followed
    graph = b""
    for _ in range(30):
        for key in (b"\x32", b"\x2a", b"\x0a"):  # graph of an attribute of a node of a graph
            graph = key + bytes([0x80 | len(graph) & 0x7F, len(graph) >> 7]) + graph
    with pytest.raises(PeerError, match="more than 64 deep"):
        refuse_outside(b"\x3a" + bytes([0x80 | len(graph) & 0x7F, len(graph) >> 7]) + graph)


# --- from a folder ---


def test_weights_beside_the_file_are_read_with_it(
    file: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a model as torch's exporter writes it, and another current folder
    path = split(file, tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    # when
    whole = read_model(path, option="--model")
    # then it is what onnx makes of both, and answers as the one file does
    wanted = onnx.load(path)
    for tensor in wanted.graph.initializer:
        tensor.ClearField("data_location")
    assert onnx.load_model_from_string(whole) == wanted
    assert outside(whole) == []
    answers = [scoring.infer(scoring.new_session(one), TASK, INPUTS) for one in (whole, file)]
    np.testing.assert_array_equal(*answers)
    assert load_model(path, TASK).sha256 == sha256(whole).hexdigest()


def test_the_exporter_of_torch_itself(tmp_path: Path) -> None:
    # given what torch.onnx.export writes by default
    network = tiny_task.network().eval()
    torch.onnx.export(
        network,
        (torch.zeros(2, 4),),
        tmp_path / "model.onnx",
        input_names=["numbers"],
        output_names=["number"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        external_data=True,
        verbose=False,
    )
    assert (tmp_path / "model.onnx.data").exists()
    # then it drives, and answers as torch does
    model = load_model(tmp_path / "model.onnx", TASK)
    with torch.no_grad():
        wanted = network(torch.from_numpy(INPUTS)).numpy()
    np.testing.assert_allclose(model.run(INPUTS), wanted, atol=1e-5)


def missing(path: Path) -> None:
    (path.parent / "model.onnx.data").unlink()


def cut(path: Path) -> None:
    data = (path.parent / "model.onnx.data").read_bytes()
    (path.parent / "model.onnx.data").write_bytes(data[:-9])


def linked(path: Path) -> None:
    (path.parent / "away").mkdir()
    shutil.move(path.parent / "model.onnx.data", path.parent / "away" / "data")
    (path.parent / "model.onnx.data").symlink_to(path.parent / "away" / "data")


def a_folder(path: Path) -> None:
    missing(path)
    (path.parent / "model.onnx.data").mkdir()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            missing,
            "its weights are in model.onnx.data, which is not there: put it beside, or save it as one file",
        ),
        (cut, "the two files do not belong together"),
        (linked, "its weights are in model.onnx.data, which is not there"),
        (a_folder, "its weights are in model.onnx.data, which is not there"),
    ],
)
def test_weights_that_cannot_be_had_are_one_line(
    file: bytes, tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    path = split(file, tmp_path)
    damage(path)
    with pytest.raises(UsageError) as caught:
        load_model(path, TASK)
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"--model {path}: ")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "location", ["../weights.bin", "/etc/hostname", "sub/weights.bin", "..", "", "a\x1b[2J"]
)
def test_other_folders_are_never_read(tmp_path: Path, location: str) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(16))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "weights.bin").write_bytes(bytes(16))
    (tmp_path / "sub" / "model.onnx").write_bytes(named(location))
    for path in (tmp_path / "sub" / "model.onnx", tmp_path / "model.onnx"):
        shutil.copy(tmp_path / "sub" / "model.onnx", path) if not path.exists() else None
        with pytest.raises(UsageError, match="save it as one file") as caught:
            read_model(path, option="--model")
        assert str(caught.value).isprintable()


# --- what is no model, or none that can be loaded ---


def pickled(path: Path, file: bytes) -> None:
    del file
    torch.save(tiny_task.network().state_dict(), path)


def old_pickled(path: Path, file: bytes) -> None:
    del file
    torch.save({"w": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)


def newer_opset(path: Path, file: bytes) -> None:
    model = onnx.load_model_from_string(file)
    model.opset_import[0].version = 99
    path.write_bytes(model.SerializeToString())


def newer_ir(path: Path, file: bytes) -> None:
    model = onnx.load_model_from_string(file)
    model.ir_version = 99
    path.write_bytes(model.SerializeToString())


def integers(path: Path, file: bytes) -> None:
    graph = helper.make_graph(
        [helper.make_node("Cast", ["numbers"], ["number"], to=TensorProto.FLOAT)],
        "g",
        [helper.make_tensor_value_info("numbers", TensorProto.INT64, ["N", 4])],
        [helper.make_tensor_value_info("number", TensorProto.FLOAT, ["N", 4])],
    )
    del file
    path.write_bytes(helper.make_model(graph, ir_version=9).SerializeToString())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (pickled, "export it with torch.onnx.export"),
        (old_pickled, "a pickled object, which is never read: export it with torch.onnx.export"),
        (newer_opset, "opset 99 is newer than ONNX Runtime"),
        (newer_ir, "IR version 99 is newer than ONNX Runtime"),
        (integers, "input expected numbers float[N, 4], got numbers int64[N, 4]"),
        (lambda path, _: path.write_bytes(b""), "an empty file"),
        (lambda path, file: path.write_bytes(file[:400]), "no ONNX file"),
        (lambda path, _: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
        (lambda path, _: path.write_bytes(b"<!DOCTYPE html><html>"), "the download failed"),
        (lambda path, _: path.write_bytes(b"\x08\0\0\0\0\0\0\0" + b'{"a":{}}'), "a file of safetensors"),
    ],
)
def test_what_cannot_be_loaded_is_one_line_that_says_what_it_is(
    file: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    make: Callable[[Path, bytes], object],
    words: str,
) -> None:
    # given such a file, named as a model, and a recording
    tiny_task.generate(tmp_path / "recordings", regions=("east",), drives=1)
    make(tmp_path / "model.onnx", file)
    monkeypatch.chdir(tmp_path)
    call = "replay --task tiny_task:TASK --scenarios recordings --model model.onnx --speed max --no-report"
    monkeypatch.setattr(sys, "argv", ["fedfleet", *call.split()])
    # when
    with pytest.raises(SystemExit) as ended:
        main()
    # then
    said = capfd.readouterr().err.strip()
    assert ended.value.code == 2
    assert words in said
    assert said.startswith("fedfleet: --model model.onnx: ")
    assert len(said.splitlines()) == 1


def test_inlining_what_is_whole_changes_nothing_that_onnx_sees(file: bytes) -> None:
    def never(_: object) -> bytes:
        raise AssertionError

    assert onnx.load_model_from_string(inlined(file, never)) == onnx.load_model_from_string(file)
