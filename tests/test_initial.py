"""The first model, exported by a process of its own."""

import sys
from pathlib import Path

import numpy as np
import pytest
from server_world import SIZE, write_export

from fedfleet.fleet_server.initial import export_command, prepare_export
from fedfleet.models import layout
from fedfleet.protocol.errors import UsageError


def test_the_export_process_is_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a task with a network, and the left-over of an export that was killed
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    folder, out = tmp_path / "export", tmp_path / ".export.new"
    out.mkdir()
    (out / "graph.onnx").write_bytes(b"half")
    # when the first model is asked for
    made = prepare_export(folder, export_command("tiny_task:TASK", seed=3, out=out), out=out)
    # then it is there, and a second time no process is needed
    assert made.vector.shape == (layout.read(made.layout_json).size,)
    again = prepare_export(folder, ["/nowhere/python"], out=out)
    assert again.onnx == made.onnx
    assert again.vector.tobytes() == made.vector.tobytes()
    assert not out.exists()


def test_a_failed_export_says_why_in_one_line(tmp_path: Path) -> None:
    folder, out = tmp_path / "export", tmp_path / ".export.new"
    command = export_command("no_such_task", seed=3, out=out)
    with pytest.raises(UsageError, match=r"could not be exported: unknown task 'no_such_task'"):
        prepare_export(folder, command, out=out)
    # and one that ends well without writing anything
    with pytest.raises(UsageError, match=r"wrote no graph\.onnx"):
        prepare_export(folder, [sys.executable, "-c", "pass"], out=out)
    assert not folder.exists()


def test_a_vector_of_another_type_is_refused(tmp_path: Path) -> None:
    write_export(tmp_path / "export")
    np.save(tmp_path / "export" / "initial.npy", np.zeros(SIZE))
    with pytest.raises(UsageError, match=r"initial.npy: expected float32\[M\], got float64"):
        prepare_export(tmp_path / "export", ["/nowhere"], out=tmp_path / "new")
