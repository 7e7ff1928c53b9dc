"""No command runs Python files of the current folder, neither itself nor in a process that it starts."""

import ast
import os
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import tiny_task

from fedfleet.models.interpreter import module_command

ROOT = Path(__file__).resolve().parent.parent
ROOMS = (
    "broker_config",
    "cli",
    "codec",
    "fleet_server",
    "link",
    "models",
    "protocol",
    "scenarios",
    "vehicle_agent",
)
SCRIPT = Path(sys.executable).with_name("fedfleet")
MARK = "EXECUTED"
HOSTILE = 'import sys\nopen({mark!r}, "a").write(__name__ + " in " + " ".join(sys.argv) + "\\n")\n'


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder with a module of the name of every module that is installed, which notes that it was run."""
    names = {
        *sys.stdlib_module_names,
        *packages_distributions(),
        "sitecustomize",
        "usercustomize",
        "fedfleet",
    }
    for name in names - {"__main__"}:
        (tmp_path / f"{name}.py").write_text(HOSTILE.format(mark=str(tmp_path / MARK)), encoding="utf-8")
    (tmp_path / "structlog").mkdir()
    (tmp_path / "structlog" / "__init__.py").write_text(
        HOSTILE.format(mark=str(tmp_path / MARK)), encoding="utf-8"
    )
    tiny_task.generate(tmp_path / "recordings", regions=("east", "west"))
    return tmp_path


def run(folder: Path, *words: str, timeout_s: float = 170) -> subprocess.CompletedProcess[str]:
    tests = str(Path(tiny_task.__file__).parent)  # how a plug-in that is not installed is found
    env = {**os.environ, "PYTHONPATH": tests}
    return subprocess.run(
        [str(SCRIPT), *words],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def executed(folder: Path) -> str:
    mark = folder / MARK
    return mark.read_text(encoding="utf-8") if mark.exists() else ""


def test_the_modules_of_that_folder_are_hostile(hostile: Path) -> None:
    # an interpreter without -P runs them: what the other tests look for can happen
    subprocess.run(
        [sys.executable, "-m", "fedfleet.scenarios.prepare", "--help"],
        cwd=hostile,
        capture_output=True,
        check=False,
    )
    assert executed(hostile)


def test_a_process_of_ours_runs_none(hostile: Path) -> None:
    for module in (
        "scenarios.prepare",
        "fleet_server.export",
        "fleet_server",
        "vehicle_agent",
        "vehicle_agent.trainer",
    ):
        command = module_command(f"fedfleet.{module}", "--help")
        done = subprocess.run(command, cwd=hostile, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert "usage" in done.stdout
    assert executed(hostile) == ""


@pytest.mark.parametrize(
    "words",
    [
        ("scenarios", "list", "-s", "recordings", "--task", "tiny_task:TASK"),
        ("scenarios", "check", "-s", "recordings", "--task", "tiny_task:TASK"),
        ("status",),
        ("agent", "v01", "--show-key"),
        ("server", "--wait", "-s", "nowhere"),
        ("--help",),
    ],
    ids=" ".join,
)
def test_a_command_runs_none(hostile: Path, words: tuple[str, ...]) -> None:
    done = run(hostile, *words)
    assert "Traceback" not in done.stderr
    assert executed(hostile) == ""


@pytest.mark.timeout(300)
def test_a_whole_fleet_of_a_task_on_pythonpath_runs_none(hostile: Path, mosquitto_binary: Path) -> None:
    # broker, preparation, export, server, agents, a fleet process and their trainers
    del mosquitto_binary
    done = run(
        hostile, "demo", "--task", "tiny_task:TASK", "-s", "recordings", "--rounds", "2", "--no-faults"
    )
    assert executed(hostile) == ""
    assert "true" in done.stdout, done.stdout + done.stderr
    assert (hostile / "out" / "demo" / "model.onnx").is_file()


@pytest.mark.parametrize("room", ROOMS)
def test_only_one_place_says_how_an_interpreter_is_started(room: str) -> None:
    # `sys.executable` otherwise only says where the programs beside it lie
    for path in sorted((ROOT / room).rglob("*.py")):
        if path.name == "interpreter.py":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.List | ast.Tuple)):
            words = [ast.unparse(element) for element in call.elts]
            assert "sys.executable" not in words, (
                f"{path.relative_to(ROOT)}:{call.lineno}: use module_command"
            )
