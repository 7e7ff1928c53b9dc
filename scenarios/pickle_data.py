"""Reads pickles as data: dictionaries, lists, texts, numbers and numpy arrays; nothing in them is ever called.

A pickle is a program for a small stack machine, which may call any function. The machine here knows only the opcodes
that build values, and of all names those in NAMES; it never imports, and makes arrays itself from checked bytes. The
opcodes are those of Python's Lib/pickletools.py, protocols 2 to 5.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from fedfleet.scenarios.pickle_arrays import NAMES, Called, Name, Pending, Waiting, call
from fedfleet.scenarios.records import ScenarioError
from fedfleet.scenarios.words import in_words

__all__ = ["MAX_OPCODES", "load"]

MAX_OPCODES: Final = 2_000_000
"""Bounds memory: an opcode makes at most an empty set, 216 bytes, or as many bytes as it has in the file."""

_KEYS: Final = (str, int, float, bytes, type(None))
"""What may be a key or in a set: hashing nested tuples would run as deep as they are."""
_LINE: Final = re.compile(rb"([\w.]{1,100})\n([\w.]{1,100})\n")


def load(data: bytes, where: str) -> Any:  # noqa: ANN401 - what the pickle holds
    """The value in a pickle of the caller's bounded size.

    Raises ScenarioError naming `where`: "unsafe-pickle" for a name that is not in NAMES, a call of one as it is not
    meant, or an opcode that builds no value; "malformed-pickle" for what is cut short or makes no sense.
    """
    machine = _Machine(memoryview(data), where)
    try:
        return machine.run()
    except (IndexError, ValueError, TypeError, KeyError, OverflowError, struct.error) as error:
        told = in_words(error) if isinstance(error, KeyError | struct.error) else " ".join(str(error).split())
        text = f"{where} byte {machine.at}: expected a whole pickle: {told:.200}"
        raise ScenarioError("malformed-pickle", text) from error


@dataclass
class _Machine:
    data: memoryview
    where: str
    at: int = 0
    stack: list[Any] = field(default_factory=list)
    marks: list[list[Any]] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def run(self) -> Any:  # noqa: ANN401 - what the pickle holds
        for _ in range(MAX_OPCODES):
            opcode = self.take(1)[0]
            if opcode == 0x2E:  # STOP
                if len(self.stack) != 1 or self.marks:
                    raise ValueError("more than one value at the end")
                return self.stack.pop()
            action = _ACTIONS.get(opcode)
            if action is None:
                text = (
                    f"{self.where} byte {self.at - 1}: opcode {opcode:#04x} builds no plain value: not read"
                )
                raise ScenarioError("unsafe-pickle", text)
            action(self)
        raise ScenarioError("malformed-pickle", f"{self.where}: more than {MAX_OPCODES} opcodes")

    def take(self, size: int) -> memoryview:
        if size > len(self.data) - self.at:
            raise ValueError(f"{size} bytes announced, {len(self.data) - self.at} left")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, form: str) -> int:
        return int(struct.unpack(form, self.take(struct.calcsize(form)))[0])

    def push(self, value: Any) -> None:  # noqa: ANN401 - any value
        self.stack.append(value)

    def since_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.marks.pop()
        return items

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError("stack is empty")
        self.stack[len(self.stack) - count :] = [tuple(self.stack[len(self.stack) - count :])]

    def remember(self, key: int) -> None:
        value = self.stack[-1]
        if isinstance(value, Pending):
            value.keys.append(key)
        self.memo[key] = value

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise TypeError("items for what is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise TypeError("items for what is no list")
        target.extend(items)

    def add(self) -> None:
        items, target = self.since_mark(), self.stack[-1]
        if type(target) is not set:
            raise TypeError("items for what is no set")
        target.update(_key(item) for item in items)

    def name_in_line(self) -> None:
        match = _LINE.match(self.data, self.at)
        if match is None:
            raise ValueError("a name without its end")
        self.at = match.end()
        self.name(match[1].decode(), match[2].decode())

    def name_on_stack(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.name(module, name)

    def name(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a name that is no text")
        found = NAMES.get(f"{module}.{name}")
        if found is None:
            shown = "".join(one if one.isprintable() else "?" for one in f"{module}.{name}")
            text = f"{self.where} byte {self.at}: it names {shown:.120}: not read"
            raise ScenarioError("unsafe-pickle", text)
        self.push(found)

    def reduce(self) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        if not isinstance(name, Name) or type(arguments) is not tuple:
            raise TypeError("a call of what is no name")
        try:
            self.push(call(name, arguments))
        except Called as error:
            text = f"{self.where} byte {self.at}: it calls {name.value}{error}: not read"
            raise ScenarioError("unsafe-pickle", text) from None

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Waiting):
            target.finish(state)
        elif isinstance(target, Pending):
            self.stack[-1] = target.finish(state)
            for key in target.keys:
                self.memo[key] = self.stack[-1]
        else:
            text = f"{self.where} byte {self.at}: it sets the state of a {type(target).__name__}: not read"
            raise ScenarioError("unsafe-pickle", text)


def _key(value: object) -> Any:  # noqa: ANN401 - one of _KEYS
    if not isinstance(value, _KEYS):
        raise TypeError(f"a {type(value).__name__} as a key")
    return value


def _mark(machine: _Machine) -> None:
    machine.marks.append(machine.stack)
    machine.stack = []


def _text(machine: _Machine, form: str) -> None:
    machine.push(str(machine.take(machine.number(form)), "utf-8", "surrogatepass"))


_Action = Callable[[_Machine], object]
_ACTIONS: Final[dict[int, _Action]] = {
    0x80: lambda m: m.take(1),  # PROTO
    0x95: lambda m: m.take(8),  # FRAME: its length, which is nothing to us
    0x28: _mark,
    0x94: lambda m: m.remember(len(m.memo)),  # MEMOIZE
    0x71: lambda m: m.remember(m.number("<B")),  # BINPUT
    0x72: lambda m: m.remember(m.number("<I")),  # LONG_BINPUT
    0x68: lambda m: m.push(m.memo[m.number("<B")]),  # BINGET
    0x6A: lambda m: m.push(m.memo[m.number("<I")]),  # LONG_BINGET
    0x4E: lambda m: m.push(None),  # NONE
    0x88: lambda m: m.push(True),  # NEWTRUE  # noqa: FBT003
    0x89: lambda m: m.push(False),  # NEWFALSE  # noqa: FBT003
    0x4B: lambda m: m.push(m.number("<B")),  # BININT1
    0x4D: lambda m: m.push(m.number("<H")),  # BININT2
    0x4A: lambda m: m.push(m.number("<i")),  # BININT
    0x8A: lambda m: m.push(int.from_bytes(m.take(m.number("<B")), "little", signed=True)),  # LONG1
    0x47: lambda m: m.push(struct.unpack(">d", m.take(8))[0]),  # BINFLOAT
    0x8C: lambda m: _text(m, "<B"),  # SHORT_BINUNICODE
    0x58: lambda m: _text(m, "<I"),  # BINUNICODE
    0x8D: lambda m: _text(m, "<Q"),  # BINUNICODE8
    0x43: lambda m: m.push(bytes(m.take(m.number("<B")))),  # SHORT_BINBYTES
    0x42: lambda m: m.push(bytes(m.take(m.number("<I")))),  # BINBYTES
    0x8E: lambda m: m.push(bytes(m.take(m.number("<Q")))),  # BINBYTES8
    0x96: lambda m: m.push(bytes(m.take(m.number("<Q")))),  # BYTEARRAY8
    0x7D: lambda m: m.push({}),  # EMPTY_DICT
    0x5D: lambda m: m.push([]),  # EMPTY_LIST
    0x8F: lambda m: m.push(set()),  # EMPTY_SET
    0x29: lambda m: m.push(()),  # EMPTY_TUPLE
    0x85: lambda m: m.tuple_of(1),  # TUPLE1
    0x86: lambda m: m.tuple_of(2),  # TUPLE2
    0x87: lambda m: m.tuple_of(3),  # TUPLE3
    0x74: lambda m: m.push(tuple(m.since_mark())),  # TUPLE
    0x61: lambda m: m.append([m.stack.pop()]),  # APPEND
    0x65: lambda m: m.append(m.since_mark()),  # APPENDS
    0x73: lambda m: m.set_items([m.stack.pop(), m.stack.pop()][::-1]),  # SETITEM
    0x75: lambda m: m.set_items(m.since_mark()),  # SETITEMS
    0x90: lambda m: m.add(),  # ADDITEMS
    0x63: lambda m: m.name_in_line(),  # GLOBAL
    0x93: lambda m: m.name_on_stack(),  # STACK_GLOBAL
    0x52: lambda m: m.reduce(),  # REDUCE
    0x62: lambda m: m.build(),  # BUILD
}
