"""Mistakes of plug-in tasks are found when the task is loaded, or when it has read, each in one clear line."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tiny_task
from tiny_task import TinyTask

from fedfleet.models import task as tasks
from fedfleet.models import task_check
from fedfleet.models.task import Drive, Frames, Index, Metric, Samples, Specification
from fedfleet.protocol.errors import UsageError

MODULE = "a_plugin_of_the_tests"


@pytest.fixture
def plugin() -> Iterator[ModuleType]:
    """An installed module of a plug-in."""
    module = ModuleType(MODULE)
    sys.modules[MODULE] = module
    yield module
    del sys.modules[MODULE]


def refused(plugin: ModuleType, task: Any) -> str:
    plugin.TASK = task  # type: ignore[attr-defined]
    with pytest.raises(UsageError) as caught:
        tasks.load(f"{MODULE}:TASK")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def changed(**attributes: Any) -> Any:
    """A sound task but for these attributes."""
    return type("Changed", (TinyTask,), attributes)()


def returning(value: Any) -> Any:
    return lambda *_: value


def nothing_judged(_self: Any, outputs: Any, samples: Any) -> dict[str, tuple[float, int]]:
    off = np.abs(outputs - samples.targets)[samples.judged]
    return {"mae": (float(off.sum()) / len(off), len(off)), "close": (0.0, len(off))}


MAE = Metric("mae", "u", "lower")


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        # declared
        ({"name": "my task"}, "name: task id 'my task': expected 1 to 36 of a-z, 0-9 and '-'"),
        ({"name": "Tiny"}, "name: task id 'Tiny'"),
        ({"name": 7}, "name: expected a text, got 7"),
        ({"version": "1"}, "version: expected a whole number, got '1'"),
        ({"specification": ("x", (4,))}, "specification: expected a Specification, got tuple"),
        (
            {"specification": Specification("a b", (4,), "number", (1,))},
            "input_name: expected a name without blanks",
        ),
        (
            {"specification": Specification("x", (4, 0), "y", (1,))},
            "input_shape: expected a tuple of sizes above 0",
        ),
        ({"specification": Specification("x", 4, "y", (1,))}, "input_shape: expected a tuple of sizes"),  # type: ignore[arg-type]
        ({"specification": Specification("x", (4,), "x", (1,))}, "input and output have one name"),
        ({"metrics": ()}, "metrics: expected a tuple of Metric"),
        ({"metrics": ("mae",)}, "metrics: expected a tuple of Metric, got a str in it"),
        ({"metrics": (Metric(" mae", "u", "lower"),)}, "without blanks around it, got ' mae'"),
        ({"metrics": (Metric("m" * 41, "u", "lower"),)}, "41 characters, expected at most 40"),
        ({"metrics": (Metric("mae", "u", "less"),)}, "better: expected 'lower' or 'higher', got 'less'"),  # type: ignore[arg-type]
        ({"metrics": (MAE, MAE)}, "metrics: mae is there twice"),
        ({"metrics": (Metric("r", "u", "lower", of=lambda m: m["mae"]),)}, "the first, r, decides"),
        ({"network": "tiny_task.network"}, "network: expected 'module:function', got 'tiny_task.network'"),
        ({"loss": staticmethod(tiny_task.loss)}, "loss: expected 'module:function', got <function loss"),
        ({"plot": "draw me"}, "plot: expected 'module:function'"),
        ({"score": 3}, "score: expected a method, got int"),
        ({"head": "layer*"}, "head: expected a tuple of patterns of tensor names, got 'layer*'"),
        ({"tensors": {"*.bias": "thick"}}, "tensors: expected sparse, dense, exclude, got 'thick'"),
        ({"slices": {"speed": "fast"}}, "slices: expected a mapping of names to functions"),
        ({"suits": {"serve": {}}}, "suits: serve: expected 'server', 'compare' or 'demo'"),
        ({"suits": {"demo": 3}}, "suits: expected mappings"),
        ({"int8_loss": -1}, "int8_loss: expected a share of 0 or more"),
        ({"noun": 3}, "noun: expected a text"),
        ({"differ": "yes"}, "differ: expected a function"),
        # tried
        ({"baseline": returning(None)}, "baseline returns nothing"),
        ({"baseline": returning([0.0])}, "baseline: expected an array f32[4, 1], got list"),
        (
            {"baseline": lambda _, x: np.zeros(len(x), np.float32)},
            "baseline: expected f32[4, 1], got float32[4]",
        ),
        (
            {"baseline": lambda _, x: np.zeros((len(x), 1), int)},
            "baseline: expected f32[4, 1], got int64[4, 1]",
        ),
        (
            {"baseline": lambda _, x: np.full((len(x), 1), np.nan)},
            "baseline: its answer to finite inputs is not finite",
        ),
        ({"baseline": lambda _, x: x[:, 9]}, "baseline fails on 4 made-up samples: IndexError"),
        ({"baseline": lambda _: 3}, "baseline fails on 4 made-up samples: TypeError"),
        ({"score": returning({"mae": (1.0, 4)})}, "score: no sum of the metric close: it has mae"),
        (
            {"score_all": returning({"MAE": (1.0, 4), "close": (1.0, 4)})},
            "score_all: no sum of the metric mae: it has MAE, close",
        ),
        (
            {"score": returning({"mae": 1.0, "close": 2.0})},
            "score: 'mae': expected (sum, number of samples), got 1.0",
        ),
        (
            {"score": returning({"mae": (1.0, 0.5), "close": (1.0, 4)})},
            "'mae': expected (sum, number of samples)",
        ),
        ({"score": returning([1.0])}, "score: expected a mapping of names to (sum, number), got list"),
        (
            {"score": nothing_judged},
            "score of samples of which none is judged fails on 4 made-up samples: ZeroDivisionError",
        ),
        (
            {"metrics": (MAE, Metric("rmse", "u", "lower", of=lambda m: m["mse"]))},
            "metric rmse of score fails on 4 made-up samples: KeyError: 'mse'",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_is_found_when_the_task_is_loaded(
    plugin: ModuleType, attributes: dict[str, Any], words: str
) -> None:
    line = refused(plugin, changed(**attributes))
    assert line.startswith(f"{MODULE}:TASK is not a usable task: ")
    assert words in line


def test_all_mistakes_are_told_at_once(plugin: ModuleType) -> None:
    line = refused(plugin, changed(name="my task", version=None, network="x"))
    assert line.count("; ") == 2


def test_a_class_and_what_is_no_task_are_told(plugin: ModuleType) -> None:
    assert "is a class, expected an instance of it: TASK = TinyTask()" in refused(plugin, TinyTask)
    assert "is not a task: it has no name, version" in refused(plugin, object())


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def broken(:\n", "SyntaxError"),
        ("undefined_name\n", "NameError: name 'undefined_name' is not defined"),
        ("1 / 0\n", "ZeroDivisionError"),
        ("import not_there_at_all\n", "No module named 'not_there_at_all'"),
    ],
)
def test_a_module_that_fails_when_it_is_imported_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, words: str
) -> None:
    name = f"failing_{abs(hash(code))}"
    (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match=words) as caught:
        tasks.load(f"{name}:TASK")
    assert "\n" not in str(caught.value)
    assert "put its folder on PYTHONPATH" not in str(caught.value)


class Shy(TinyTask):
    """A sound task: it needs a trait that cannot be made up, and one metric is made of others."""

    metrics = (MAE, Metric("root", "u", "lower", of=lambda means: means["mae"] ** 0.5))

    def score(self, outputs: Any, samples: Samples) -> Any:
        weight = samples.traits["weight"]
        return {"mae": (float((weight * outputs[:, 0]).sum()), len(weight))}

    def baseline(self, inputs: Any) -> Any:
        return np.zeros((len(inputs), 1))  # float64 does


def test_sound_tasks_are_loaded(plugin: ModuleType) -> None:
    for sound in (Shy(), TinyTask(), tiny_task.SHORT):
        plugin.TASK = sound  # type: ignore[attr-defined]
        assert tasks.load(f"{MODULE}:TASK") is sound
    for name in tasks.names():
        assert tasks.load(name).name == name


# --- what it has read ---


def samples(**changes: Any) -> Samples:
    sound = {
        "inputs": np.zeros((3, 4), np.float32),
        "targets": np.zeros((3, 1), np.float32),
        "judged": np.ones(3, np.bool_),
    }
    return Samples(**(sound | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"inputs": np.zeros((3, 5), np.float32)},
            "inputs: expected float32 or uint8[N, 4], got float32[3, 5]",
        ),
        ({"inputs": np.zeros((3, 4))}, "inputs: expected float32 or uint8[N, 4], got float64[3, 4]"),
        ({"inputs": np.full((3, 4), np.inf, np.float32)}, "inputs: 12 numbers are not finite"),
        ({"targets": np.zeros((3, 1), np.int64)}, "targets: expected float32[N, …], got int64[3, 1]"),
        ({"targets": np.full((3, 1), np.nan, np.float32)}, "targets: 3 numbers are not finite"),
        ({"judged": np.ones(3)}, "judged: expected bool[N], got float64[3]"),
    ],
)
def test_samples_of_another_form_are_told(changes: dict[str, Any], words: str) -> None:
    task_check.check_samples(tiny_task.TASK, samples())
    with pytest.raises(UsageError) as caught:
        task_check.check_samples(tiny_task.TASK, samples(**changes))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"inputs": np.zeros((3, 5), np.float32)}, "frames: expected float32 or uint8[N, 4]"),
        ({"offsets": np.array([0, 2, 1, 3])}, "offsets: expected numbers that rise from 0 to 3"),
        ({"offsets": np.array([0, 2])}, "offsets: expected numbers that rise from 0 to 3"),
        ({"sample": np.arange(2)}, "2 samples, expected one for each of 3 rows"),
        ({"rate_hz": 0.0}, "rate_hz: expected a rate above 0"),
    ],
)
def test_frames_of_another_form_are_told(changes: dict[str, Any], words: str) -> None:
    sound: dict[str, Any] = {
        "inputs": np.zeros((3, 4), np.float32),
        "offsets": np.arange(4),
        "sample": np.arange(3),
        "rate_hz": 10.0,
    }
    task_check.check_frames(tiny_task.TASK, Frames(**sound))
    with pytest.raises(UsageError) as caught:
        task_check.check_frames(tiny_task.TASK, Frames(**(sound | changes)))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("drive", "words"),
    [
        (Drive("north side", "d1", 1, 1.0), "region id 'north side': expected 1 to 36 of a-z, 0-9 and '-'"),
        (Drive("north", "d1, d2", 1, 1.0), "drive 'd1, d2': expected a name without commas"),
        (Drive("north", " d1", 1, 1.0), "blanks around it"),
    ],
)
def test_names_that_cannot_be_used_are_told(drive: Drive, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        task_check.check_index(tiny_task.TASK, Index((drive,), {}))
    assert words in str(caught.value)
