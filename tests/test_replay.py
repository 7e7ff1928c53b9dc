"""`fedfleet replay`, in this process: figures against the scoring of the same tracks, pictures, messages."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import argoverse
import numpy as np
import onnx
import pytest
import tiny_task
from onnx import TensorProto, helper
from traffic import scenario, write_folder

from fedfleet.cli.main import main
from fedfleet.fleet_server.export import Exported, export
from fedfleet.models import scoring
from fedfleet.models.layout import patch
from fedfleet.models.motion_forecast import TASK, agent_frame
from fedfleet.models.plot_motion_forecast import draw, views
from fedfleet.models.task import Case
from fedfleet.protocol.errors import UsageError
from fedfleet.scenarios.reading import read
from fedfleet.scenarios.table import write_table


@pytest.fixture(scope="module")
def exported() -> Exported:
    return export(TASK, seed=1)


@pytest.fixture(scope="module")
def model(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that is not constant velocity: its first weights, moved."""
    moved = exported.initial + np.random.default_rng(3).normal(0, 0.02, exported.initial.shape).astype(
        np.float32
    )
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    path.write_bytes(patch(exported.onnx, exported.layout, moved))
    return path


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("recordings") / "pack", drives=3)


class Said:
    """What one call of the command wrote, and its exit code."""

    def __init__(self, code: object, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def replay(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Said:
        words = ["fedfleet", "replay", "--no-report", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            main()
        return Said(ended.value.code, *capfd.readouterr())

    return call


def figures(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def test_figures_are_those_of_the_scored_tracks(
    replay: Any, model: Path, recordings: Path, tmp_path: Path
) -> None:
    # when
    done = replay(
        "--model", model, "--scenarios", recordings, "--speed", "max", "--json", tmp_path / "r.json"
    )
    # then
    assert done.code == 0, done.err
    report = figures(tmp_path / "r.json")
    for region in ("coast", "town"):
        keys = [drive.key for drive in TASK.index(recordings).drives if drive.region == region]
        samples, part = TASK.samples(recordings, keys), report["regions"][region]
        total, count = scoring.score(model.read_bytes(), TASK, samples)["ADE"]
        assert (part["ade"], part["tracks"]) == (pytest.approx(total / count), count)
        total, count = TASK.score_all(TASK.baseline(samples.inputs), samples)["FDE"]
        assert part["all_tracks"]["baseline"]["fde"] == pytest.approx(total / count)
        assert part["all_tracks"]["tracks"] == count == len(samples)
    overall = report["overall"]
    frames = TASK.frames(recordings, [drive.key for drive in TASK.index(recordings).drives])
    assert (overall["frames"], overall["predictions"]) == (len(frames), len(frames.inputs))
    assert (overall["missed"], overall["unanswered_tracks"], overall["drives"]) == (0, 0, 6)
    assert 0 < overall["p50_ms"] <= overall["p99_ms"]
    assert overall["tracks_per_s"] > 2000


def test_a_person_sees_tables_and_plain_lines_of_progress(replay: Any, model: Path, recordings: Path) -> None:
    done = replay("--model", model, "--scenarios", recordings, "--speed", "max")
    for words in (
        "town",
        "coast",
        "all",
        "ADE (m)",
        "FDE (m)",
        "miss_rate",
        "constant velocity",
        "p99",
        "tracks/s",
    ):
        assert words in done.out
    assert "6 drives in 2 regions, 60 s of recordings, as fast as possible" in done.out
    assert "replay: 6/6 drives, last town/d02\n" in done.err
    assert "\x1b" not in done.out + done.err


def test_the_first_version_is_as_good_as_its_baseline(
    replay: Any, exported: Exported, recordings: Path, tmp_path: Path
) -> None:
    (tmp_path / "first.onnx").write_bytes(patch(exported.onnx, exported.layout, exported.initial))
    replay("--model", "first.onnx", "--scenarios", recordings, "--speed", "max", "--json", "r.json")
    overall = figures(tmp_path / "r.json")["overall"]
    for name in ("ade", "fde", "miss_rate"):
        assert overall[name] == pytest.approx(overall["baseline"][name], abs=1e-4)


def test_fifty_times_real_time_takes_a_fiftieth(
    replay: Any, model: Path, recordings: Path, tmp_path: Path
) -> None:
    arguments = ("--drives", "town/d01", "--speed", "50", "--json", "r.json")
    done = replay("--model", model, "--scenarios", recordings, *arguments)
    assert done.code == 0, done.err
    overall = figures(tmp_path / "r.json")["overall"]
    assert overall["seconds"] >= (62 - 1) / 500
    assert (overall["drives"], overall["frames"]) == (1, 62)
    # a busy machine may have skipped a frame: then its tracks are said to be missing
    assert overall["all_tracks"]["tracks"] + overall["unanswered_tracks"] == 12


def test_pictures_show_the_worst_first_and_replace_older_ones(
    replay: Any, model: Path, recordings: Path, tmp_path: Path
) -> None:
    arguments = ("--model", model, "--scenarios", recordings, "--speed", "max", "--plot")
    replay(*arguments, "--worst", "3", "--out", "pics")
    done = replay(*arguments, "--worst", "2", "--out", "pics", "--json", "r.json")
    assert done.code == 0, done.err
    report = figures(tmp_path / "r.json")
    assert report["pictures"][0] == "pics/worst.png"
    assert sorted(path.name for path in (tmp_path / "pics").glob("*.png")) == sorted(
        Path(name).name for name in report["pictures"]
    )
    assert len(report["pictures"]) == 3
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in report["pictures"])
    first, second = (each["value"] for each in report["worst"])
    assert first >= second
    region, _ = report["worst"][0]["drive"].split("/")
    assert report["pictures"][1].startswith(f"pics/worst-001-{region}-")


def test_a_view_turns_an_answer_back_into_the_recording_s_frame(recordings: Path) -> None:
    # given the right answer to a track, in the track's own frame
    one = read(recordings, ["town/d02"])[1]
    right = agent_frame(one.xy[4:5, :20], one.xy[4:5, 20:])[0]
    # when
    (view,) = views([Case("town/d02", 6 + 4, right)], recordings)
    # then
    assert (view.scenario, view.track) == ("s1", "t4")
    assert np.allclose(view.prediction, view.truth, atol=1e-3)
    assert view.errors_m[1] < 1e-3 < view.straight_errors_m[1]


def test_nothing_to_draw_is_no_picture(tmp_path: Path, recordings: Path) -> None:
    assert draw([], scenarios=recordings, out=tmp_path / "none") == []
    with pytest.raises(UsageError, match="drive town/d00 has 12 tracks with a truth, none of number 12"):
        views([Case("town/d00", 12, np.zeros((30, 2), dtype=np.float32))], recordings)


def test_another_task_is_replayed_with_its_own_metrics(replay: Any, tmp_path: Path) -> None:
    tiny_task.generate(tmp_path / "tiny")
    first = export(tiny_task.TASK, seed=0)
    (tmp_path / "tiny.onnx").write_bytes(patch(first.onnx, first.layout, first.initial))
    arguments = ("--task", "tiny_task:TASK", "--model", "tiny.onnx", "--scenarios", "tiny", "--speed", "max")
    done = replay(*arguments, "--json", "r.json")
    assert done.code == 0, done.err
    overall = figures(tmp_path / "r.json")["overall"]
    assert (overall["tracks"], overall["all_tracks"]["tracks"]) == (576, 768)
    assert 0 <= overall["close"] <= 1
    # and it draws nothing
    assert replay(*arguments, "--plot").err == (
        "fedfleet: --plot: task tiny draws nothing, it names no function in `plot`\n"
    )


def test_the_benchmark_measures_what_the_command_does(recordings: Path, model: Path) -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "replay.py"
    command = [sys.executable, script, "--json", "--scenarios", recordings, "--model", model]
    done = subprocess.run(command, capture_output=True, check=True, text=True, timeout=120)
    report = json.loads(done.stdout)
    assert report["tracks_per_s"] >= 2000
    assert report["share_model"] + report["share_runtime"] == pytest.approx(1)
    assert 0 < report["share_model"] < 1
    assert (report["drives"], report["missed"]) == (6, 0)


# --- bad input: one line, exit code 2 ---


def is_one_line(done: Said, words: str) -> None:
    assert done.code == 2, done.err
    assert done.err.count("\n") == 1, done.err
    assert done.err.startswith("fedfleet: ")
    assert words in done.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--speed", "0"), "--speed 0: expected a number above 0 (1 = real time) or max"),
        (("--speed", "-1"), "--speed -1: expected a number above 0"),
        (("--speed", "nan"), "--speed nan: expected a number above 0"),
        (("--speed", "fast"), "--speed fast: expected a number above 0"),
        (("--drives", "town/d00,town/d77"), "has no drive town/d77: it has coast/d00, coast/d01"),
        (("--drives", ","), "has no drive ',': it has coast/d00"),
        (
            ("--task", "chess"),
            "unknown task 'chess': expected an installed task (camera_steering, motion_forecast)",
        ),
        (("--json", "."), "--json .: expected a file, got a folder"),
    ],
)
def test_a_wrong_option_is_one_line(
    replay: Any, model: Path, recordings: Path, arguments: tuple[str, ...], words: str
) -> None:
    is_one_line(replay("--model", model, "--scenarios", recordings, *arguments), words)


def test_a_folder_that_is_a_file_is_one_line(replay: Any, model: Path, tmp_path: Path) -> None:
    (tmp_path / "out.txt").write_text("mine")
    is_one_line(
        replay("--model", model, "--plot", "--out", "out.txt"), "--out out.txt: expected a folder, got a file"
    )
    done = replay("--model", model, "--json", "out.txt/r.json")
    is_one_line(done, "--json out.txt/r.json: cannot make its folder: ")


def test_recordings_that_are_none_are_one_line(replay: Any, model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    is_one_line(replay("--model", model, "--scenarios", "empty"), "empty: no recordings")
    is_one_line(
        replay("--model", model, "--scenarios", "gone"), "gone: expected a folder of recordings, got nothing"
    )
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.parquet").write_bytes(b"PAR1 not really")
    is_one_line(replay("--model", model, "--scenarios", "bad"), "x.parquet")


def test_recordings_without_a_frame_are_one_line_after_the_progress(
    replay: Any, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "short").mkdir()
    write_table(tmp_path / "short" / "town.parquet", [scenario(frames=15)])
    done = replay("--model", model, "--scenarios", "short", "--speed", "max", "--json", "r.json")
    assert done.code == 2
    words = "short: no frame to replay for task motion_forecast: tracks left out: 6 × too-short\n"
    assert done.err.endswith(f"fedfleet: {words}")
    assert not (tmp_path / "r.json").exists()


def test_a_broken_recording_is_left_out_and_told(replay: Any, model: Path, tmp_path: Path) -> None:
    # given: the last scenario of the last drive lacks its last frames
    folder = argoverse.write_folder(tmp_path / "zips", cities=("MIA",), indexed=True)
    members = argoverse.scenarios("MIA")
    last = list(members)[-1]
    members[last] = "\n".join(members[last].splitlines()[:-8]) + "\n"
    argoverse.write_zip(folder / "MIA.zip", {f"MIA/{name}.csv": text for name, text in members.items()})
    # when
    done = replay("--model", model, "--scenarios", folder, "--speed", "max", "--json", "r.json")
    # then the others are judged, and it is told that one was not, and who names it
    assert done.code == 0
    assert "1 file in " in done.out
    assert "is not read (1 × missing-frames): `fedfleet scenarios check --scenarios" in done.out
    assert figures(tmp_path / "r.json")["overall"]["drives"] == 10


def test_a_model_is_shown_beside_its_baseline_in_every_metric_and_said_to_be_worse(
    replay: Any, model: Path, recordings: Path, tmp_path: Path
) -> None:
    done = replay("--model", model, "--scenarios", recordings, "--speed", "max", "--json", "r.json")
    told = figures(tmp_path / "r.json")["against_baseline"]
    # given a model that is worse than constant velocity
    overall = figures(tmp_path / "r.json")["overall"]
    assert overall["ade"] > overall["baseline"]["ade"]
    # then it is said, with the slices and the drives
    assert told["is_worse_overall"]
    assert told["worse_in"]
    first, second = told["said"]
    assert first.startswith("model.onnx is ")
    assert f"it is worse in {len(told['worse_in'])} of {told['slices']} slices" in first
    assert second.startswith(f"worse than constant velocity: {told['worse_in'][0]} (ADE ")
    assert first in done.out
    assert second in done.out
    # and the signs are those of the head: + is better
    gains = told["gains"]
    assert gains["all"]["gain"] == pytest.approx(overall["baseline"]["ade"] - overall["ade"])
    assert gains["all"]["low"] <= gains["all"]["gain"] <= gains["all"]["high"]
    assert "gain (+ better)" in done.out
    assert f"{overall['baseline']['miss_rate']:.3f}" in done.out


def test_with_another_model_the_baseline_is_still_there(
    replay: Any, model: Path, exported: Exported, recordings: Path, tmp_path: Path
) -> None:
    (tmp_path / "first.onnx").write_bytes(patch(exported.onnx, exported.layout, exported.initial))
    done = replay(*("--model", "first.onnx", "--against", model, "--scenarios", recordings, "--speed", "max"))
    assert done.code == 0, done.err
    assert "ADE by slice: the model against constant velocity" in done.out
    assert "by slice: model.onnx against first.onnx" in done.out
    assert "first.onnx is as good as constant velocity overall; it is worse in none of" in done.out
    assert "model.onnx is worse than first.onnx overall" in done.out.replace("(perhaps by chance) ", "")


def test_judging_nothing_is_an_error_and_leaves_no_files(
    replay: Any,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    # given recordings in which no track is one that counts
    (tmp_path / "others").mkdir()
    one = scenario(frames=60)
    write_table(tmp_path / "others" / "town.parquet", [replace(one, kinds=("OTHERS",) * len(one.kinds))])
    words = ("--model", model, "--scenarios", "others", "--speed", "max", "--json", "r.json")
    done = replay(*words)
    assert done.code == 2
    assert re.search(r"fedfleet: others: none of \d+ answered tracks is judged by task motion", done.err)
    assert not (tmp_path / "r.json").exists()
    # and with a report neither
    monkeypatch.setattr(sys, "argv", ["fedfleet", "replay", *map(str, words)])
    with pytest.raises(SystemExit):
        main()
    assert not list((tmp_path / "out" / "replay").iterdir())
    # nor does `scenarios check` pass such a folder
    monkeypatch.setattr(sys, "argv", ["fedfleet", "scenarios", "check", "--scenarios", "others"])
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
    said = capfd.readouterr()
    assert ended.value.code == 2
    assert "0 of them judged" in said.out
    assert "samples is judged by task motion_forecast: no model could be judged on it" in said.err


def graph(shape: tuple[int, ...], *, name: str = "history") -> bytes:
    """A file that gives back what it gets."""
    sides = ["N", *shape]
    given = helper.make_tensor_value_info(name, TensorProto.FLOAT, sides)
    answer = helper.make_tensor_value_info("future", TensorProto.FLOAT, sides)
    node = helper.make_node("Identity", [name], ["future"])
    opset = [helper.make_opsetid("", 20)]
    made = helper.make_model(
        helper.make_graph([node], "g", [given], [answer]), opset_imports=opset, ir_version=9
    )
    content: bytes = onnx.ModelProto.SerializeToString(made)
    return content


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            graph((10, 2)),
            "input expected history float[N, 20, 2], got history float[N, 10, 2]",
        ),
        (
            graph((66, 200, 3), name="image"),
            "input expected history float[N, 20, 2], got image float[N, 66, 200, 3]",
        ),
        (graph((20, 2)), "output expected future float[N, 30, 2], got future float[N, 20, 2]"),
        (b"no model", "not a model that ONNX Runtime can load: no ONNX file"),
        (b"", "not a model that ONNX Runtime can load: an empty file"),
    ],
)
def test_a_model_that_does_not_fit_is_one_line(
    replay: Any, recordings: Path, tmp_path: Path, content: bytes, words: str
) -> None:
    (tmp_path / "other.onnx").write_bytes(content)
    done = replay("--model", "other.onnx", "--scenarios", recordings, "--speed", "max")
    is_one_line(done, "fedfleet: --model other.onnx: ")
    assert words in done.err


def test_a_model_that_is_not_there_is_one_line(replay: Any, recordings: Path) -> None:
    done = replay("--model", "gone.onnx", "--scenarios", recordings)
    is_one_line(done, "--model gone.onnx: cannot be read: No such file or directory")
    is_one_line(replay("--model", recordings, "--scenarios", recordings), "cannot be read: Is a directory")


def test_a_model_whose_answers_are_no_numbers_is_one_line(
    replay: Any, exported: Exported, recordings: Path, tmp_path: Path
) -> None:
    broken = np.full_like(exported.initial, np.nan)
    (tmp_path / "nan.onnx").write_bytes(patch(exported.onnx, exported.layout, broken))
    done = replay("--model", "nan.onnx", "--scenarios", recordings, "--speed", "max")
    is_one_line(done, "drive coast/d00, frame 0: the model's output is not finite")
