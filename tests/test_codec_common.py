"""Coordinates that a plan names by a rule: both sides derive the same ones."""

from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfleet.codec.common import common
from fedfleet.codec.delta import Delta
from fedfleet.codec.parts import Part, Parts

SIZE = 1000


def splitmix64(state: int) -> int:
    """The reference in plain integers."""
    z = (state + 0x9E3779B97F4A7C15) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


def step(count: int = 300, *, dense: bool = False) -> Delta:
    rng = np.random.default_rng(3)
    if dense:
        return Delta(SIZE, None, rng.normal(size=SIZE).astype(np.float32))
    indices = np.sort(rng.choice(SIZE, count, replace=False)).astype(np.int64)
    return Delta(SIZE, indices, rng.normal(size=count).astype(np.float32))


def reference(moved: np.ndarray, count: int, drawn: int, seed: str) -> list[int]:
    """The rule with sorted lists: `moved` are the values of the step, by coordinate."""
    best = sorted((i for i in range(len(moved)) if moved[i]), key=lambda i: (-abs(moved[i]), i))
    top = best[: count - drawn]
    start = int.from_bytes(sha256(seed.encode()).digest()[:8], "big")
    rest = sorted(set(range(len(moved))) - set(top), key=lambda i: splitmix64((start + i) % 2**64))
    return sorted(top + rest[: count - len(top)])


@pytest.mark.parametrize("dense", [False, True])
@given(density=st.floats(0.001, 1.0), seeded=st.floats(0, 1), seed=st.text(max_size=8))
def test_the_rule_is_the_one_that_is_written_down(
    density: float, seeded: float, seed: str, *, dense: bool
) -> None:
    moved = step(dense=dense)
    count = min(SIZE, max(1, round(density * SIZE)))
    found = common(moved, Parts.whole(SIZE), density=density, seeded=seeded, seed=seed)
    assert found.dtype == np.int64
    assert found.tolist() == reference(moved.dense(), count, min(count, round(seeded * count)), seed)


def test_without_a_step_all_are_drawn_and_another_round_draws_others() -> None:
    one = common(None, Parts.whole(SIZE), density=0.1, seeded=0.1, seed="1:1")
    two = common(None, Parts.whole(SIZE), density=0.1, seeded=0.1, seed="1:2")
    assert one.size == two.size == 100
    assert len(set(one.tolist()) & set(two.tolist())) < 40
    assert one.tolist() == reference(np.zeros(SIZE), 100, 100, "1:1")


def test_a_step_with_too_few_values_is_filled_up_by_the_draw() -> None:
    moved = step(10)
    found = common(moved, Parts.whole(SIZE), density=0.1, seeded=0.0, seed="s")
    assert found.size == 100
    assert set(moved.indices.tolist()) <= set(found.tolist())


def test_only_coordinates_of_sparse_parts_are_named() -> None:
    parts = Parts(
        SIZE,
        (
            Part("body", ((0, 100),), "exclude"),
            Part("body", ((100, 500), (600, 1000))),
            Part("body", ((500, 600),), "dense"),
        ),
    )
    found = common(step(dense=True), parts, density=0.5, seeded=0.5, seed="s")
    assert found.size == 400
    assert not set(found.tolist()) & {*range(100), *range(500, 600)}


def test_no_sparse_part_has_no_coordinates() -> None:
    parts = Parts(SIZE, (Part("body", ((0, SIZE),), "dense"),))
    assert common(step(), parts, density=0.5, seeded=0.5, seed="s").size == 0
