"""What `fedfleet replay` leaves behind: predictions frame by frame, a summary, a page; and two models side by side."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_task
from traffic import write_folder

from fedfleet.cli.main import main
from fedfleet.fleet_server.export import Exported, export
from fedfleet.models.layout import patch
from fedfleet.models.motion_forecast import TASK

BOTH = ("--model", "good.onnx", "--against", "bad.onnx", "--out", "one", "--json", "figures.json")


def model(exported: Exported, *, away: float) -> bytes:
    """The first weights, moved: the farther, the worse it forecasts."""
    moved = exported.initial + np.random.default_rng(3).normal(0, 1, exported.initial.shape) * away
    return patch(exported.onnx, exported.layout, moved.astype(np.float32))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recordings of 12 drives and two models: `good.onnx` and `bad.onnx`."""
    folder = tmp_path_factory.mktemp("replay")
    write_folder(folder / "pack", drives=6)
    exported = export(TASK, seed=1)
    for name, away in (("good", 0.001), ("bad", 0.05)):
        (folder / f"{name}.onnx").write_bytes(model(exported, away=away))
    return folder


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *words: object) -> object:
    monkeypatch.chdir(folder)
    arguments = ["--scenarios", "pack", "--speed", "max", "--worst", "1", *map(str, words)]
    monkeypatch.setattr(sys, "argv", ["fedfleet", "replay", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


@pytest.fixture(scope="module")
def done(place: Path) -> Path:
    """One run that compares both models."""
    with pytest.MonkeyPatch.context() as patched:
        assert run(patched, place, *BOTH) in {0, None}
    return place / "one"


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def test_every_prediction_of_every_frame_is_a_row_with_its_error(done: Path, place: Path) -> None:
    # given
    rows = pq.read_table(done / "frames.parquet").to_pydict()
    keys = [drive.key for drive in TASK.index(place / "pack").drives]
    frames, samples = TASK.frames(place / "pack", keys), TASK.samples(place / "pack", keys)
    # then: as many as the frames have tracks, and a truth for each sample
    assert len(rows["frame"]) == len(frames.inputs)
    known = [i for i, sample in enumerate(rows["sample"]) if sample is not None]
    assert len(known) == len(samples)
    # then: the errors are those of the outputs beside them
    own = TASK.samples(place / "pack", ["coast/d00"])
    for i in known[:5]:
        sample = rows["sample"][i]
        off = np.array(rows["output"][i]).reshape(30, 2) - own.targets[sample]
        assert rows["error_ADE"][i] == pytest.approx(float(np.hypot(*off.T).mean()), rel=1e-5)
        assert (rows["region"][i], rows["drive"][i]) == ("coast", "d00")
        assert rows["track"][i] == own.traits["track"][sample]
        assert rows["judged"][i] == own.judged[sample]
        assert rows["slice_manoeuvre"][i]
    unknown = next(i for i, sample in enumerate(rows["sample"]) if sample is None)
    assert rows["error_ADE"][unknown] is None
    assert rows["slice_manoeuvre"][unknown] is None


def test_the_summary_has_every_slice_with_counts_and_intervals_and_names_the_worst(done: Path) -> None:
    found = read(done / "summary.json")
    whole = found["slices"]["all"]
    assert whole["drives"] == found["drives"] == 12
    assert whole["ade"]["low"] < whole["ade"]["value"] < whole["ade"]["high"]
    regions = [found["slices"][f"region={name}"]["samples"] for name in ("coast", "town")]
    assert sum(regions) == whole["samples"]
    worst = found["slices"][found["worst_slice"]]["ade"]["value"]
    enough = [each for name, each in found["slices"].items() if name != "all" and each["samples"] >= 10]
    assert worst == max(each["ade"]["value"] for each in enough)
    assert {"fedfleet", "numpy", "onnxruntime"} <= found["versions"].keys()
    assert len(found["data_sha256"]) == len(found["model_sha256"]) == len(found["against_sha256"]) == 64


def test_a_model_that_is_worse_is_said_to_be_and_by_how_much(done: Path) -> None:
    found = read(done / "summary.json")["differences"]
    whole = found["all"]
    assert whole["against_is"] == "worse"
    assert whole["difference"] == pytest.approx(whole["against"] - whole["model"])
    assert 0 < whole["low"] < whole["difference"] < whole["high"]
    assert whole["gain"] == -whole["difference"]
    assert whole["drives_worse"] <= whole["drives"] == 12
    # the only type has the samples of all: it is one test with it, not another
    assert found["type=unknown"]["p_corrected"] == whole["p_corrected"]
    assert whole["p"] <= whole["p_corrected"] < 0.05
    assert found.keys() == read(done / "summary.json")["slices"].keys()
    assert read(done.parent / "figures.json")["differences"] == found


def test_the_page_stands_alone_and_says_what_it_was_made_from(done: Path) -> None:
    page = (done / "report.html").read_text(encoding="utf-8")
    links = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)""", page)
    assert all(link.startswith(("data:", "#")) for link in links)
    assert "<script" not in page
    assert "@import" not in page
    found = read(done / "summary.json")
    for words in (
        found["model_sha256"],
        found["against_sha256"],
        found["data_sha256"],
        "fedfleet replay --scenarios pack --speed max",
        f"onnxruntime {found['versions']['onnxruntime']}",
        f"The worst slice is <b>{found['worst_slice']}</b>",
        "Worst answers",
        "bad.onnx against good.onnx",
        "good.onnx against constant velocity",
        "gain (+ is better)",
        found["against_baseline"]["said"][0],
    ):
        assert words in page
    assert page.count("data:image/png;base64,") >= 1
    dimensions = {name.partition("=")[0] for name in found["slices"]} - {"all"}
    # bars of each dimension, gains over the trivial answer and over the other model, the curve, a map of each region
    assert page.count("<svg") == len(dimensions) + 2 + 1 + 2


def test_the_same_again_gives_the_same_bytes_however_many_drives_at_once(
    done: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given the same command in another folder
    (tmp_path / "pack").symlink_to(place / "pack")
    for name in ("good", "bad"):
        (tmp_path / f"{name}.onnx").symlink_to(place / f"{name}.onnx")
    # when
    run(monkeypatch, tmp_path, *BOTH)
    # then
    for name in ("frames.parquet", "summary.json", "report.html"):
        assert (tmp_path / "one" / name).read_bytes() == (done / name).read_bytes(), name
    # when three drives are replayed at once
    run(monkeypatch, tmp_path, *BOTH, "--jobs", "3")
    # then
    for name in ("frames.parquet", "summary.json"):
        assert (tmp_path / "one" / name).read_bytes() == (done / name).read_bytes(), name


def test_another_task_has_a_report_too_without_slices_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_task.generate(tmp_path / "pack", drives=2)
    first = export(tiny_task.TASK, seed=0)
    (tmp_path / "tiny.onnx").write_bytes(patch(first.onnx, first.layout, first.initial))
    run(monkeypatch, tmp_path, "--task", "tiny_task:TASK", "--model", "tiny.onnx", "--out", "out")
    found = read(tmp_path / "out" / "summary.json")
    assert list(found["slices"]) == ["all", "region=north", "region=south"]
    assert "differences" not in found
    assert "Worst answers" not in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_a_run_that_fails_leaves_no_files_not_even_older_ones(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # given files of an earlier run, and a model whose answers are no numbers
    for name in ("frames.parquet", "summary.json", "report.html"):
        (tmp_path / name).write_text("old")
    exported = export(TASK, seed=1)
    broken = np.full_like(exported.initial, np.nan)
    (tmp_path / "nan.onnx").write_bytes(patch(exported.onnx, exported.layout, broken))
    # when
    code = run(monkeypatch, place, "--model", tmp_path / "nan.onnx", "--out", tmp_path)
    # then
    assert code == 2
    assert "drive coast/d00, frame 0: the model's output is not finite" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["nan.onnx"]


def test_another_model_that_is_none_is_one_line(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    code = run(monkeypatch, place, "--model", "good.onnx", "--against", "gone.onnx", "--out", "none")
    assert code == 2
    assert capfd.readouterr().err == (
        "fedfleet: --against gone.onnx: cannot be read: No such file or directory\n"
    )
