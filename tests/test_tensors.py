"""What training changes is sent, or refused when the first model is exported, by the name of the tensor."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_task
import torch
from torch import Tensor, nn

from fedfleet.codec.delta import Delta
from fedfleet.codec.parts import Parts
from fedfleet.codec.payload import check, decode, encode
from fedfleet.codec.settings import Settings
from fedfleet.fleet_server import export as exporting
from fedfleet.fleet_server import rules, strategies
from fedfleet.fleet_server.export import Exported, export
from fedfleet.fleet_server.fold import fold_key
from fedfleet.fleet_server.initial import prepare_export
from fedfleet.fleet_server.outliers import suspects
from fedfleet.models import layout, scoring, training
from fedfleet.models.correction import Control
from fedfleet.models.layout import Layout, patch
from fedfleet.models.settings import TrainSettings
from fedfleet.models.task import Samples, Task
from fedfleet.models.tensors import second_names
from fedfleet.models.training import fine_tune
from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.ids import UpdateId

HERE = "test_tensors"


def task(network: str, **more: object) -> Task:
    """The tiny task with another network."""
    made = type("Made", (tiny_task.TinyTask,), {"network": f"{HERE}:{network}", **more})
    return made()  # type: ignore[no-any-return]


def samples(count: int = 64, seed: int = 3) -> Samples:
    inputs = np.random.default_rng(seed).normal(0, 1, (count, 4)).astype(np.float32)
    return Samples(inputs, inputs[:, :1] * 2, np.ones(count, dtype=np.bool_))


class Plain(nn.Module):
    """Two layers; `between` is what a test puts there."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(4, 6), nn.Linear(6, 1)

    def between(self, inner: Tensor) -> Tensor:
        return torch.tanh(inner)

    def forward(self, numbers: Tensor) -> Tensor:
        return self.leave(self.between(self.enter(numbers)))


# --- other types than float32 ---


class _Other(Plain):
    kind = torch.float64

    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.Linear(6, 6).to(self.kind)

    def between(self, inner: Tensor) -> Tensor:
        return torch.tanh(self.middle(inner.to(self.kind)).float())


class Double(_Other):
    pass


class Half(_Other):
    kind = torch.float16


class Brain(_Other):
    kind = torch.bfloat16


class Imaginary(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Parameter(torch.ones(6, dtype=torch.complex64))

    def between(self, inner: Tensor) -> Tensor:
        return (inner * self.turn).real


@pytest.mark.parametrize(
    ("network", "tensor"),
    [
        ("Double", "middle.weight is float64"),
        ("Half", "middle.weight is float16"),
        ("Brain", "middle.weight is bfloat16"),
        ("Imaginary", "turn is complex64"),
    ],
)
def test_a_parameter_that_would_not_be_sent_is_refused_by_name_and_type(network: str, tensor: str) -> None:
    with pytest.raises(UsageError, match=f"tensor {tensor}, expected float32"):
        export(task(network), seed=0)
    # and a vehicle does not train it either
    with pytest.raises(UsageError, match=f"tensor {tensor}, expected float32"):
        fine_tune(task(network), np.zeros(37, np.float32), samples(), TrainSettings(), seed=0)


class DoubleNorm(Plain):
    """A batch norm whose statistics are float64: buffers, not parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6, affine=False).to(torch.float64)

    def between(self, inner: Tensor) -> Tensor:
        return self.norm(inner.double()).float()


class Kept(Plain):
    """A running mean of its own that is not in the state dict."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(6), persistent=False)

    def between(self, inner: Tensor) -> Tensor:
        if self.training:
            self.mean += 0.1 * (inner.detach().mean(0) - self.mean)
        return inner - self.mean


class Secret(Plain):
    """The same, but not even a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = [torch.zeros(6)]

    def between(self, inner: Tensor) -> Tensor:
        if self.training:
            self.hidden[0] = self.hidden[0] + 0.1 * (inner.detach().mean(0) - self.hidden[0]) + 1
        return inner - self.hidden[0]


class Chance(Plain):
    """Random features that every vehicle would draw anew."""

    features: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("features", torch.randn(6, 6), persistent=False)

    def between(self, inner: Tensor) -> Tensor:
        return torch.tanh(inner @ self.features)


class ChanceOrder(Plain):
    """A random order, in the state dict, but of whole numbers."""

    order: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.randperm(6))

    def between(self, inner: Tensor) -> Tensor:
        return torch.tanh(inner[:, self.order] + torch.arange(6))


class Steps(Plain):
    """Counts its batches, and learns less from them."""

    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def between(self, inner: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
        return torch.tanh(inner)


class Late(Plain):
    """A layer that is made when it is first needed."""

    def between(self, inner: Tensor) -> Tensor:
        if not hasattr(self, "late"):
            self.late = nn.Linear(6, 6)
        return self.late(inner)


class Shares(Plain):
    """Two parameters over the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)
        self.two.weight = nn.Parameter(self.one.weight.data.T)

    def between(self, inner: Tensor) -> Tensor:
        return self.two(self.one(inner))


