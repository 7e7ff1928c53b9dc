"""Which versions a result was made with."""

import importlib.metadata
import platform

__all__ = ["versions"]

_LIBRARIES = (
    "fedfleet",
    "matplotlib",
    "numpy",
    "onnx",
    "onnxruntime",
    "paho-mqtt",
    "pyarrow",
    "pydantic",
    "torch",
)


def versions() -> dict[str, str]:
    """Return the versions of the installed libraries that decide about results, and of Python."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # an optional part that this installation does without
    return {**found, "python": platform.python_version()}
