"""Pickles as data: the same values as Python's own reader, and nothing that runs."""

import os
import pickle  # to write what is read, and hostile ones
import struct
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedfleet.scenarios.pickle_data import load
from fedfleet.scenarios.records import ScenarioError

VALUES = {
    "text": "Straße",
    "long": "x" * 300,
    "bytes": b"\0\1",
    "numbers": [0, 255, 256, -1, 2**31 - 1, -(2**31), 2**40, -(2**70), 1.5, float("inf")],
    "truths": (True, False, None),
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
    "nested": {"a": {"b": [[{}]]}, 7: "seven", None: 0},
    "counted": defaultdict(int, {"VEHICLE": 3}),
    "many": list(range(2000)),
}
ARRAYS = [
    np.arange(12.0).reshape(3, 4),
    np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    np.arange(6, dtype=">i4").reshape(2, 3),
    np.array([True, False]),
    np.zeros((0, 3), np.float32),
    np.array(2.5),
]


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, Any]:
        return self.call


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_values_are_those_that_were_written(protocol: int) -> None:
    values = {key: value for key, value in VALUES.items() if protocol > 2 or key != "bytes"}
    assert load(pickle.dumps(values, protocol), "a.pkl") == values


def test_sets_are_read() -> None:
    assert load(pickle.dumps({"a", 1, None}, 4), "a.pkl") == {"a", 1, None}


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}")
def test_arrays_are_those_that_were_written(array: np.ndarray, protocol: int) -> None:
    # Given an array that stands twice in the pickle, and a scalar of it
    first, again, scalar = load(pickle.dumps((array, [array], np.float64(0.1)), protocol), "a.pkl")
    # Then both are equal to it, and so is the scalar
    np.testing.assert_array_equal(first, array)
    np.testing.assert_array_equal(again[0], array)
    assert first.dtype == array.dtype
    assert scalar == 0.1


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "function",
    [os.mkdir, os.system, eval, exec, __import__, getattr, np.load, np.fromfile, bytearray, pickle.loads],
)
def test_a_pickle_that_calls_a_function_is_refused_and_calls_nothing(
    tmp_path: Path, function: Any, protocol: int
) -> None:
    # Given a pickle whose reading by Python's own reader would leave a folder
    mark = tmp_path / "called"
    argument = str(mark) if function is os.mkdir else f"__import__('os').mkdir({str(mark)!r})"
    hostile = pickle.dumps({"id": "scene-1", "tracks": Calls(function, argument)}, protocol)
    # When
    with pytest.raises(ScenarioError) as refused:
        load(hostile, "evil.pkl")
    # Then
    assert refused.value.reason in {"unsafe-pickle", "malformed-pickle"}
    assert "evil.pkl" in str(refused.value)
    assert not mark.exists()


def test_the_hostile_pickle_is_one(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Calls(os.mkdir, str(tmp_path / "called"))))  # noqa: S301 - what the reader must not do
    assert (tmp_path / "called").exists()


def test_the_refusal_tells_the_name() -> None:
    with pytest.raises(
        ScenarioError, match=r"unsafe-pickle: evil.pkl byte \d+: it names posix.system: not read"
    ):
        load(pickle.dumps(Calls(os.system, "true"), 4), "evil.pkl")


def test_a_name_of_several_lines_is_told_in_one() -> None:
    with pytest.raises(ScenarioError, match=r"unsafe-pickle: a.pkl byte 11: it names a\?b.c: not read"):
        load(b"\x80\x04\x8c\x03a\nb\x8c\x01c\x93.", "a.pkl")


def huge(shape: tuple[int, ...]) -> bytes:
    """An array of one byte that says it has that shape."""
    whole = pickle.dumps(np.zeros(1, np.int8), 4)
    assert whole.count(b"K\x01\x85") == 1
    return whole.replace(b"K\x01\x85", pickle.dumps(shape, 2)[2:-3])  # without memo and end


@pytest.mark.parametrize(
    ("data", "reason", "text"),
    [
        (b"", "malformed-pickle", "a.pkl byte 0: expected a whole pickle"),
        (b"\x80\x04", "malformed-pickle", "1 bytes announced, 0 left"),
        (b"\x80\x04NN.", "malformed-pickle", "more than one value"),
        (b"\x80\x04(N.", "malformed-pickle", "more than one value"),
        (b"\x80\x04h\x05.", "malformed-pickle", "it has no 5"),
        (b"\x80\x04\x85.", "malformed-pickle", "stack is empty"),
        (
            b"\x80\x04B" + struct.pack("<I", 2**32 - 1) + b"ab.",
            "malformed-pickle",
            "4294967295 bytes announced",
        ),
        (b"\x80\x04}(NN}u.", "malformed-pickle", "items for what is no dictionary"),
        (b"\x80\x04}]Ns.", "malformed-pickle", "a list as a key"),
        (b"\x80\x04}" + b")" + b"\x85" * 100_000 + b"Ns.", "malformed-pickle", "a tuple as a key"),
        (b"\x80\x04)" + b"\x85" * 100_000 + b"N\x93.", "malformed-pickle", "a name that is no text"),
        (b"\x80\x04]" * 2_000_001, "malformed-pickle", "more than 2000000 opcodes"),
        (b"\x80\x04cnumpy\nndarray\n)R.", "unsafe-pickle", "it calls ndarray()"),
        (b"\x80\x04cbuiltins\nint\nX\x01\x00\x00\x009\x85R.", "unsafe-pickle", "it calls int('9')"),
        (b"\x80\x04cbuiltins\nint\n}b.", "unsafe-pickle", "it sets the state of a Name"),
        (
            b"\x80\x04cnumpy\ndtype\nX\x01\x00\x00\x00O\x89\x88\x87R.",
            "unsafe-pickle",
            "it calls dtype('O', bool, bool)",
        ),
        (b"\x80\x04NP1\n.", "unsafe-pickle", "opcode 0x50 builds no plain value"),
        (huge((10**9, 10**9)), "malformed-pickle", "an array of 1000000000000000000 bytes, got 1"),
        (huge((-1,)), "malformed-pickle", "an array whose shape is none"),
        (huge((1,) * 9), "malformed-pickle", "an array whose shape is none"),
    ],
)
def test_what_is_no_pickle_of_data_is_refused(data: bytes, reason: str, text: str) -> None:
    with pytest.raises(ScenarioError) as refused:
        load(data, "a.pkl")
    assert refused.value.reason == reason
    assert text in str(refused.value)


def test_cut_anywhere_or_with_a_byte_changed_it_is_read_or_refused() -> None:
    # Given a pickle with everything in it
    whole = pickle.dumps({"a": [ARRAYS[0], np.float32(1)], "b": (1, "x"), "c": defaultdict(int)}, 4)
    rng = np.random.default_rng(5)
    # When it is cut at each byte: refused
    for end in range(len(whole)):
        with pytest.raises(ScenarioError):
            load(whole[:end], "a.pkl")
    # When each byte is another: read or refused, and nothing else
    for at in range(len(whole)):
        for other in rng.integers(0, 256, 8):
            try:
                load(whole[:at] + bytes([other]) + whole[at + 1 :], "a.pkl")
            except ScenarioError as error:
                assert error.reason in {"unsafe-pickle", "malformed-pickle"}  # noqa: PT017 - it need not be raised
