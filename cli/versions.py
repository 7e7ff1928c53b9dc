"""Which versions a result was made with."""

import importlib.metadata
import platform

__all__ = ["versions"]

_LIBRARIES = ("fedfleet", "numpy", "onnxruntime", "paho-mqtt", "torch", "onnx", "pydantic")


def versions() -> dict[str, str]:
    """Return the versions of the libraries that decide about results, and of Python."""
    found = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {**found, "python": platform.python_version()}
