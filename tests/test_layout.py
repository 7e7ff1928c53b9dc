"""Holds the house: who imports whom, what stays pure, what stays light, and what the wheel carries."""

import ast
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
FOLDERS: dict[str, str] = SETUPTOOLS["package-dir"]

# A room may import from these rooms, and from itself. Server and agent never import each other.
SERVING = {"protocol", "codec", "link", "models", "scenarios", "broker_config"}
MAY_IMPORT: dict[str, set[str]] = {
    "protocol": set(),
    "codec": {"protocol"},
    "broker_config": {"protocol"},
    "link": {"protocol", "codec", "broker_config"},
    "models": {"protocol", "codec", "scenarios"},
    "scenarios": {"protocol", "models"},
    "fleet_server": SERVING,
    "vehicle_agent": SERVING,
    "cli": SERVING | {"fleet_server", "vehicle_agent"},
}

PURE_ROOMS = ("protocol", "codec")
PURE_FILES = {
    "fleet_server": (
        "admission",
        "chain",
        "downlink",
        "fold",
        "gate",
        "heads",
        "merge",
        "region_fold",
        "robust_columns",
        "robust_pairwise",
        "rate",
        "rounds",
        "rules",
        "selection",
        "settlement",
        "stopwatch",
        "strategies",
        "strategies_adaptive",
    ),
    "vehicle_agent": (
        "actions",
        "agent",
        "assemble",
        "budget",
        "eligibility",
        "events",
        "outbox",
        "state",
        "trusted",
        "versions",
    ),
    "scenarios": ("partition",),
}
IMPURE = {"paho", "time", "random", "os", "torch", "socket", "threading", "subprocess", "asyncio", "secrets"}

# What a long-running process may not load, in other words import at module level anywhere in its closure.
TOO_HEAVY = {
    "fedfleet.vehicle_agent.main": {
        "torch",
        "onnx",
        "onnxscript",
        "pyarrow",
        "sqlalchemy",
        "typer",
        "matplotlib",
    },
    "fedfleet.fleet_server.main": {"torch", "onnx", "onnxscript", "matplotlib", "prometheus_client"},
}


# --- reading the code ---


def module_name(path: Path) -> str:
    """`protocol/ids.py` -> `fedfleet.protocol.ids`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("fedfleet", *(parts[:-1] if parts[-1] == "__init__" else parts)))


def room_of(module: str) -> str:
    """`fedfleet.protocol.ids` -> `protocol`."""
    return module.split(".")[1]


MODULES = {
    module_name(path): path
    for folder in sorted(FOLDERS.values())
    for path in sorted((ROOT / folder).rglob("*.py"))
}


def targets(node: ast.AST) -> list[str]:
    """The modules (or names in modules) that one import statement names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


@cache
def all_imports(module: str) -> frozenset[str]:
    """Everything a module imports anywhere in it."""
    return frozenset(name for node in ast.walk(tree(module)) for name in targets(node))


@cache
def tree(module: str) -> ast.Module:
    """The syntax tree of one of our modules."""
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def run_at_import(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when a module is imported: not function bodies, not TYPE_CHECKING blocks."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from run_at_import(child)


@cache
def loaded_by(module: str) -> frozenset[str]:
    """What importing this module imports directly, our own names resolved to modules, packages included."""
    names = {name for node in run_at_import(tree(module)) for name in targets(node)}
    return frozenset(loaded for name in names for loaded in resolve(name))


def resolve(name: str) -> Iterator[str]:
    """`fedfleet.protocol.ids.Id` -> `fedfleet.protocol` and `fedfleet.protocol.ids`."""
    if not name.startswith("fedfleet."):
        yield name
        return
    parts = name.split(".")
    for length in range(2, len(parts) + 1):
        if (prefix := ".".join(parts[:length])) in MODULES:
            yield prefix


def closure(start: str) -> dict[str, str]:
    """Every module that importing `start` loads, own and foreign, with the module that imports it."""
    importer = dict.fromkeys(resolve(start), "(start)")
    waiting = list(importer)
    while waiting:
        module = waiting.pop()
        for name in loaded_by(module):
            if name not in importer:
                importer[name] = module
                if name in MODULES:
                    waiting.append(name)
    return importer


def top(name: str) -> str:
    """`torch.nn` -> `torch`."""
    return name.partition(".")[0]


# --- imports ---


def test_rooms_import_only_in_the_direction_of_the_design() -> None:
    wrong = [
        f"{module} imports {name}"
        for module in MODULES
        for name in all_imports(module)
        if name.startswith("fedfleet.")
        and room_of(name) not in MAY_IMPORT[room_of(module)] | {room_of(module)}
    ]
    assert wrong == []


def test_every_mapped_room_stands_in_the_table_of_directions() -> None:
    assert set(MAY_IMPORT) == {folder.split("/")[0] for folder in FOLDERS.values()}


def test_modules_load_each_other_without_a_cycle() -> None:
    # given the graph of what runs at import, a package's __init__ aside (it is loaded by every module of it)
    graph = {module: {n for n in loaded_by(module) if n in MODULES and n != module} for module in MODULES}
    # when modules that load nothing of ours any more are taken away, again and again
    while leaves := {module for module, loads in graph.items() if not loads}:
        graph = {module: loads - leaves for module, loads in graph.items() if module not in leaves}
    # then nothing remains
    assert graph == {}


def test_only_link_paho_imports_paho() -> None:
    importers = {module for module in MODULES if any(top(name) == "paho" for name in all_imports(module))}
    assert importers <= {"fedfleet.link.paho"}


def test_own_code_is_imported_as_fedfleet_only() -> None:
    bare = {folder.split("/")[0] for folder in FOLDERS.values()}
    scripts = [
        path
        for folder in ("tests", "benchmarks", "examples", "setup", "docs")
        for path in (ROOT / folder).rglob("*.py")
    ]
    found = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in [*MODULES.values(), *scripts]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in targets(node)
        if top(name) in bare or (isinstance(node, ast.ImportFrom) and node.level)
    ]
    assert found == []


