"""ROS 2 messages read by their definitions: CDR bytes become dictionaries, bounded by the bytes there are.

May live here: the `.msg` definitions as bags and MCAP files hold them (several, between lines of `=`), and the CDR
encoding of OMG DDS-XTypes 1.3, section 7.4.1 (XCDR1, either byte order). Nothing is generated or run.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from fedfleet.scenarios.records import ScenarioError
from fedfleet.scenarios.words import in_words

__all__ = ["Definition", "decode", "parse_definition"]

MAX_DEFINITION_BYTES: Final = 256 * 1024
MAX_DEPTH: Final = 16
MAX_ITEMS: Final = 1_000_000

_FIELD: Final = re.compile(r"([A-Za-z][\w/]*)(?:<=\d+)?(\[(<=)?(\d*)\])?\s+([A-Za-z]\w*)(?:\s+[^=\s].*)?\Z")
_SIZES: Final = {
    "bool": "B",
    "byte": "B",
    "char": "B",
    "uint8": "B",
    "int8": "b",
    "uint16": "H",
    "int16": "h",
    "uint32": "I",
    "int32": "i",
    "uint64": "Q",
    "int64": "q",
    "float32": "f",
    "float64": "d",
}
_KNOWN: Final = {
    "builtin_interfaces/Time": "int32 sec\nuint32 nanosec",
    "builtin_interfaces/Duration": "int32 sec\nuint32 nanosec",
}


@dataclass(frozen=True)
class _Field:
    """A field: `count` None for one value, -1 for a sequence, else the length of an array."""

    name: str
    type: str
    count: int | None


@dataclass(frozen=True)
class Definition:
    """A message and those in it: fields by type (`package/Name`); `root` is the type of the message."""

    root: str
    fields: Mapping[str, tuple[_Field, ...]]

    def names(self, type_name: str) -> tuple[str, ...]:
        """The fields of a type; none of an unknown one."""
        return tuple(field.name for field in self.fields.get(type_name, ()))


def parse_definition(text: str, root: str, where: str) -> Definition:
    """From a definition with those it needs; ScenarioError for one that is none, or in which a type is missing."""
    if len(text) > MAX_DEFINITION_BYTES:
        raise ScenarioError("malformed-schema", f"{where}: definition of {len(text)} characters")
    parts = {_short(root): ""}
    parts.update(_KNOWN)
    for number, part in enumerate(re.split(r"^=+\s*$", text, flags=re.MULTILINE)):
        head, _, rest = part.strip().partition("\n")
        if number and not head.startswith("MSG:"):
            raise ScenarioError(
                "malformed-schema", f"{where}: expected MSG: after a line of =, got {head!r:.40}"
            )
        parts[_short(head[4:].strip()) if number else _short(root)] = rest if number else part
    fields = {name: tuple(_fields(body, name, where)) for name, body in parts.items()}
    missing = [
        each.type
        for found in fields.values()
        for each in found
        if each.type not in {*fields, *_SIZES, "string"}
    ]
    if missing:
        raise ScenarioError(
            "malformed-schema", f"{where}: expected a definition of {missing[0]:.60}, got none"
        )
    return Definition(_short(root), fields)


def decode(data: bytes, definition: Definition, where: str) -> dict[str, Any]:
    """The message in CDR bytes; byte arrays as bytes. ScenarioError for what does not fit the definition."""
    if len(data) < 4 or data[0] != 0 or data[1] not in (0, 1):
        raise ScenarioError("malformed-message", f"{where}: expected CDR, got {data[:4].hex() or 'nothing'}")
    reader = _Cdr(data, "<" if data[1] else ">", definition, where)
    try:
        found = reader.message(definition.root, 0)
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        raise ScenarioError("malformed-message", f"{where} byte {reader.at}: {in_words(error)}") from error
    if len(data) - reader.at > 3:
        left = f"{len(data) - reader.at} bytes after the end of {definition.root}"
        raise ScenarioError("malformed-message", f"{where}: {left}: another version of it?")
    return found


def _short(name: str) -> str:
    """`vision_msgs/msg/Detection3D` and `vision_msgs/Detection3D` are one type."""
    return name.replace("/msg/", "/")


def _fields(body: str, name: str, where: str) -> list[_Field]:
    found = []
    for line in body.splitlines():
        text = line.partition("#")[0].strip()
        if not text or re.match(r"\w+(?:<=\d+)?\s+\w+\s*=", text):  # a constant
            continue
        match = _FIELD.match(text)
        if match is None:
            raise ScenarioError("malformed-schema", f"{where}: {name}: expected a field, got {text!r:.60}")
        kind = _short(match[1])
        if kind == "Header":
            kind = "std_msgs/Header"
        elif kind not in _SIZES and kind != "string" and "/" not in kind:
            kind = f"{name.partition('/')[0]}/{kind}"
        count = None if match[2] is None else -1 if match[3] or not match[4] else int(match[4])
        found.append(_Field(match[5], kind, count))
    return found


@dataclass
class _Cdr:
    data: bytes
    order: str
    definition: Definition
    where: str
    at: int = 4
    items: int = 0

    def message(self, name: str, depth: int) -> dict[str, Any]:
        if depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} messages in each other")
        return {field.name: self.field(field, depth) for field in self.definition.fields[name]}

    def field(self, field: _Field, depth: int) -> Any:  # noqa: ANN401 - of the field's type
        if field.count is None:
            return self.value(field.type, depth)
        count = self.number("I") if field.count < 0 else field.count
        if field.type in {"uint8", "byte", "char"}:
            return self.take(count)
        self.items += count
        if count > len(self.data) - self.at or self.items > MAX_ITEMS:
            raise ValueError(
                f"{count} items of {field.name} announced, {len(self.data) - self.at} bytes left"
            )
        return [self.value(field.type, depth) for _ in range(count)]

    def value(self, kind: str, depth: int) -> Any:  # noqa: ANN401 - of the type
        if kind == "string":
            return self.take(self.number("I")).rstrip(b"\0").decode()
        form = _SIZES.get(kind)
        return self.message(kind, depth + 1) if form is None else self.number(form)

    def number(self, form: str) -> Any:  # noqa: ANN401 - int or float
        size = struct.calcsize(form)
        self.at += -(self.at - 4) % size
        value = struct.unpack_from(self.order + form, self.data, self.at)[0]
        self.at += size
        return value

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise ValueError(f"{size} bytes announced, {len(self.data) - self.at} left")
        self.at += size
        return self.data[self.at - size : self.at]
