"""A missing optional package is one line with the command that installs it, for every extra and command, at once."""

import os
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
import tiny_task
import tubs
from test_cli import scenario

from fedfleet.models.extras import EXTRAS, command, explained
from fedfleet.scenarios.table import write_table

ROOT = Path(__file__).resolve().parent.parent
BLOCKER = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_task.generate(tmp_path / "tiny", regions=("east", "west"))
    (tmp_path / "tracks").mkdir()
    write_table(tmp_path / "tracks" / "north.parquet", [scenario(f"d{n}", 0) for n in range(6)])
    tubs.write_folder(tmp_path / "tub" / "car-1", tubs.files(30))
    (tmp_path / "bags").mkdir()
    (tmp_path / "bags" / "a.mcap").write_bytes(b"\x89MCAP0\r\n" + bytes(100))
    (tmp_path / "model.onnx").write_bytes(b"x")
    return tmp_path


def run(folder: Path, words: str, *, without: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """Run a command where these modules cannot be imported, in its children neither."""
    site = folder / "blocked"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(BLOCKER.format(names=set(without)), encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": f"{site}:{Path(tiny_task.__file__).parent}", "COLUMNS": "300"}
    return subprocess.run(
        [sys.executable, "-P", "-m", "fedfleet.cli.main", *words.split()],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


TINY = "--task tiny_task:TASK"


@pytest.mark.parametrize(
    ("words", "without", "extra"),
    [
        (f"demo {TINY} -s tiny", "torch", "train"),
        (f"demo {TINY} -s tiny", "onnx", "server"),
        (f"demo {TINY} -s tiny", "onnxscript", "server"),
        (f"demo {TINY} -s tiny", "matplotlib", "viz"),
        (f"compare {TINY} -s tiny", "torch", "train"),
        (f"compare {TINY} -s tiny", "onnxscript", "server"),
        (f"compare {TINY} -s tiny", "matplotlib", "viz"),
        ("server --wait -s tracks", "onnx", "server"),
        ("server --wait -s tracks", "torch", "train"),
        ("agent v01 --wait -s tracks", "torch", "train"),
        ("fleet --wait -s tracks", "torch", "train"),
        ("scenarios list -s tracks", "pyarrow", "scenarios"),
        ("scenarios check -s tracks", "pyarrow", "scenarios"),
        ("scenarios stats -s tracks", "pyarrow", "scenarios"),
        ("scenarios stats -s tracks --out stats", "matplotlib", "viz"),
        ("scenarios plot -s tracks", "matplotlib", "viz"),
        ("scenarios plot -s tracks", "PIL", "scenarios"),
        ("scenarios check --task camera_steering -s tub", "PIL", "scenarios"),
        ("scenarios check -s bags", "mcap", "formats"),
        ("scenarios generate pack", "libsumo", "sumo"),
        ("replay --model model.onnx -s tracks --plot", "matplotlib", "viz"),
    ],
)
def test_a_missing_extra_is_one_line(folder: Path, words: str, without: str, extra: str) -> None:
    done = run(folder, words, without=(without,))
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("fedfleet: ")
    assert {"PIL": "Pillow"}.get(without, without) in done.stderr
    assert f"pip install 'fedfleet[{extra}]'" in done.stderr
    assert done.stdout == ""
    assert not (folder / "out").exists() or not any((folder / "out").rglob("*.onnx"))


def test_without_any_extra_every_command_explains_itself(folder: Path) -> None:
    for words in ("--help", "--version", "server --help", "demo --help", "compare --help", "replay --help"):
        done = run(folder, words, without=tuple(EXTRAS))
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""


def test_a_database_without_its_driver_is_one_line(folder: Path) -> None:
    (folder / "fedfleet.toml").write_text(
        '[server.store]\nurl = "postgresql://127.0.0.1:1/none"\n', encoding="utf-8"
    )
    done = run(folder, "server --wait -s tracks", without=("psycopg",))
    assert done.returncode == 2
    assert "pip install 'fedfleet[scale]'" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("words", ["broker", f"demo {TINY} -s tiny", f"compare {TINY} -s tiny --broker"])
def test_without_a_broker_one_line_says_how_to_get_one(folder: Path, words: str) -> None:
    # given an environment with every package and no program beside its interpreter
    (folder / "fedfleet.toml").write_text('[broker]\nembedded = "nats"\n', encoding="utf-8")
    bare = folder / "bare"
    (bare / "bin").mkdir(parents=True)
    (bare / "bin" / "python").symlink_to(Path(sys.executable).resolve())
    (bare / "pyvenv.cfg").write_text(f"home = {Path(sys.executable).resolve().parent}\n", encoding="utf-8")
    packages = Path(sysconfig.get_path("purelib"))
    place = bare / packages.relative_to(sys.prefix)
    place.parent.mkdir(parents=True)
    place.symlink_to(packages)
    # when
    done = subprocess.run(
        [str(bare / "bin" / "python"), "-P", "-m", "fedfleet.cli.main", *words.split()],
        cwd=folder,
        env={**os.environ, "PATH": str(bare / "bin"), "PYTHONPATH": str(Path(tiny_task.__file__).parent)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # then
    assert done.returncode == 2, done.stderr
    assert "pip install 'fedfleet[broker]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_table_names_extras_that_there_are() -> None:
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(EXTRAS.values()) <= set(told)


def test_the_last_words_of_a_child_are_explained() -> None:
    assert (
        explained("ModuleNotFoundError: No module named 'onnx.helper'")
        == f"onnx is not installed: {command('onnx')}"
    )
    assert explained("ModuleNotFoundError: No module named 'mine'") == ""
    assert command("torch", "onnx") == "pip install 'fedfleet[server]'"
