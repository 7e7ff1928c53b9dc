"""Where the weights lie: only their bytes change, and a layout that cannot be true is refused."""

import json
import re
from typing import Any, ClassVar, cast

import numpy as np
import pytest

from fedfleet.codec.parts import Part, Parts
from fedfleet.models.layout import Layout, Names, extract, patch, read, rules
from fedfleet.models.task import Task, load
from fedfleet.protocol.errors import PeerError, UsageError

GOOD: dict[str, Any] = {
    "task": "tiny",
    "task_version": 1,
    "names": ["b", "a"],
    "shapes": [[2, 2], [1]],
    "offsets": [0, 4],
    "byte_offsets": [10, 3],
    "file_bytes": 30,
}


def layout(**changes: Any) -> Layout:
    return read(json.dumps({**GOOD, **changes}).encode())


def test_only_the_bytes_of_the_weights_change() -> None:
    # given a file of ones
    file = b"\x01" * 30
    weights = np.array([1.5, -2, 3, 4, 0.25], dtype=np.float32)
    # when
    patched = patch(file, layout(), weights)
    # then
    assert patched[10:26] == weights[:4].astype("<f4").tobytes()
    assert patched[3:7] == weights[4:].astype("<f4").tobytes()
    assert patched[:3] + patched[7:10] + patched[26:] == b"\x01" * 10
    np.testing.assert_array_equal(extract(patched, layout()), weights)


def test_a_layout_travels_as_json_and_new_fields_are_ignored() -> None:
    assert read(layout().to_json()) == layout(news=1)
    assert (layout().size, layout().sizes) == (5, (4, 1))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"names": ["a", "a"]}, "do not belong together"),
        ({"names": ["a"]}, "do not belong together"),
        ({"offsets": [0, 5]}, "offsets in the vector do not follow from the shapes"),
        ({"byte_offsets": [10, 25]}, "two tensors overlap in the file"),
        ({"byte_offsets": [15, 3]}, "a tensor ends at byte 31 of a file of 30 bytes"),
        ({"byte_offsets": [10, -1]}, "byte_offsets.1"),
        ({"shapes": [[2, -2], [1]]}, "shapes.0"),
        ({"shapes": [[2**31, 2**31], [1]]}, "shapes.0"),
        ({"shapes": [[2**30] * 8, [1]]}, "offsets in the vector"),
        ({"names": []}, "names"),
        ({"file_bytes": None}, "file_bytes"),
        ({"rules": ["body:sparse"]}, "1 rules for 2 tensors"),
        ({"rules": ["body:exclude", "head:exclude"]}, "every tensor is excluded"),
        ({"rules": ["body:sparse", "body:thin"]}, "rules.1"),
    ],
)
def test_a_layout_that_cannot_be_true_is_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(PeerError) as error:
        layout(**changes)
    assert error.value.reason == "malformed-layout"
    assert text in error.value.detail


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b"{}"])
def test_what_is_no_layout_is_refused(data: bytes) -> None:
    with pytest.raises(PeerError, match="malformed-layout"):
        read(data)


@pytest.mark.parametrize(
    ("file", "weights", "text"),
    [
        (b"\0" * 29, np.zeros(5, "f4"), "file of tiny: expected 30 bytes, got 29"),
        (b"\0" * 30, np.zeros(4, "f4"), r"weights of tiny: expected float32\[5\], got float32\[4\]"),
        (b"\0" * 30, np.zeros(5), r"weights of tiny: expected float32\[5\], got float64\[5\]"),
    ],
)
def test_what_does_not_belong_together_is_refused(file: bytes, weights: Any, text: str) -> None:
    with pytest.raises(PeerError, match=f"model-mismatch: {text}"):
        patch(file, layout(), weights)


class Ruled:
    """What `rules` reads of a task."""

    name = "ruled"
    tensors: ClassVar = {"norm.running_*": "exclude", "*.bias": "dense", "norm.*": "dense"}
    head = ("last.*",)


NAMES = ("first.weight", "norm.weight", "norm.running_mean", "first.bias", "last.weight", "last.bias")


def test_a_task_says_how_each_tensor_is_sent() -> None:
    # given patterns of which the first that matches counts
    found = rules(cast("Task", Ruled()), Names(NAMES))
    # then
    expected = ("body:sparse", "body:dense", "body:exclude", "body:dense", "head:sparse", "head:dense")
    assert found == expected
    # and a layout makes parts of it, tensors of one rule together, the same after a journey as JSON
    told = layout(
        names=NAMES, shapes=((2,), (1,), (1,), (1,), (3,), (1,)), offsets=(0, 2, 3, 4, 5, 8),
        byte_offsets=(0, 8, 12, 16, 20, 32), file_bytes=36, rules=found,
    )  # fmt: skip
    assert read(told.to_json()).parts == Parts(
        9,
        (
            Part("body", ((0, 2),), "sparse"),
            Part("body", ((2, 3), (4, 5)), "dense"),
            Part("body", ((3, 4),), "exclude"),
            Part("head", ((5, 8),), "sparse"),
            Part("head", ((8, 9),), "dense"),
        ),
    )


def test_without_rules_all_is_one_sparse_part_and_the_json_says_nothing() -> None:
    assert rules(load("motion_forecast"), Names(NAMES)) == ()
    assert layout().parts == Parts(5, (Part("body", ((0, 4), (4, 5))),))
    assert b"rules" not in layout().to_json()


@pytest.mark.parametrize(
    ("tensors", "head", "text"),
    [
        ({"*.bias": "thin"}, (), "task ruled: tensors *.bias: expected sparse, dense, exclude, got 'thin'"),
        ({"lost.*": "dense"}, (), "task ruled: no tensor lost.*, expected one of first.weight, norm.weight"),
        ({}, ("lost.*",), "task ruled: no tensor lost.*, expected one of first.weight, norm.weight"),
    ],
)
def test_rules_that_mean_nothing_are_refused(
    tensors: dict[str, str], head: tuple[str, ...], text: str
) -> None:
    task = Ruled()
    vars(task).update(tensors=tensors, head=head)
    with pytest.raises(UsageError, match=f"^{re.escape(text)}"):
        rules(cast("Task", task), Names(NAMES))
