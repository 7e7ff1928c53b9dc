"""ONNX files as bytes, without the package onnx: weights that lie outside the file, and what the file is otherwise.

Whoever reads a model from the wire must not open files that it names; whoever gives a file by name means those beside
it. Field numbers are those of onnx.proto; malformed bytes are a PeerError ``unloadable-model``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from fedfleet.protocol.errors import PeerError, UsageError
from fedfleet.protocol.printable import printable

__all__ = ["Outside", "described", "fields", "inlined", "outside", "read_model", "refuse_outside"]

_CHILDREN: Final[dict[str, dict[int, str]]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
"""Where tensors can stand: by message, the fields that lead to one."""
_NAME, _RAW_DATA, _EXTERNAL, _LOCATION = 8, 9, 13, 14
_IR_VERSION, _OPSET = 1, 8
DEEPEST: Final = 64
MOST_BYTES: Final = 2**31 - 1
KINDS: Final = (
    (0, b"PK\x03\x04", "a file of torch.save or another archive: export it with torch.onnx.export"),
    (0, b"\x80", "a pickled object, which is never read: export it with torch.onnx.export"),
    (0, b"version https://git-lfs", "a pointer of Git LFS: fetch the file itself (git lfs pull)"),
    (0, b"\x89HDF", "an HDF5 file, as Keras writes it: convert it to ONNX"),
    (0, b"<", "a page of HTML or XML: the download failed"),
    (4, b"TFL3", "a TensorFlow Lite file: convert it to ONNX"),
    (4, b"ORTM", "a file in ONNX Runtime's own format: give the ONNX file"),
    (8, b'{"', "a file of safetensors, which has weights without a graph: export it with torch.onnx.export"),
)
"""What a file that is no ONNX file begins with (at which byte), and what to do."""


class Field(NamedTuple):
    """A field of a protobuf message: its number, where it begins, where its content lies; ``value`` of a varint."""

    number: int
    begin: int
    start: int
    end: int
    value: int | None


@dataclass(frozen=True)
class Outside:
    """A tensor whose bytes lie in another file, from ``offset`` on, ``length`` of them (None: to its end)."""

    name: str
    location: str
    offset: int = 0
    length: int | None = None


def fields(data: bytes, start: int, end: int) -> Iterator[Field]:
    """Walk the fields of one message, which lies from ``start`` to ``end``; PeerError when it is malformed."""
    at = start
    while at < end:
        begin = at
        key, at = _varint(data, at, end)
        number, wire = key >> 3, key & 7
        value, first = None, at
        if wire == 0:
            value, at = _varint(data, at, end)
        elif wire == 2:
            length, first = _varint(data, at, end)
            at = first + length
        elif wire in {1, 5}:
            at += 8 if wire == 1 else 4
        else:
            raise _malformed(f"wire type {wire} at byte {begin}")
        if at > end or number == 0:
            raise _malformed(f"field {number} at byte {begin} goes beyond its message")
        yield Field(number, begin, first, at, value)


def outside(model: bytes) -> list[Outside]:
    """Return the tensors of a model file whose bytes lie outside it; PeerError when it is malformed."""
    return [
        found for start, end in _tensors(model, "model", 0, len(model)) if (found := _told(model, start, end))
    ]


def refuse_outside(model: bytes) -> None:
    """Raise PeerError ``external-data`` for a model that names other files, ``unloadable-model`` for no model."""
    if found := outside(model):
        where = ", ".join(sorted({printable(one.location)[:80] or "no file" for one in found})[:3])
        raise PeerError(
            "external-data", f"{len(found)} of its tensors lie in {where}: a model must be one file"
        )


def inlined(model: bytes, read: Callable[[Outside], bytes]) -> bytes:
    """Return the model file with the bytes of all tensors in it; ``read`` gives those that lie outside."""
    return _rebuilt(model, "model", (0, len(model)), read, 0)


def read_model(path: Path, *, option: str) -> bytes:
    """Return a model file as one, with the weights that lie beside it; UsageError naming the option otherwise.

    Only files of the same folder are read: a model that names others must be saved as one file.
    """
    where = f"{option} {path}"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{where}: cannot be read: {error.strerror}") from error
    try:
        found = outside(data)
    except PeerError:
        return data  # whoever loads it says what it is
    if not found:
        return data
    total = len(data) + sum(one.length or 0 for one in found)
    if total > MOST_BYTES:
        raise UsageError(f"{where}: {total} bytes with its weights, at most {MOST_BYTES} are read")
    files: dict[str, bytes] = {}
    return inlined(data, lambda one: _beside(path, one, files, where=where))


def described(model: bytes) -> str:
    """Return what a file is that cannot be loaded, with what to do; empty when it looks like an ONNX file."""
    if not model:
        return "an empty file"
    for at, magic, words in KINDS:
        if model[at : at + len(magic)] == magic:
            return words
    return ""


def versions(model: bytes) -> tuple[int, int]:
    """Return the IR version and the version of the standard operators (0: not told); PeerError when malformed."""
    told, opset = 0, 0
    for one in fields(model, 0, len(model)):
        if one.number == _IR_VERSION and one.value is not None:
            told = one.value
        if one.number == _OPSET:
            inner = {each.number: each for each in fields(model, one.start, one.end)}
            domain = model[inner[1].start : inner[1].end] if 1 in inner else b""
            if domain in {b"", b"ai.onnx"} and 2 in inner:
                opset = inner[2].value or 0
    return told, opset


def _beside(path: Path, one: Outside, files: dict[str, bytes], *, where: str) -> bytes:
    """Return the bytes of a tensor from a file of the model's own folder."""
    shown, advice = (
        printable(one.location)[:200],
        "save it as one file (onnx.save with save_as_external_data=False)",
    )
    if one.location not in files:
        if Path(one.location).name != one.location or one.location in {"", ".", ".."}:
            raise UsageError(
                f"{where}: its weights are in {shown!r}, which is not a file beside it: {advice}"
            )
        file = path.parent / one.location
        try:
            if file.resolve().parent != path.resolve().parent or not file.is_file():
                raise UsageError(
                    f"{where}: its weights are in {shown}, which is not there: put it beside, or {advice}"
                )
            files[one.location] = file.read_bytes()
        except OSError as error:
            told = f"which cannot be read ({error.strerror})"
            raise UsageError(f"{where}: its weights are in {shown}, {told}: {advice}") from error
    data = files[one.location]
    end = len(data) if one.length is None else one.offset + one.length
    if not 0 <= one.offset <= end <= len(data):
        told = f"bytes {one.offset} to {end} of {shown}, which has {len(data)}"
        raise UsageError(
            f"{where}: {printable(one.name)[:80]} is in {told}: the two files do not belong together"
        )
    return data[one.offset : end]