# --- purity ---


def pure_modules() -> list[str]:
    """The modules that must be pure, of those that exist."""
    rooms = [module for module in MODULES if room_of(module) in PURE_ROOMS]
    # A listed file may be a module or a package.
    files = [f"fedfleet.{folder}.{name}" for folder, names in PURE_FILES.items() for name in names]
    return [*rooms, *(m for m in MODULES if any(m == file or m.startswith(f"{file}.") for file in files))]


@pytest.mark.parametrize("module", pure_modules())
def test_pure_modules_import_no_clock_no_chance_and_no_io(module: str) -> None:
    assert {top(name) for name in all_imports(module)} & IMPURE == set()


@pytest.mark.parametrize("folder", PURE_FILES)
def test_listed_pure_files_exist(folder: str) -> None:
    missing = [name for name in PURE_FILES[folder] if f"fedfleet.{folder}.{name}" not in MODULES]
    assert missing == []


# --- weight ---


@pytest.mark.parametrize("process", TOO_HEAVY)
def test_long_running_processes_load_nothing_heavy(process: str) -> None:
    assert process in MODULES
    heavy = {
        f"{by} imports {name}" for name, by in closure(process).items() if top(name) in TOO_HEAVY[process]
    }
    assert heavy == set()


def test_the_closure_sees_an_import_two_modules_away() -> None:
    # given any module that loads another of ours, which loads something foreign
    start, through = next(
        (m, n) for m in MODULES for n in loaded_by(m) if n in MODULES and loaded_by(n) - set(MODULES)
    )
    # then its closure names the foreign module
    assert loaded_by(through) <= set(closure(start))


# --- packaging ---


def test_every_folder_with_code_is_a_mapped_package_with_types_and_a_docstring() -> None:
    assert sorted(SETUPTOOLS["packages"]) == sorted(FOLDERS)
    code = {
        module if path.stem == "__init__" else module.rpartition(".")[0] for module, path in MODULES.items()
    }
    assert code == set(FOLDERS)
    for package, folder in FOLDERS.items():
        assert package == "fedfleet." + folder.replace("/", ".")
        assert ast.get_docstring(tree(package)), f"{folder}/__init__.py does not say what may live there"
        assert (ROOT / folder.split("/")[0] / "py.typed").is_file()


def shipped_files() -> set[str]:
    """Every file of the mapped folders, as it should be named in the wheel."""
    rooms = {folder.split("/")[0] for folder in FOLDERS.values()}
    files = [path.relative_to(ROOT) for room in rooms for path in (ROOT / room).rglob("*") if path.is_file()]
    return {f"fedfleet/{path.as_posix()}" for path in files if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The file names in a wheel built from a copy, so that no earlier build's left-overs get in."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for room in {folder.split("/")[0] for folder in FOLDERS.values()}:
        shutil.copytree(ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    built = subprocess.run(
        [*command, "-w", str(out), str(source)], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_installs_only_fedfleet(wheel_names: set[str]) -> None:
    tops = {PurePosixPath(name).parts[0] for name in wheel_names}
    assert {name for name in tops if not name.endswith(".dist-info")} == {"fedfleet"}


def test_the_wheel_carries_every_file_of_the_rooms(wheel_names: set[str]) -> None:
    carried = {name for name in wheel_names if name.startswith("fedfleet/")}
    assert carried == shipped_files()
