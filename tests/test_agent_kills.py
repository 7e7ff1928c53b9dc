"""kill -9 of the agent at random points of all it does, at a real broker: nothing is lost, nothing counts twice."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import agent_world as aw
import numpy as np
import pytest
from child_processes import Processes
from kill_site import MOMENTS, Yard

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def build(tmp_path: Path, processes: Processes, mosquitto_binary: Path) -> Iterator[Callable[..., Yard]]:
    assert mosquitto_binary.exists()
    made: list[Yard] = []

    def one(**arguments: Any) -> Yard:
        made.append(Yard(tmp_path, processes, **arguments))
        return made[-1]

    yield one
    for each in made:
        each.close()


def check(yard: Yard, kills: int) -> None:
    # when it is killed again and again, in all that it does
    points = yard.shake(kills)
    assert points.total() == kills
    assert set(points) == set(MOMENTS)
    judge = yard.judge
    # then each round has exactly one update, with the same bytes however often it came, and no number is missing
    assert yard.sequences() == list(range(1, len(judge.seen) + 1))
    assert sorted(judge.rounds.values()) == list(range(1, len(judge.seen) + 1))
    assert {name: len(copies) for name, copies in judge.seen.items()} == dict.fromkeys(judge.seen, 1)
    assert len(judge.copies_heard) >= len(judge.seen)
    with yard.journal() as journal:
        # and what is in the residual is what was learned, less what was sent for good: once each
        assert journal.outbox == ()
        assert np.allclose(journal.residual(aw.NETWORK_SIZE), yard.left(), atol=1e-4)
        # and the journal stands behind the last release
        active = journal.released("active")
        assert active is not None
        assert active.model == aw.file_of(active.version)
        assert journal.answered == set(judge.rounds.values())


def test_fourteen_kills_lose_nothing(build: Callable[..., Yard]) -> None:
    check(build(seed=1, real=False), 14)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("real", "kills"), [(False, 105), (True, 14)], ids=["stand-in", "trainer"])
def test_a_hundred_kills_lose_nothing(build: Callable[..., Yard], *, real: bool, kills: int) -> None:
    check(build(seed=2, real=real, epochs=150 if real else 2), kills)