def _tensors(data: bytes, kind: str, start: int, end: int, depth: int = 0) -> Iterator[tuple[int, int]]:
    if kind == "tensor":
        yield start, end
        return
    if depth > DEEPEST:
        raise _malformed(f"graphs in graphs, more than {DEEPEST} deep")
    children = _CHILDREN[kind]
    for one in fields(data, start, end):
        if one.number in children and one.value is None:
            yield from _tensors(data, children[one.number], one.start, one.end, depth + 1)


def _told(data: bytes, start: int, end: int) -> Outside | None:
    """Return where the bytes of a tensor lie, when that is not in it."""
    name, entries, is_outside = "", dict[str, str](), False
    for one in fields(data, start, end):
        if one.number == _NAME and one.value is None:
            name = _text(data, one)
        elif one.number == _LOCATION:
            is_outside = is_outside or bool(one.value)
        elif one.number == _EXTERNAL and one.value is None:
            inner = {each.number: _text(data, each) for each in fields(data, one.start, one.end)}
            entries[inner.get(1, "")] = inner.get(2, "")
    if not entries and not is_outside:
        return None
    numbers = {key: entries[key] for key in ("offset", "length") if key in entries}
    if any(not text.isascii() or not text.isdigit() or len(text) > 18 for text in numbers.values()):
        raise _malformed(f"tensor {printable(name)[:80]} has no number as {' or '.join(numbers)}")
    length = int(numbers["length"]) if "length" in numbers else None
    return Outside(name, entries.get("location", ""), int(numbers.get("offset", "0")), length)


def _rebuilt(
    data: bytes, kind: str, span: tuple[int, int], read: Callable[[Outside], bytes], depth: int
) -> bytes:
    start, end = span
    if depth > DEEPEST:
        raise _malformed(f"graphs in graphs, more than {DEEPEST} deep")
    if kind == "tensor":
        told = _told(data, start, end)
        if told is None:
            return data[start:end]
        gone = {_RAW_DATA, _EXTERNAL, _LOCATION}
        kept = b"".join(
            data[one.begin : one.end] for one in fields(data, start, end) if one.number not in gone
        )
        return kept + _field(_RAW_DATA, read(told))
    parts, children = [], _CHILDREN[kind]
    for one in fields(data, start, end):
        if one.number in children and one.value is None:
            inner = _rebuilt(data, children[one.number], (one.start, one.end), read, depth + 1)
            parts.append(_field(one.number, inner))
        else:
            parts.append(data[one.begin : one.end])
    return b"".join(parts)


def _field(number: int, content: bytes) -> bytes:
    return _number(number << 3 | 2) + _number(len(content)) + content


def _number(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _text(data: bytes, one: Field) -> str:
    return data[one.start : one.end].decode(errors="replace")


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    for place in range(at, min(at + 10, end)):
        byte = data[place]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, place + 1
        shift += 7
    raise _malformed(f"a number without end at byte {at}")


def _malformed(told: str) -> PeerError:
    return PeerError("unloadable-model", f"no ONNX file: {told}")