class Unsaid(Plain):
    """A parameter that the state dict leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6))

    def between(self, inner: Tensor) -> Tensor:
        return inner * self.scale

    def state_dict(self, *given: Any, **named: Any) -> Any:
        found = super().state_dict(*given, **named)
        found.pop("scale", None)
        return found


@pytest.mark.parametrize(
    ("network", "text"),
    [
        ("DoubleNorm", "tensor norm.running_mean is float64, expected float32: it changes in training"),
        ("Kept", "buffer mean changes in training, but is not in the state dict"),
        ("Secret", "something changes in training that is no parameter or buffer"),
        ("Chance", "buffer features is drawn by chance, but is not in the state dict"),
        ("ChanceOrder", "tensor order is int64, expected float32: it is drawn by chance"),
        ("Steps", "tensor steps is int64, expected float32: it changes in training"),
        ("Late", r"tensor late\.(weight|bias) comes into being in the first forward pass"),
        ("Shares", "one.weight and two.weight share their memory without being one tensor"),
        ("Unsaid", "tensor scale learns, but is not in the state dict"),
    ],
)
def test_what_training_changes_or_chance_draws_outside_of_the_vector_is_refused(
    network: str, text: str
) -> None:
    with pytest.raises(UsageError, match=text):
        export(task(network), seed=0)


def test_a_task_may_say_that_a_tensor_is_not_sent() -> None:
    made = export(task("Steps", tensors={"steps": "exclude"}), seed=0)
    assert "steps" not in made.layout.names
    assert made.layout.rules == ()


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.all = nn.Sequential(nn.LazyLinear(6), nn.LazyBatchNorm1d(), nn.Tanh(), nn.LazyLinear(1))

    def forward(self, numbers: Tensor) -> Tensor:
        return self.all(numbers)


def test_lazy_layers_are_made_before_anything_is_counted() -> None:
    made = export(task("Lazy"), seed=2)
    assert made.layout.names[:2] == ("all.0.weight", "all.0.bias")
    assert made.layout.size == 6 * 4 + 6 + 4 * 6 + 6 + 1
    trained = fine_tune(task("Lazy"), made.initial, samples(), TrainSettings(), seed=5)
    assert trained.loss_after < trained.loss_before
    np.testing.assert_array_equal(made.initial, export(task("Lazy"), seed=2).initial)


class Constants(Plain):
    """Constants of every type, an empty buffer, state that is no tensor: nothing of it changes."""

    share: Tensor
    whole: Tensor
    none: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("share", torch.full((6,), 0.5, dtype=torch.bfloat16))
        self.register_buffer("whole", torch.arange(6))
        self.register_buffer("none", torch.empty(0))

    def between(self, inner: Tensor) -> Tensor:
        return inner * self.share.float() + self.whole

    def get_extra_state(self) -> Mapping[str, str]:
        return {"made": "by hand"}

    def set_extra_state(self, state: object) -> None:
        del state


def test_constants_of_any_type_are_part_of_the_graph_and_of_a_checkpoint() -> None:
    made = export(task("Constants"), seed=0)
    assert made.layout.names == ("enter.weight", "enter.bias", "leave.weight", "leave.bias")
    tuning, again = (
        training.FineTuning(task("Constants"), made.initial, samples(), TrainSettings(), seed=1)
        for _ in range(2)
    )
    tuning.advance()
    again.restore(tuning.snapshot())
    for one in (tuning, again):
        while one.advance():
            pass
    assert tuning.result().delta.tobytes() == again.result().delta.tobytes()


# --- tied weights ---


class Tied(nn.Module):
    """Two layers share one matrix, as an embedding and its decoder do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.leave = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1)
        self.second.weight = self.first.weight

    def forward(self, numbers: Tensor) -> Tensor:
        return self.leave(torch.tanh(self.second(torch.tanh(self.first(numbers)))))


