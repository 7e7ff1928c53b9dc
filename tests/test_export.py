"""Export: canonical files, later versions by patched bytes alone, and the same answers in both runtimes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_task
import torch
from torch import Tensor, nn

from fedfleet.fleet_server import export as exporting
from fedfleet.fleet_server.canonical import canonical, places
from fedfleet.fleet_server.export import Exported, export
from fedfleet.models import layout, scoring, training
from fedfleet.models.layout import patch
from fedfleet.models.motion_forecast import TASK as MOTION
from fedfleet.models.task import Floats, Samples, Task
from fedfleet.protocol.errors import PeerError, UsageError

TINY = tiny_task.TASK


@pytest.fixture(scope="module", params=[MOTION, TINY], ids=["motion_forecast", "tiny"])
def task(request: pytest.FixtureRequest) -> Task:
    return request.param


@pytest.fixture(scope="module")
def exported(task: Task) -> Exported:
    return export(task, seed=5)


def moved(weights: Floats, seed: int = 0) -> Floats:
    return weights + np.random.default_rng(seed).normal(0, 0.03, weights.shape).astype(np.float32)


# --- the file ---


def test_a_patched_file_is_byte_for_byte_the_canonical_export_of_those_weights(
    task: Task, exported: Exported
) -> None:
    # given other weights
    weights = moved(exported.initial)
    model = training.network(task, seed=5).eval()
    training.load_vector(model, weights)
    values = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    # when the network is exported with them
    anew = canonical(exporting.to_onnx(model, task), values)
    # then
    assert patch(exported.onnx, exported.layout, weights) == anew


def test_only_weight_bytes_differ_and_all_of_them_are_zero_in_the_graph(exported: Exported) -> None:
    ones = patch(exported.onnx, exported.layout, np.full(exported.layout.size, np.nan, dtype=np.float32))
    differing = np.frombuffer(ones, "u1") != np.frombuffer(exported.onnx, "u1")
    assert differing.sum() == 2 * exported.layout.size  # NaN is 00 00 c0 7f
    assert not layout.extract(exported.onnx, exported.layout).any()


def test_the_vector_is_in_the_order_of_the_state_dict(task: Task, exported: Exported) -> None:
    model = training.network(task, seed=5)
    assert list(exported.layout.names) == list(model.state_dict())
    np.testing.assert_array_equal(exported.initial, training.vector(model))


def test_the_canonical_file_says_nothing_of_who_made_it(exported: Exported) -> None:
    model = onnx.load_model_from_string(exported.onnx)
    assert (model.producer_name, model.producer_version, len(model.metadata_props)) == ("fedfleet", "", 0)
    assert [each.version for each in model.opset_import if not each.domain] == [20]
    assert len(model.graph.value_info) == 0
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
    names = [tensor.name for tensor in model.graph.initializer]
    assert names == sorted(names)
    assert all(tensor.raw_data for tensor in model.graph.initializer)
    assert set(exported.layout.names) <= set(names)
    assert b"site-packages" not in exported.onnx


def test_places_are_where_the_raw_bytes_are(exported: Exported) -> None:
    file = patch(exported.onnx, exported.layout, moved(exported.initial))
    tensors = {tensor.name: tensor.raw_data for tensor in onnx.load_model_from_string(file).graph.initializer}
    for name, (start, end) in places(file, exported.layout.names).items():
        assert file[start:end] == tensors[name]


def test_the_graph_alone_is_small(exported: Exported) -> None:
    assert len(exported.onnx) - 4 * exported.layout.size < 37_000


def test_another_seed_changes_the_weights_and_not_the_graph(task: Task, exported: Exported) -> None:
    other = export(task, seed=6)
    assert (other.onnx, other.layout) == (exported.onnx, exported.layout)
    assert other.initial.tobytes() != exported.initial.tobytes()


# --- parity ---


@pytest.mark.parametrize("rows", [1, 2, 7, 300])
def test_torch_and_onnx_runtime_agree_on_patched_bytes(task: Task, exported: Exported, rows: int) -> None:
    weights = moved(exported.initial, seed=rows)
    model = training.network(task, seed=0).eval()
    training.load_vector(model, weights)
    shape = (rows, *task.specification.input_shape)
    inputs = np.random.default_rng(rows).normal(0, 2, shape).astype(np.float32)
    session = scoring.new_session(patch(exported.onnx, exported.layout, weights))
    with torch.no_grad():
        wanted = model(torch.from_numpy(inputs)).numpy()
    np.testing.assert_allclose(scoring.infer(session, task, inputs, batch=128), wanted, atol=1e-5, rtol=1e-5)


def test_version_0_of_motion_forecasting_answers_constant_velocity() -> None:
    made = export(MOTION, seed=0)
    inputs = np.random.default_rng(0).normal(0, 10, (50, 20, 2)).astype(np.float32)
    session = scoring.new_session(patch(made.onnx, made.layout, made.initial))
    np.testing.assert_allclose(
        scoring.infer(session, MOTION, inputs), MOTION.baseline(inputs), atol=1e-4, rtol=1e-5
    )


# --- a network that does not match ---


class Wide(tiny_task.TinyTask):
    name = "wide"
    network = "test_export:wide"


class Folded(tiny_task.TinyTask):
    name = "folded"
    network = "test_export:folded"


class Half(tiny_task.TinyTask):
    network = "test_export:half"


def wide() -> nn.Module:
    return nn.Linear(4, 3)


def half() -> nn.Module:
    return nn.Linear(2, 1)


class _Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(4, 1), nn.Linear(4, 1)

    def forward(self, numbers: Tensor) -> Tensor:
        return self.used(numbers)


def folded() -> nn.Module:
    return _Unused()


@pytest.mark.parametrize(
    ("task", "text"),
    [
        (Wide(), r"model does not match task wide: output expected \['N', 1\], got \['N', 3\]"),
        (Half(), r"model does not match task tiny: numbers \['N', 4\]: "),
        (
            Folded(),
            r"the exported graph has no initializer unused\.(bias|weight), which is in the state dict",
        ),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_network_that_does_not_match_its_task_is_refused(task: Task, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        export(task, seed=0)


# --- scoring ---


def test_scores_are_those_of_the_task(task: Task, exported: Exported) -> None:
    chance = np.random.default_rng(1)
    shape = task.specification
    inputs = chance.normal(0, 1, (50, *shape.input_shape)).astype(np.float32)
    targets = chance.normal(0, 1, (50, *shape.output_shape)).astype(np.float32)
    samples = Samples(inputs, targets, np.arange(50) % 2 == 0)
    file = patch(exported.onnx, exported.layout, exported.initial)
    wanted = task.score(scoring.infer(scoring.new_session(file), task, inputs), samples)
    assert scoring.score(file, task, samples, batch=7) == {
        name: (pytest.approx(total, rel=1e-5), 25) for name, (total, _) in wanted.items()
    }


def test_no_rows_give_no_rows() -> None:
    made = export(TINY, seed=0)
    outputs = scoring.infer(scoring.new_session(made.onnx), TINY, np.zeros((0, 4), "f4"))
    assert (outputs.shape, outputs.dtype) == ((0, 1), np.float32)


def test_a_model_of_another_task_is_named() -> None:
    made = export(TINY, seed=0)
    with pytest.raises(PeerError) as error:
        scoring.check(scoring.new_session(made.onnx), MOTION)
    assert str(error.value) == (
        "model-mismatch: model does not match task motion_forecast: "
        "input expected history float[N, 20, 2], got numbers float[batch, 4]"
    )


@pytest.mark.parametrize("data", [b"", b"not a model", b"\x08\x0a"])
def test_what_is_no_model_is_refused(data: bytes) -> None:
    with pytest.raises(PeerError, match="unloadable-model"):
        scoring.new_session(data)


# --- the command ---


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fedfleet.fleet_server.export", *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={"PYTHONPATH": str(Path(tiny_task.__file__).parent)},
    )


def test_the_command_writes_three_files_and_tells_one_line(tmp_path: Path) -> None:
    done = run("--task", "tiny_task:TASK", "--seed", 5, "--out", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    wanted = export(TINY, seed=5)
    assert (told["task"], told["parameters"]) == ("tiny", 49)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "graph.onnx",
        "layout.json",
        "initial.npy",
    }
    assert (tmp_path / "out" / "graph.onnx").read_bytes() == wanted.onnx
    assert layout.read((tmp_path / "out" / "layout.json").read_bytes()) == wanted.layout
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "initial.npy"), wanted.initial)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--task", "steering", "--out", "x"), "export: unknown task 'steering'"),
        (("--task", "motion_forecast", "--out", "/proc/nowhere"), "export: [Errno"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(arguments: tuple[str, ...], text: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(text)
