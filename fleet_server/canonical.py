"""The canonical form of a model file (onnx): equal networks give equal bytes, weights lie at known places.

Stripped: producer, metadata, doc strings, value_info. Initializers are sorted by name, each with its values as raw
bytes in the file. Runs in the export process only.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from fedfleet.models.onnx_file import fields
from fedfleet.protocol.errors import UsageError

__all__ = ["canonical", "places"]

# Field numbers of onnx.proto: ModelProto.graph, GraphProto.initializer, TensorProto.name and .raw_data.
_GRAPH, _INITIALIZER, _NAME, _RAW_DATA = 7, 5, 8, 9


def canonical(
    model: onnx.ModelProto,
    weights: Mapping[str, NDArray[np.float32]],
    *,
    same: Mapping[str, str] | None = None,
) -> bytes:
    """The canonical file of `model` with these values in place of its initializers of the same names.

    `same` are second names of weights -> the name among `weights`: tied weights are one initializer. Raises UsageError
    when a weight is no float32 initializer of that shape: then the exporter has changed it.
    """
    out = onnx.ModelProto()
    out.CopyFrom(model)
    _join(out.graph, same or {})
    out.producer_name, out.producer_version, out.domain, out.doc_string = "fedfleet", "", "", ""
    out.model_version = 0
    del out.metadata_props[:]
    opsets = sorted(out.opset_import, key=lambda each: str(each.domain))
    del out.opset_import[:]
    out.opset_import.extend(opsets)
    _strip(out.graph)
    for function in out.functions:
        _strip(function)
    tensors = sorted(
        (_tensor(each, weights) for each in out.graph.initializer), key=lambda each: str(each.name)
    )
    missing = sorted(set(weights) - {tensor.name for tensor in tensors})
    if missing:
        raise UsageError(
            f"the exported graph has no initializer {missing[0]}, which is in the state dict: the network's output "
            "does not depend on it, so leave it out of the network"
        )
    del out.graph.initializer[:]
    out.graph.initializer.extend(tensors)
    onnx.checker.check_model(out)
    return bytes(out.SerializeToString(deterministic=True))


def places(file: bytes, names: Collection[str]) -> dict[str, tuple[int, int]]:
    """Start and end of each named initializer's raw bytes in a canonical file, found by walking the protobuf."""
    found: dict[str, tuple[int, int]] = {}
    for part in fields(file, 0, len(file)):
        if part.number != _GRAPH:
            continue
        for inner in fields(file, part.start, part.end):
            if inner.number == _INITIALIZER:
                parts = {one.number: (one.start, one.end) for one in fields(file, inner.start, inner.end)}
                a, b = parts[_NAME]
                name = file[a:b].decode()
                if name in names:
                    found[name] = parts[_RAW_DATA]
    return found


def _join(graph: onnx.GraphProto, same: Mapping[str, str]) -> None:
    """Give initializers with several names their first one everywhere, and keep one of each."""
    if not same:
        return
    kept: dict[str, onnx.TensorProto] = {}
    for tensor in graph.initializer:
        name = same.get(tensor.name, tensor.name)
        if name not in kept:
            kept[name] = onnx.TensorProto()
            kept[name].CopyFrom(tensor)
            kept[name].name = name
    del graph.initializer[:]
    graph.initializer.extend(kept.values())
    _rename(graph, same)


def _rename(graph: onnx.GraphProto, same: Mapping[str, str]) -> None:
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name in same:
                node.input[place] = same[name]
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                _rename(inner, same)


def _strip(graph: onnx.GraphProto | onnx.FunctionProto) -> None:
    graph.doc_string = ""
    del graph.metadata_props[:]
    del graph.value_info[:]
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
        for attribute in node.attribute:
            attribute.doc_string = ""
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                _strip(inner)
    if isinstance(graph, onnx.GraphProto):
        graph.name = "model"
        for value in (*graph.input, *graph.output):
            value.doc_string = ""
            del value.metadata_props[:]


def _tensor(tensor: onnx.TensorProto, weights: Mapping[str, NDArray[np.float32]]) -> onnx.TensorProto:
    """The same tensor with nothing but name, type, shape and raw bytes, and the weight's values if it is one."""
    values = numpy_helper.to_array(tensor)
    weight = weights.get(tensor.name)
    if weight is not None:
        if values.dtype != np.float32 or values.shape != weight.shape:
            got = f"{values.dtype}{list(values.shape)}"
            raise UsageError(f"initializer {tensor.name}: expected float32{list(weight.shape)}, got {got}")
        values = weight
    return numpy_helper.from_array(np.array(values), tensor.name)
