"""The only import of ONNX Runtime. Its official build reports to its maker; the package has forbidden that already.

Not forbidden, it looks up its maker's event host and keeps a device id and a database under the user's cache folder.
"""

from typing import Any

import onnxruntime as ort

__all__ = ["ort", "quantization"]

ort.disable_telemetry_events()  # for a process in which someone else had imported it before us


def quantization() -> Any:  # noqa: ANN401 - a library without types
    """Return ``onnxruntime.quantization``, which needs the package onnx."""
    import onnxruntime.quantization

    return onnxruntime.quantization
