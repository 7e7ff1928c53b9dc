"""The whole fleet in virtual time, seed after seed: nothing is lost, nothing counts twice, every round ends.

`benchmarks/simulate.py` runs thousands of seeds.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from sim_checks import Outcome, simulate
from sim_scenario import draw
from sim_world import Template

CHUNK, CHUNKS = 50, 10
CAUGHT = {4581: "a vehicle waited minutes for the pieces of a version that was cleared while it was away"}
"""Seeds that failed once, and why; the smallest vector of each is a test of its room."""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Template]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield Template(tmp_path_factory.mktemp("template"))
    structlog.reset_defaults()


@pytest.fixture(scope="module")
def seen() -> Counter[str]:
    """What happened in all runs of this module."""
    return Counter()


@pytest.mark.parametrize("first", range(0, CHUNK * CHUNKS, CHUNK))
def test_what_must_hold_holds(template: Template, tmp_path: Path, seen: Counter[str], first: int) -> None:
    for seed in range(first, first + CHUNK):
        seen.update(simulate(draw(seed), template, tmp_path / str(seed)).counts)


@pytest.mark.parametrize("seed", CAUGHT)
def test_what_failed_once_holds(template: Template, tmp_path: Path, seed: int) -> None:
    simulate(draw(seed), template, tmp_path / "run")


def test_the_runs_were_rough(seen: Counter[str]) -> None:
    """Every kind of trouble and every fate occurred: a simulation of sunshine shows nothing."""
    if seen["runs"] < CHUNK * CHUNKS:
        pytest.skip("only some of the seeds were run")
    for what in (
        "server kills",
        "vehicle kills",
        "jumps",
        "broker losses",
        "fate folded ",
        "fate returned late",
        "fate returned below-quorum",
        "fate returned too-stale",
        "fate returned no-more-rounds",
        "fate returned refused-by-gate",
        "folded when older",
    ):
        assert seen[what] > 0, what


@pytest.mark.parametrize("seed", [3, 7, 16])
def test_the_same_seed_gives_the_same_bytes(template: Template, tmp_path: Path, seed: int) -> None:
    def run(name: str) -> Outcome:
        return simulate(draw(seed), template, tmp_path / name)

    assert run("first") == run("again")