@pytest.fixture(scope="module")
def tied() -> Exported:
    return export(task("Tied"), seed=4)


def test_tied_weights_are_one_tensor_under_the_first_of_their_names(tied: Exported) -> None:
    assert tied.layout.names == ("first.weight", "first.bias", "second.bias", "leave.weight", "leave.bias")
    model = training.network(task("Tied"), seed=4)
    assert second_names(model) == {"second.weight": "first.weight"}
    assert tied.initial.size == 16 + 4 + 4 + 4 + 1


def test_tied_weights_move_together_in_the_file_and_in_training(tied: Exported) -> None:
    # given a training of the one matrix
    trained = fine_tune(task("Tied"), tied.initial, samples(), TrainSettings(learning_rate=0.1), seed=1)
    assert trained.loss_after < trained.loss_before
    weights = tied.initial + trained.delta
    # then the file answers as the network does
    model = training.network(task("Tied"), seed=0).eval()
    training.load_vector(model, weights)
    inputs = samples(40, seed=9).inputs
    with torch.no_grad():
        wanted = model(torch.from_numpy(inputs)).numpy()
    file = patch(tied.onnx, tied.layout, weights)
    answers = scoring.infer(scoring.new_session(file), task("Tied"), inputs)
    np.testing.assert_allclose(answers, wanted, atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(layout.extract(file, tied.layout), weights)


def test_tied_weights_have_one_control_variate(tied: Exported) -> None:
    settings = TrainSettings(momentum=0.0, correction="scaffold", trainable="all")
    zeros = np.zeros_like(tied.initial)
    trained = fine_tune(
        task("Tied"), tied.initial, samples(), settings, seed=1, control=Control(zeros, zeros)
    )
    assert trained.control is not None
    assert trained.control.shape == tied.initial.shape


@pytest.mark.parametrize("more", [{"tensors": {"second.*": "dense"}}, {"head": ("second.weight",)}])
def test_a_rule_for_the_second_name_is_refused_in_words(more: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"first\.weight and second\.weight are one tensor, which is called"):
        export(task("Tied", **more), seed=0)


# --- statistics ---


class Norm(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)

    def between(self, inner: Tensor) -> Tensor:
        return torch.tanh(self.norm(inner))


class OwnNorm(Plain):
    """A norm of the user's own, in the state dict."""

    centre: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(6))

    def between(self, inner: Tensor) -> Tensor:
        if self.training:
            self.centre += 0.5 * (inner.detach().mean(0) - self.centre)
        return torch.tanh(inner - self.centre)


