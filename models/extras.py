"""Optional packages: which extra brings each, and the one line that says so when it is not installed."""

import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Final

from fedfleet.protocol.errors import UsageError

__all__ = ["EXTRAS", "command", "explained", "is_installed", "lacking", "need"]

EXTRAS: Final[Mapping[str, str]] = {
    "PIL": "scenarios",
    "kuksa": "kuksa",
    "kuksa_client": "kuksa",
    "libsumo": "sumo",
    "lz4": "formats",
    "matplotlib": "viz",
    "mcap": "formats",
    "numcodecs": "formats",
    "onnx": "server",
    "onnxscript": "server",
    "psycopg": "scale",
    "pyarrow": "scenarios",
    "sumolib": "sumo",
    "torch": "train",
    "traci": "sumo",
}
"""Extra by the name that is imported. torch comes with `server` too."""

_NAMES: Final = {"PIL": "Pillow", "kuksa": "kuksa-client", "kuksa_client": "kuksa-client"}
"""What a package is called where that is not how it is imported."""

_SAID = re.compile(r"No module named '([\w.]+)'")


def command(*modules: str) -> str:
    """Return the command that installs what brings these modules."""
    extras = {EXTRAS[module] for module in modules}
    if "server" in extras:
        extras.discard("train")
    return f"pip install 'fedfleet[{','.join(sorted(extras))}]'"


def is_installed(module: str) -> bool:
    """Tell whether a module can be found, without importing it."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def need(*modules: str, what: str) -> None:
    """Raise UsageError, with the command that installs them, unless all of these modules can be found.

    ``what`` needs them: "training", "--plot".
    """
    missing = [module for module in modules if not is_installed(module)]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise UsageError(
            f"{what} needs {' and '.join(map(_name, missing))}, which {verb} not installed: {command(*missing)}"
        )


def lacking(error: ImportError) -> str:
    """Return the line that says which extra an import asks for; empty when it is none of ours."""
    return _line((error.name or "").partition(".")[0]) or explained(str(error))


def explained(text: str) -> str:
    """Return the same of the last words of a process that could not import a module; empty when it was not that."""
    found = _SAID.search(text)
    return _line(found[1].partition(".")[0]) if found else ""


def _name(module: str) -> str:
    return _NAMES.get(module, module)


def _line(module: str) -> str:
    return f"{_name(module)} is not installed: {command(module)}" if module in EXTRAS else ""
