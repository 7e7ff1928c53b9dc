"""A task whose tensors are not alike, from its rules to the published model: export, vehicles, fold, downlink."""

import sqlite3
from pathlib import Path

import numpy as np
import pytest
import tiny_task
from test_compare import compare

from fedfleet.codec import payload
from fedfleet.codec.describe import describe
from fedfleet.models.layout import Layout, extract, read


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server's folder after two rounds of four vehicles over the memory link."""
    folder = tmp_path_factory.mktemp("ruled")
    tiny_task.generate(folder / "recordings", drives=8)
    words = ("--task", "ruled_task:TASK", "--rounds", 2, "--epochs", 2, "--vehicles-per-region", 2)
    done = compare("--scenarios", folder / "recordings", "--out", folder / "out", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "out" / "work" / "server"


@pytest.fixture(scope="module")
def layout(server: Path) -> Layout:
    return read((server / "export" / "layout.json").read_bytes())


def test_the_layout_carries_the_task_s_rules(layout: Layout) -> None:
    assert dict(zip(layout.names, layout.rules, strict=True)) == {
        "0.weight": "body:sparse",
        "1.weight": "body:dense",
        "1.bias": "body:dense",
        "1.running_mean": "body:exclude",
        "1.running_var": "body:exclude",
        "3.weight": "head:sparse",
        "3.bias": "head:dense",
    }


def test_what_is_excluded_never_changes_and_the_rest_does(server: Path, layout: Layout) -> None:
    # given the model files of the first and of the last version
    first, last = (extract((server / "models" / f"{n}.onnx").read_bytes(), layout) for n in (0, 2))
    # then
    for name, rule, start, size in zip(layout.names, layout.rules, layout.offsets, layout.sizes, strict=True):
        tensor = slice(start, start + size)
        changed = not np.array_equal(first[tensor], last[tensor])
        assert changed == (not rule.endswith("exclude")), name


def test_the_vehicles_updates_have_these_parts(server: Path, layout: Layout) -> None:
    # given what the server stored
    database = sqlite3.connect(server / "store.sqlite")
    stored = [row[0] for row in database.execute('SELECT payload FROM "update" WHERE payload IS NOT NULL')]
    database.close()
    assert len(stored) == 8
    for data in stored:
        # then each has a sparse and a dense block in body and head; it is read with the layout's parts only
        blocks = [(one.segment, one.parameters, one.value) for one in describe(data).blocks]
        assert blocks == [(0, 32, "sign"), (0, 16, "float32"), (1, 8, "sign"), (1, 1, "float32")]
        change = payload.decode(data, size=layout.size, parts=layout.parts).delta.dense()
        for part in layout.parts.parts:
            assert part.take(change).any() == (part.coding != "exclude")