class Wide(nn.Module):
    """More statistics than a part has that is always sent in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm, self.leave = nn.Linear(4, 300), nn.BatchNorm1d(300), nn.Linear(300, 1)

    def forward(self, numbers: Tensor) -> Tensor:
        return self.leave(torch.tanh(self.norm(self.enter(numbers))))


@pytest.mark.parametrize(
    ("network", "names"),
    [("Norm", ("norm.running_mean", "norm.running_var")), ("OwnNorm", ("centre",)), ("Plain", ())],
)
def test_running_statistics_are_recognised_and_sent_whole(network: str, names: tuple[str, ...]) -> None:
    made = export(task(network), seed=0).layout
    assert made.statistics == names
    told = dict(zip(made.names, made.rules or ("body:sparse",) * len(made.names), strict=True))
    assert {name for name, rule in told.items() if rule == "body:dense"} == set(names)
    assert layout.read(made.to_json()) == made


def test_a_task_may_say_otherwise_of_statistics() -> None:
    made = export(task("Norm", tensors={"norm.running_*": "exclude"}), seed=0).layout
    assert dict(zip(made.names, made.rules, strict=True))["norm.running_var"] == "body:exclude"


def round_trip(made: Layout, change: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    parts: Parts = made.parts
    payload = encode(change.astype(np.float32), Settings(density=0.02), steps=1, examples=1, parts=parts)
    return decode(payload, size=made.size, parts=parts).delta.dense()


def test_statistics_travel_exactly_however_many_they_are() -> None:
    made = export(task("Wide"), seed=0).layout
    change = np.random.default_rng(1).normal(0, 1, made.size)
    change[made.is_averaged] *= np.logspace(-4, 4, int(made.is_averaged.sum()))
    got = round_trip(made, change)
    np.testing.assert_array_equal(got[made.is_averaged], change[made.is_averaged].astype(np.float32))
    assert (got[~made.is_averaged] != 0).mean() < 0.03


def test_the_server_takes_the_mean_of_statistics_whatever_its_optimizer() -> None:
    places = np.array([False, True, False])
    for name in ("fedavg", "fedavgm", "fedadam"):
        plain = {
            "fedavg": strategies.fedavg(2.0),
            "fedavgm": strategies.fedavg(2.0, 0.9),
            "fedadam": strategies.scaled(strategies.fedavg(3.0), 0.1),
        }[name]
        step = np.array([1.0, -0.7, 2.0])
        state, update = strategies.averaging(plain, places).apply(plain.init(3), step)
        _, usual = plain.apply(plain.init(3), step)
        assert update[1] == -0.7
        np.testing.assert_array_equal(update[~places], usual[~places])
        assert sorted(state) == sorted(plain.init(3))


# --- how long an update is, beside its statistics ---


def big_statistics(made: Layout, *, weights: float, statistics: float) -> np.ndarray[Any, Any]:
    """An update whose weights and whose statistics move by so much each."""
    return np.where(made.is_averaged, statistics, weights).astype(np.float32)


def test_statistics_in_the_data_s_unit_do_not_make_an_update_long() -> None:
    # given a norm on raw measurements: variances of a million, weights that move by a thousandth
    made = export(task("Norm"), seed=0).layout
    change = big_statistics(made, weights=1e-3, statistics=1e6)
    payload = encode(change, Settings(density=1.0), steps=1, examples=1, parts=made.parts)
    found = check(payload, size=made.size, parts=made.parts).delta
    np.testing.assert_array_equal(found.measured, change[made.is_averaged])
    np.testing.assert_allclose(found.learned, change[~made.is_averaged], rtol=1e-6)
    assert len(found.values) == made.size
    np.testing.assert_array_equal(made.parts.is_measured, made.is_averaged)
    # and one without statistics is learned as a whole
    plain = export(task("Plain"), seed=0).layout
    payload = encode(np.ones(plain.size, np.float32), Settings(), steps=1, examples=1, parts=plain.parts)
    found = check(payload, size=plain.size, parts=plain.parts).delta
    assert found.learned is found.values
    assert found.measured.size == 0
    assert plain.parts.is_measured is None


def test_a_hostile_update_cannot_hide_behind_statistics_nor_in_them() -> None:
    # given five honest vehicles, one with long weights, one with long statistics
    made = export(task("Norm"), seed=0).layout
    honest = big_statistics(made, weights=1e-3, statistics=1e6)
    loud = big_statistics(made, weights=10.0, statistics=1e6)
    absurd = big_statistics(made, weights=1e-3, statistics=1e12)
    ids = sorted((UpdateId(f"v{number}", 1, 1) for number in range(7)), key=fold_key)
    changes = [*[honest] * 5, loud, absurd]
    updates = [(id_, Delta(made.size, None, change), 1.0) for id_, change in zip(ids, changes, strict=True)]
    # when
    mean = rules.norm_clip(factor=1.5, measured=made.is_averaged).fold(updates, made.size).mean
    # then neither moves the mean by more than an honest one could
    assert np.abs(mean[~made.is_averaged]).max() < 1.5e-3
    assert np.abs(mean[made.is_averaged]).max() < 1.5e6
    found = suspects(updates, size=made.size, region="r", measured=made.is_averaged)
    assert [one.is_long for one in found] == [*[False] * 5, True, True]


# --- the exporter's words ---


class Branches(Plain):
    """Python that looks at values: torch cannot export it."""

    def between(self, inner: Tensor) -> Tensor:
        return torch.tanh(inner) if float(inner.sum()) > 0 else inner


BRANCHES = task("Branches")


@pytest.mark.filterwarnings("ignore:Converting a tensor")
def test_what_torch_cannot_export_ends_in_one_line_whatever_torch_says_before(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = exporting.main(["--task", f"{HERE}:BRANCHES", "--out", str(tmp_path / "out")])
    said = capfd.readouterr().err.splitlines()
    assert code == 2
    assert said[-1].startswith("export: network of tiny: torch cannot export it to ONNX: ")


def test_of_a_failed_export_its_own_line_is_told(tmp_path: Path) -> None:
    script = (
        "import sys; sys.stderr.write('noise\\nexport: tensor a is float64\\nmore noise\\n'); sys.exit(2)"
    )
    with pytest.raises(UsageError) as error:
        prepare_export(tmp_path / "export", [sys.executable, "-c", script], out=tmp_path / "fresh")
    assert str(error.value) == "the first model could not be exported: tensor a is float64"
